"use strict";
// The image page: uploads an image, and draws the probability of each pixel and the findings. The server applies the
// rules of findings for all thresholds at once; this script only compares numbers, so the slider needs no request.

const upload = document.querySelector(".bring");
const form = document.querySelector(".sliders").elements;
const MARKER = [0x40, 0xff, 0x60];
// Colours of the heat map at equal steps of the probability from 0 to 1; other colours are interpolated.
const HEAT = [[20, 20, 120], [0, 140, 200], [60, 200, 90], [250, 210, 40], [220, 40, 30]];
const HEAT_OF = heatColours();
let shown = null;
let latest = 0;

async function segment(file, layer) {
  const body = new FormData();
  body.append("file", file);
  const answer = await ask(`/api/segment?layer=${layer}`, { method: "POST", body, headers: { Accept: "image/png" } });
  return { bitmap: await createImageBitmap(await answer.blob()), counts: answer.headers.get("Finding-Counts") };
}

function pixelsOf(bitmap) {
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  return context.getImageData(0, 0, bitmap.width, bitmap.height).data;
}

// One of the four channels of pixels.
function channelOf(pixels, channel) {
  const values = new Uint8Array(pixels.length / 4);
  for (let place = 0; place < values.length; place++) values[place] = pixels[4 * place + channel];
  return values;
}

// The image as the server read it. The browser cannot decode every format, and does not rotate each file as the server.
async function imageOf(file, width, height) {
  const own = await createImageBitmap(file).catch(() => null);
  if (own?.width === width && own.height === height) return own;
  return (await segment(file, "picture")).bitmap;
}

async function show(file) {
  const name = file.name || "image";
  const mine = (latest += 1);
  shown = null;
  document.querySelector(".looked").hidden = true;
  say(`${name}: looking for polyps …`);
  try {
    const { bitmap, counts } = await segment(file, "thresholds");
    const { width, height } = bitmap;
    const image = pixelsOf(await imageOf(file, width, height));
    if (mine !== latest) return; // the user has chosen another image since
    const pixels = pixelsOf(bitmap);
    const [probability, highest] = [channelOf(pixels, 0), channelOf(pixels, 1)];
    shown = { name, width, height, image, probability, highest, counts: counts.split(",").map(Number) };
  } catch (error) {
    if (mine === latest) say(`${name}: ${error.message}`);
    return;
  }
  form.threshold.value = Math.round(upload.dataset.threshold * 100);
  document.querySelector(".looked").hidden = false;
  draw("input", shown.image);
  draw("heat", heatMap());
  draw("probability", inGrey(shown.probability));
  drawMask();
}

// Pixels are red, green, blue and opacity in turn. Plain loops, since an image may have 40 million pixels.
function inGrey(values) {
  const pixels = new Uint8ClampedArray(4 * values.length);
  for (let place = 0; place < values.length; place++) {
    pixels.fill(values[place], 4 * place, 4 * place + 3);
    pixels[4 * place + 3] = 255;
  }
  return pixels;
}

function heatMap() {
  const pixels = new Uint8ClampedArray(shown.image);
  for (let place = 0; place < shown.probability.length; place++) {
    const value = shown.probability[place];
    const opacity = 0.15 + (0.5 * value) / 255;
    for (let channel = 0; channel < 3; channel++) {
      const under = pixels[4 * place + channel];
      pixels[4 * place + channel] = under + opacity * (HEAT_OF[3 * value + channel] - under);
    }
  }
  return pixels;
}

// The colour of each probability, 0..255.
function heatColours() {
  const colours = new Uint8ClampedArray(3 * 256);
  for (let value = 0; value < 256; value++) {
    const step = (value / 255) * (HEAT.length - 1);
    const low = Math.min(Math.floor(step), HEAT.length - 2);
    for (let channel = 0; channel < 3; channel++) {
      const [from, to] = [HEAT[low][channel], HEAT[low + 1][channel]];
      colours[3 * value + channel] = from + (step - low) * (to - from);
    }
  }
  return colours;
}

function draw(name, pixels) {
  const canvas = document.getElementById(name);
  [canvas.width, canvas.height] = [shown.width, shown.height];
  canvas.getContext("2d").putImageData(new ImageData(pixels, shown.width, shown.height), 0, 0);
}

// Returns the mask at a threshold of 0 to 1, and the number of findings. For each pixel `highest` has the highest threshold
// at which it belongs to a finding by the rules of the server. So a comparison gives the findings of the server.
// Without `findingsOnly` the mask has all pixels whose probability reaches the threshold.
function maskAt(threshold, findingsOnly) {
  const level = Math.ceil(255 * threshold);
  const levels = findingsOnly ? shown.highest : shown.probability;
  return { mask: levels.map((each) => (each >= level ? 255 : 0)), found: shown.counts[level] };
}

function drawMask() {
  const threshold = form.threshold.value / 100;
  form.shown.value = threshold.toFixed(2);
  const { mask, found } = maskAt(threshold, form.findings.checked);
  const { width, height } = shown;
  draw("mask", inGrey(mask));
  draw("contour", shown.image);
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
  say(`${shown.name}: ${found || "no"} polyp${found === 1 ? "" : "s"}`);
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

receiveFiles(([file]) => (file ? show(file) : say("The folder has no images.")));
handedOver().then((file) => file && show(file), (error) => say(error.message));
for (const button of document.querySelectorAll("[data-sample]")) {
  button.addEventListener("click", async () => {
    try {
      const answer = await ask(button.dataset.sample);
      show(new File([await answer.blob()], button.dataset.sample.split("/").pop()));
    } catch (error) {
      say(error.message);
    }
  });
}
for (const link of document.querySelectorAll("[data-download]")) link.addEventListener("click", download);
form.threshold.addEventListener("input", drawMask);
form.findings.addEventListener("change", drawMask);
