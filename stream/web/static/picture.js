"use strict";
// Sends a picture away, gets the probability of each pixel back, and draws from it; the threshold acts here.

const bring = document.querySelector(".bring");
const form = document.querySelector(".sliders").elements;
const peak = Math.ceil(bring.dataset.peak * 255);
const MARKER = [0x40, 0xff, 0x60];
// Probability 0 to 1 in equal steps: the colours between which the heat map's lie.
const HEAT = [[20, 20, 120], [0, 140, 200], [60, 200, 90], [250, 210, 40], [220, 40, 30]];
const HEAT_OF = heatColours();
let shown = null;
let latest = 0;

async function segment(file, layer) {
  const body = new FormData();
  body.append("file", file);
  const answer = await ask(`/api/segment?layer=${layer}`, { method: "POST", body, headers: { Accept: "image/png" } });
  return { bitmap: await createImageBitmap(await answer.blob()), view: answer.headers.get("Field-Of-View") };
}

function pixelsOf(bitmap) {
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  return context.getImageData(0, 0, bitmap.width, bitmap.height).data;
}

// The picture as the server has read it; browsers do not show every format, nor turn all as it does.
async function pictureOf(file, width, height) {
  const own = await createImageBitmap(file).catch(() => null);
  if (own?.width === width && own.height === height) return own;
  return (await segment(file, "picture")).bitmap;
}

async function look(file) {
  const name = file.name || "picture";
  const mine = (latest += 1);
  shown = null;
  document.querySelector(".looked").hidden = true;
  say(`${name} …`);
  try {
    const { bitmap, view } = await segment(file, "probability");
    const { width, height } = bitmap;
    const picture = pixelsOf(await pictureOf(file, width, height));
    if (mine !== latest) return; // another one was chosen meanwhile
    const colours = pixelsOf(bitmap);
    const probability = new Uint8Array(width * height);
    for (let place = 0; place < probability.length; place++) probability[place] = colours[4 * place];
    const [, , across, down] = view.split(",").map(Number);
    shown = { name, width, height, probability, picture, smallest: bring.dataset.smallest * across * down };
  } catch (error) {
    if (mine === latest) say(`${name}: ${error.message}`);
    return;
  }
  form.threshold.value = Math.round(bring.dataset.threshold * 100);
  document.querySelector(".looked").hidden = false;
  draw("input", shown.picture);
  draw("heat", heatMap());
  draw("probability", inGrey(shown.probability));
  drawMask();
}

// Pixels are red, green, blue and opacity in turn. Plain loops: a picture may have forty million.
function inGrey(values) {
  const pixels = new Uint8ClampedArray(4 * values.length);
  for (let place = 0; place < values.length; place++) {
    pixels.fill(values[place], 4 * place, 4 * place + 3);
    pixels[4 * place + 3] = 255;
  }
  return pixels;
}

function heatMap() {
  const pixels = new Uint8ClampedArray(shown.picture);
  for (let place = 0; place < shown.probability.length; place++) {
    const value = shown.probability[place];
    const share = 0.15 + (0.5 * value) / 255;
    for (let channel = 0; channel < 3; channel++) {
      const under = pixels[4 * place + channel];
      pixels[4 * place + channel] = under + share * (HEAT_OF[3 * value + channel] - under);
    }
  }
  return pixels;
}

// For each of 256 probabilities its colour.
function heatColours() {
  const colours = new Uint8ClampedArray(3 * 256);
  for (let value = 0; value < 256; value++) {
    const place = (value / 255) * (HEAT.length - 1);
    const low = Math.min(Math.floor(place), HEAT.length - 2);
    for (let channel = 0; channel < 3; channel++) {
      const [under, over] = [HEAT[low][channel], HEAT[low + 1][channel]];
      colours[3 * value + channel] = under + (place - low) * (over - under);
    }
  }
  return colours;
}

function draw(name, pixels) {
  const canvas = document.getElementById(name);
  [canvas.width, canvas.height] = [shown.width, shown.height];
  canvas.getContext("2d").putImageData(new ImageData(pixels, shown.width, shown.height), 0, 0);
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
    const mark = counts || !findingsOnly ? 2 : 3;
    for (let index = 0; index < filled; index++) mask[stack[index]] = mark;
  }
  return { mask: mask.map((value) => (value === 2 ? 255 : 0)), found };
}

function drawMask() {
  const threshold = form.threshold.value / 100;
  form.shown.value = threshold.toFixed(2);
  const { mask, found } = maskAt(threshold, form.findings.checked);
  const { width, height } = shown;
  draw("mask", inGrey(mask));
  draw("contour", shown.picture);
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
  say(`${shown.name}: ${found || "no"} finding${found === 1 ? "" : "s"}`);
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
    try {
      const answer = await ask(button.dataset.sample);
      look(new File([await answer.blob()], button.dataset.sample.split("/").pop()));
    } catch (error) {
      say(error.message);
    }
  });
}
for (const link of document.querySelectorAll("[data-download]")) link.addEventListener("click", download);
form.threshold.addEventListener("input", drawMask);
form.findings.addEventListener("change", drawMask);
