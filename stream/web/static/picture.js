"use strict";
// Sends a picture away, gets the probability of each pixel back, and draws from it; the threshold acts here.

const bring = document.querySelector(".bring");
const form = document.querySelector(".sliders").elements;
const peak = Math.ceil(bring.dataset.peak * 255);
const MARKER = [0x40, 0xff, 0x60];
// Probability 0 to 1 in equal steps: the colours between which the heat map's lie.
const HEAT = [[20, 20, 120], [0, 140, 200], [60, 200, 90], [250, 210, 40], [220, 40, 30]];
let shown = null;

function say(text) {
  document.querySelector("[data-value=said]").textContent = text;
}

async function segment(file, layer) {
  const body = new FormData();
  body.append("file", file);
  const answer = await fetch(`/api/segment?layer=${layer}`, { method: "POST", body, headers: { Accept: "image/png" } });
  if (!answer.ok) throw new Error(await reasonOf(answer));
  return { bitmap: await createImageBitmap(await answer.blob()), view: answer.headers.get("Field-Of-View") };
}

function pixelsOf(bitmap) {
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  return context.getImageData(0, 0, bitmap.width, bitmap.height).data;
}

async function look(file) {
  say("…");
  try {
    const { bitmap, view } = await segment(file, "probability");
    // Browsers do not show every format that the server reads.
    const picture = await createImageBitmap(file).catch(async () => (await segment(file, "picture")).bitmap);
    const colours = pixelsOf(bitmap);
    const probability = new Uint8Array(bitmap.width * bitmap.height);
    for (let place = 0; place < probability.length; place++) probability[place] = colours[4 * place];
    const [, , width, height] = view.split(",").map(Number);
    const smallest = bring.dataset.smallest * width * height;
    shown = { name: file.name || "picture", width: bitmap.width, height: bitmap.height, probability, smallest };
    shown.picture = pixelsOf(picture);
    form.threshold.value = Math.round(bring.dataset.threshold * 100);
    document.querySelector(".looked").hidden = false;
    draw("input", (place) => colourAt(place));
    draw("heat", (place) => mix(colourAt(place), heat(probability[place] / 255), 0.15 + 0.5 * (probability[place] / 255)));
    draw("probability", (place) => [probability[place], probability[place], probability[place]]);
    drawMask();
  } catch (error) {
    say(error.message);
  }
}

function colourAt(place) {
  return shown.picture.subarray(4 * place, 4 * place + 3);
}

function mix(under, over, share) {
  return [0, 1, 2].map((channel) => under[channel] + share * (over[channel] - under[channel]));
}

function heat(value) {
  const place = value * (HEAT.length - 1);
  const low = Math.min(Math.floor(place), HEAT.length - 2);
  return mix(HEAT[low], HEAT[low + 1], place - low);
}

function draw(name, colourOf) {
  const canvas = document.getElementById(name);
  [canvas.width, canvas.height] = [shown.width, shown.height];
  const image = new ImageData(shown.width, shown.height);
  for (let place = 0; place < shown.width * shown.height; place++) {
    image.data.set(colourOf(place), 4 * place);
    image.data[4 * place + 3] = 255;
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

// What is at or above the threshold; of findings alone, the blobs that are large and sure enough.
function maskAt(threshold, findingsOnly) {
  const { width, height, probability } = shown;
  const level = Math.max(1, Math.ceil(threshold * 255));
  const mask = new Uint8Array(probability.length);
  const stack = new Int32Array(probability.length);
  let found = 0;
  for (let start = 0; start < probability.length; start++) {
    if (mask[start] || probability[start] < level) continue;
    let [filled, taken, highest] = [1, 0, 0];
    stack[0] = start;
    mask[start] = 1;
    while (taken < filled) {
      const place = stack[taken++];
      highest = Math.max(highest, probability[place]);
      const [x, y] = [place % width, Math.floor(place / width)];
      for (let row = Math.max(0, y - 1); row <= Math.min(height - 1, y + 1); row++) {
        for (let column = Math.max(0, x - 1); column <= Math.min(width - 1, x + 1); column++) {
          const next = row * width + column;
          if (!mask[next] && probability[next] >= level) {
            mask[next] = 1;
            stack[filled++] = next;
          }
        }
      }
    }
    const counts = filled >= shown.smallest && highest >= Math.max(level, peak);
    found += counts;
    const mark = counts ? 2 : findingsOnly ? 3 : 2;
    for (let index = 0; index < filled; index++) mask[stack[index]] = mark;
  }
  return { mask: mask.map((value) => (value === 2 ? 255 : 0)), found };
}

function drawMask() {
  const threshold = form.threshold.value / 100;
  form.shown.value = threshold.toFixed(2);
  const { mask, found } = maskAt(threshold, form.findings.checked);
  const { width, height } = shown;
  draw("mask", (place) => [mask[place], mask[place], mask[place]]);
  draw("contour", (place) => colourAt(place));
  const context = document.getElementById("contour").getContext("2d");
  const thick = Math.max(1, Math.round(height / 270));
  context.fillStyle = `rgb(${MARKER})`;
  for (let place = 0; place < mask.length; place++) {
    if (!mask[place]) continue;
    const [x, y] = [place % width, Math.floor(place / width)];
    const inside = x > 0 && x < width - 1 && y > 0 && y < height - 1;
    if (inside && mask[place - 1] && mask[place + 1] && mask[place - width] && mask[place + width]) continue;
    context.fillRect(x - Math.floor(thick / 2), y - Math.floor(thick / 2), thick, thick);
  }
  say(found ? `${found} finding${found > 1 ? "s" : ""}` : "nothing found");
}

function download(event) {
  event.preventDefault();
  const name = event.currentTarget.dataset.download;
  document.getElementById(name).toBlob((blob) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = `${shown.name.replace(/\.[^.]*$/, "")}-${name}.png`;
    link.click();
    URL.revokeObjectURL(link.href);
  });
}

receiveFiles((files) => look(files[0]));
for (const button of document.querySelectorAll("[data-sample]")) {
  button.addEventListener("click", async () => {
    const answer = await fetch(button.dataset.sample);
    look(new File([await answer.blob()], button.dataset.sample.split("/").pop()));
  });
}
for (const link of document.querySelectorAll("[data-download]")) link.addEventListener("click", download);
form.threshold.addEventListener("input", drawMask);
form.findings.addEventListener("change", drawMask);
