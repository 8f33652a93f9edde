"use strict";
// The page Review. The canvas shows a frame and the outline of the chosen polyp in it. Every change is stored at once.
// Points are in pixels of the stored frame. A matrix leads from there to the displayed frame, another one to the canvas.

const MOST_FRAMES = 60;
const MOST_ZOOM = 20;
const section = document.querySelector(".review");
const canvas = section.querySelector(".canvas");
const api = `/api/recordings/${section.dataset.id}/review`;
// The displayed size.
let shown = JSON.parse(section.dataset.matrix);
const toShown = new DOMMatrix(shown.matrix);
const mask = document.createElement("canvas");
const brush = mask.getContext("2d", { willReadFrequently: true });
const reader = section.querySelector("[name=reader]");
const size = section.querySelector("[name=size]");
const slider = section.querySelector("[name=frame]");
const view = { zoom: 1, x: 0, y: 0 };
const pictures = new Map();
const pointers = new Map();
let review = { tracks: [], images: [], frames: 1, width: 1, height: 1 };
let outlines = new Map();
let uncertain = [];
let track = null;
let frame = 0;
let tool = "move";
// What undoes each change of this frame.
let steps = [];
let stroke = null;
// Number of strokes that are painted and not stored yet.
let unsaved = 0;
let saving = Promise.resolve();
// Drawn outlines that are to be carried to the frames around them, by polyp and frame.
const toCarry = new Map();
let carrying = null;

// ---- what is shown

function toCanvas() {
  const fit = Math.min(canvas.width / shown.width, canvas.height / shown.height) * view.zoom;
  const left = canvas.width / 2 - (shown.width / 2 - view.x) * fit;
  const top = canvas.height / 2 - (shown.height / 2 - view.y) * fit;
  return new DOMMatrix([fit, 0, 0, fit, left, top]).multiply(toShown);
}

function draw() {
  const ratio = devicePixelRatio || 1;
  canvas.width = Math.round(canvas.clientWidth * ratio);
  canvas.height = Math.round(canvas.clientHeight * ratio);
  const context = canvas.getContext("2d");
  context.setTransform(toCanvas());
  const picture = pictures.get(frame);
  if (picture) context.drawImage(picture, 0, 0, mask.width, mask.height);
  context.globalAlpha = stroke ? 0.4 : 0.15;
  context.drawImage(mask, 0, 0);
  context.globalAlpha = 1;
  const found = outlines.get(frame);
  if (!found || stroke) return;
  const path = pathOf(found.polygons);
  context.resetTransform();
  context.lineWidth = 2 * ratio;
  context.strokeStyle = found.source === "network" ? "#40ff60" : "#ffd23f";
  const onCanvas = new Path2D();
  onCanvas.addPath(path, toCanvas());
  context.stroke(onCanvas);
}

// Outlines pass through the centres of pixels.
function pathOf(polygons) {
  const path = new Path2D();
  for (const flat of polygons) {
    for (let at = 0; at < flat.length; at += 2) path.lineTo(flat[at] + 0.5, flat[at + 1] + 0.5);
    path.closePath();
  }
  return path;
}

// What is being painted stays.
function fillMask() {
  if (stroke || unsaved) return;
  brush.globalCompositeOperation = "source-over";
  brush.clearRect(0, 0, mask.width, mask.height);
  const path = pathOf(outlines.get(frame)?.polygons ?? []);
  brush.fillStyle = brush.strokeStyle = "#40ff60";
  brush.lineWidth = 1;
  brush.fill(path);
  brush.stroke(path);
}

// Each image of a set has its own size.
function resize() {
  const { width, height } = review.images[frame] ?? review;
  if (mask.width !== width || mask.height !== height) [mask.width, mask.height] = [width, height];
  if (review.images.length) shown = { width, height };
}

const nameOf = (index) => (review.images.length ? `image ${index + 1}` : `frame ${index}`);

function describe() {
  const found = outlines.get(frame);
  const by = { network: "outline by the model", motion: `carried, ${found?.reader}`, reader: `drawn by ${found?.reader}` };
  const value = (name, text) => (section.querySelector(`[data-value=${name}]`).textContent = text);
  const image = review.images[frame];
  value("frame", image ? `Image ${frame + 1} of ${review.frames}: ${image.image}` : `Frame ${frame} of ${review.frames}`);
  value("source", !found ? "no outline" : found.polygons.length ? by[found.source] : `not in view, ${found.reader}`);
  slider.value = frame;
}

async function pictureOf(index) {
  if (!pictures.has(index)) {
    const blob = await (await ask(`/api/recordings/${section.dataset.id}/frames/${index}.jpg`)).blob();
    pictures.set(index, await createImageBitmap(blob));
    if (pictures.size > MOST_FRAMES) pictures.delete(pictures.keys().next().value);
  }
  return pictures.get(index);
}

async function goTo(index) {
  const before = frame;
  frame = Math.min(Math.max(index, 0), review.frames - 1);
  if (frame !== before) {
    steps = [];
    stroke = null;
  }
  if (review.images.length && frame !== before) await chooseIn(frame);
  resize();
  fillMask();
  describe();
  await pictureOf(frame);
  draw();
  const next = frame + Math.sign(frame - before);
  if (Math.abs(frame - before) === 1 && next >= 0 && next < review.frames) await pictureOf(next);
}

// ---- polyps

const placeOf = (number) => review.tracks.findIndex((each) => each.track === number);

async function load() {
  review = await (await ask(api)).json();
  slider.max = review.frames - 1;
  resize();
  listTracks();
}

function listTracks() {
  const items = review.tracks.map((each) => {
    const item = document.createElement("li");
    const button = document.createElement("button");
    button.type = "button";
    button.className = "button";
    button.dataset.track = each.track;
    if (each.track === track) button.setAttribute("aria-current", "true");
    const kind = each.drawn ? "drawn" : `probability ${each.peak_probability.toFixed(2)}`;
    const [first, last] = [each.first_frame, each.last_frame];
    const place = first === last ? nameOf(first) : `frames ${first} to ${last}`;
    button.textContent = `Polyp ${each.track}: ${kind}, ${place}. `;
    const state = document.createElement("b");
    const decision = each.decision?.decision ?? "undecided";
    state.className = decision;
    state.textContent = decision === "undecided" ? decision : `${decision} by ${each.decision.reader}`;
    button.append(state, each.corrected ? `, ${each.corrected} ${each.corrected === 1 ? "outline" : "outlines"} corrected` : "");
    item.append(button);
    return item;
  });
  section.querySelector(".tracks").replaceChildren(...items);
}

async function loadOutlines() {
  const found = track === null ? [] : await (await ask(`${api}/tracks/${track}`)).json();
  outlines = new Map(found.map((each) => [each.frame, each]));
}

async function choose(number, at) {
  track = number;
  steps = [];
  await loadOutlines();
  listTracks();
  await goTo(at ?? review.tracks[placeOf(number)]?.first_frame ?? frame);
}

// A polyp of a set of images is in one image. In another image, another one is chosen, or none.
async function chooseIn(index) {
  const here = review.tracks.filter((each) => each.first_frame <= index && index <= each.last_frame);
  if (here.some((each) => each.track === track)) return;
  track = here[0]?.track ?? null;
  await loadOutlines();
  listTracks();
}

async function chooseBeside(step) {
  const count = review.tracks.length;
  if (!count) return;
  const place = placeOf(track);
  await choose(review.tracks[(place < 0 ? 0 : place + step + count) % count].track);
}

// ---- changes

function readerName() {
  const name = reader.value.trim();
  if (!name) {
    reader.focus();
    throw new Error("Enter your name first. It is stored with every change.");
  }
  return name;
}

// Sends a change. If another reader has stored something else, it asks before it replaces that.
async function change(method, path, body) {
  const options = { method, headers: { "Content-Type": "application/json" }, body: body && JSON.stringify(body) };
  try {
    return await ask(api + path, options);
  } catch (error) {
    if (error.status !== 409 || !error.message.includes("replace=true")) throw error;
    if (!confirm(`${error.message.split(";")[0]}. Replace it?`)) return null;
    return ask(`${api}${path}${path.includes("?") ? "&" : "?"}replace=true`, options);
  }
}

async function decide(decision) {
  if (track === null) return;
  await change("PUT", `/tracks/${track}`, { decision, reader: readerName() });
  await load();
}

// Stores the outline of the chosen polyp in a frame. null: withdraws it, so that the network's one counts.
function store(number, at, polygons) {
  const path = `/tracks/${number}/frames/${at}`;
  const name = readerName();
  if (polygons) return change("PUT", path, { polygons, reader: name });
  return change("DELETE", `${path}?reader=${encodeURIComponent(name)}`);
}

async function storeDrawn(polygons) {
  const name = readerName();
  const at = frame;
  if (track === null) {
    if (!polygons.length) return;
    const added = await (await change("POST", "/tracks", { frame: at, polygons, reader: name })).json();
    track = added.track;
    steps.push(() => store(added.track, at, null));
    carryLater(track, at);
  } else {
    const before = outlines.get(at);
    const number = track;
    if (await store(number, at, polygons)) steps.push(() => restore(number, at, before));
    if (polygons.length) carryLater(number, at);
  }
  await refresh();
}

// Takes back the outline of a frame, and with it what was carried from it.
async function restore(number, at, before) {
  await store(number, at, before?.source === "reader" ? before.polygons : null);
  if (before?.source === "reader" && before.polygons.length) carryLater(number, at);
  if (before?.source === "motion") carryLater(number, before.carried_from);
}

async function refresh() {
  await load();
  await loadOutlines();
  await goTo(frame);
}

async function undo() {
  if (!steps.length) return;
  await steps.pop()();
  await refresh();
}

// ---- drawn outlines are carried along the motion of the picture, as far as they fit; the reader goes on meanwhile

const sayCarried = (text) => (section.querySelector("[data-value=carried]").textContent = text);

function carryLater(number, at) {
  if (review.images.length) return;
  toCarry.set(`${number} ${at}`, { number, at });
  carrying ??= carryAll();
}

async function carryAll() {
  for (const [key, { number, at }] of toCarry) {
    toCarry.delete(key);
    sayCarried(`Carrying the outline of frame ${at} to the frames around it …`);
    try {
      const { frames } = await askToCarry(number, at);
      const place = frames.length ? `to frames ${frames[0]} to ${frames[frames.length - 1]}` : "to no other frame: it fits in none";
      sayCarried(`The outline of frame ${at} was carried ${place}.`);
      perform(() => showCarried(number));
    } catch (error) {
      // The outline was changed or taken back meanwhile.
      sayCarried(error.status === 409 ? "" : error.message);
    }
  }
  carrying = null;
}

async function askToCarry(number, at) {
  const options = {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ reader: readerName() }),
    signal: AbortSignal.timeout(150000),
  };
  return (await ask(`${api}/tracks/${number}/frames/${at}/carry`, options)).json();
}

async function showCarried(number) {
  await load();
  if (number !== track) return;
  await loadOutlines();
  fillMask();
  describe();
  draw();
}

// Carries the outline that was drawn in this frame once more.
function carry() {
  if (outlines.get(frame)?.source !== "reader") throw new Error("Draw the polyp in this frame first.");
  carryLater(track, frame);
}

// Takes back what was carried from this frame.
async function leave() {
  if (track === null) return;
  const [number, at] = [track, frame];
  toCarry.delete(`${number} ${at}`);
  await change("DELETE", `/tracks/${number}/frames/${at}/carry?reader=${encodeURIComponent(readerName())}`);
  steps.push(() => carryLater(number, at));
  await refresh();
}

const acts = {
  previousFrame: () => goTo(frame - 1),
  nextFrame: () => goTo(frame + 1),
  uncertainFrame: goToUncertain,
  previousTrack: () => chooseBeside(-1),
  nextTrack: () => chooseBeside(1),
  accept: () => decide("accepted"),
  reject: () => decide("rejected"),
  undo,
  carry,
  leave,
  clear: () => storeDrawn([]),
  drawPolyp: startPolyp,
  zoomIn: () => zoomAt(1.4),
  zoomOut: () => zoomAt(1 / 1.4),
};
const keys = {
  ArrowLeft: "previousFrame", ArrowRight: "nextFrame", u: "uncertainFrame", p: "previousTrack", n: "nextTrack",
  a: "accept", r: "reject", z: "undo", x: "clear", c: "carry", o: "leave", d: "drawPolyp", "+": "zoomIn", "-": "zoomOut",
};
const toolKeys = { m: "move", b: "brush", e: "eraser" };

async function startPolyp() {
  readerName();
  await choose(null, frame);
  take("brush");
  say("Draw the new polyp with the brush.");
}

// Goes to the most uncertain frame that has not been shown yet, with its polyp.
async function goToUncertain() {
  if (!uncertain.length) uncertain = await (await ask(`${api}/uncertain`)).json();
  const next = uncertain.shift();
  if (next === undefined) return;
  if (next.track !== null && next.track !== track) await choose(next.track, next.frame);
  else await goTo(next.frame);
}

// One change after another. An error is shown, and the page then shows what is stored.
function perform(act) {
  saving = saving.then(async () => {
    say("");
    try {
      await act();
    } catch (error) {
      say(error.message);
      fillMask();
      draw();
    }
  });
  return saving;
}

// ---- mouse, fingers and keys

function take(name) {
  tool = name;
  for (const button of section.querySelectorAll("[data-tool]")) {
    button.setAttribute("aria-pressed", String(button.dataset.tool === name));
  }
}

function placeIn(event) {
  const box = canvas.getBoundingClientRect();
  const ratio = canvas.width / box.width;
  return new DOMPoint((event.clientX - box.left) * ratio, (event.clientY - box.top) * ratio);
}

function zoomAt(factor, place = new DOMPoint(canvas.width / 2, canvas.height / 2)) {
  const inShown = () => toShown.transformPoint(toCanvas().inverse().transformPoint(place));
  const before = inShown();
  view.zoom = Math.min(Math.max(view.zoom * factor, 1), MOST_ZOOM);
  const after = inShown();
  moveView(after.x - before.x, after.y - before.y);
}

function moveView(x, y) {
  view.x = view.zoom === 1 ? 0 : view.x + x;
  view.y = view.zoom === 1 ? 0 : view.y + y;
  draw();
}

function paint(event) {
  const point = toCanvas().inverse().transformPoint(placeIn(event));
  brush.globalCompositeOperation = tool === "eraser" ? "destination-out" : "source-over";
  brush.strokeStyle = "#40ff60";
  brush.lineCap = brush.lineJoin = "round";
  brush.lineWidth = Number(size.value);
  brush.beginPath();
  brush.moveTo(stroke.x, stroke.y);
  brush.lineTo(point.x, point.y);
  brush.stroke();
  [stroke.x, stroke.y] = [point.x, point.y];
  draw();
}

function maskPolygons() {
  const { data, width, height } = brush.getImageData(0, 0, mask.width, mask.height);
  const inside = (x, y) => x >= 0 && y >= 0 && x < width && y < height && data[4 * (y * width + x) + 3] > 127;
  return contoursOf(inside, width, height);
}

function pinch(event) {
  const [first, second] = [...pointers.values()];
  const gapBefore = Math.hypot(first.x - second.x, first.y - second.y);
  const middleBefore = [(first.x + second.x) / 2, (first.y + second.y) / 2];
  pointers.set(event.pointerId, placeIn(event));
  const [one, two] = [...pointers.values()];
  const middle = new DOMPoint((one.x + two.x) / 2, (one.y + two.y) / 2);
  const scale = Math.min(canvas.width / shown.width, canvas.height / shown.height) * view.zoom;
  moveView((middle.x - middleBefore[0]) / scale, (middle.y - middleBefore[1]) / scale);
  zoomAt(Math.hypot(one.x - two.x, one.y - two.y) / Math.max(gapBefore, 1), middle);
}

canvas.addEventListener("pointerdown", (event) => {
  canvas.setPointerCapture(event.pointerId);
  canvas.focus({ preventScroll: true });
  pointers.set(event.pointerId, placeIn(event));
  if (pointers.size > 1) {
    // A second finger zooms. What the first one has painted is forgotten.
    if (stroke) brush.putImageData(stroke.before, 0, 0);
    stroke = null;
    draw();
  } else if (tool !== "move" && event.button === 0) {
    const point = toCanvas().inverse().transformPoint(placeIn(event));
    stroke = { x: point.x, y: point.y, before: brush.getImageData(0, 0, mask.width, mask.height) };
    paint(event);
  }
});
canvas.addEventListener("pointermove", (event) => {
  const before = pointers.get(event.pointerId);
  if (!before) return;
  if (pointers.size > 1) return pinch(event);
  if (stroke) return paint(event);
  const now = placeIn(event);
  const scale = Math.min(canvas.width / shown.width, canvas.height / shown.height) * view.zoom;
  pointers.set(event.pointerId, now);
  moveView((now.x - before.x) / scale, (now.y - before.y) / scale);
});
for (const kind of ["pointerup", "pointercancel"]) {
  canvas.addEventListener(kind, (event) => {
    pointers.delete(event.pointerId);
    if (!stroke) return;
    stroke = null;
    const polygons = maskPolygons();
    unsaved += 1;
    perform(() => {
      unsaved -= 1;
      return storeDrawn(polygons);
    });
  });
}
canvas.addEventListener("wheel", (event) => {
  event.preventDefault();
  zoomAt(event.deltaY < 0 ? 1.2 : 1 / 1.2, placeIn(event));
}, { passive: false });

addEventListener("keydown", (event) => {
  if (event.target.matches("input:not([type=range]), select") || event.altKey || event.metaKey) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (event.ctrlKey && key !== "z") return;
  if (toolKeys[key]) take(toolKeys[key]);
  else if (keys[key]) perform(acts[keys[key]]);
  else if (key === "[" || key === "]") size.value = Number(size.value) + (key === "]" ? 6 : -6);
  else if (key === "0") zoomAt(1 / MOST_ZOOM);
  else return;
  event.preventDefault();
});
section.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button?.dataset.tool) take(button.dataset.tool);
  else if (button?.dataset.act) perform(acts[button.dataset.act]);
  else if (button?.dataset.track) perform(() => choose(Number(button.dataset.track)));
});
slider.addEventListener("input", () => perform(() => goTo(Number(slider.value))));
reader.addEventListener("change", () => localStorage.setItem("reader", reader.value));
addEventListener("resize", draw);

reader.value = localStorage.getItem("reader") ?? "";
perform(async () => {
  await load();
  const wanted = location.hash.match(/^#(\d+)$/);
  if (wanted && review.images.length) {
    frame = -1;
    await goTo(Number(wanted[1]));
  } else if (review.tracks.length) await choose(review.tracks[0].track);
  else await goTo(0);
});
