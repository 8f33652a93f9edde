"use strict";
// Requests the status of the sources once per second, and shows it next to their video. All sources are tiles that fill
// the window, until the user chooses one: with a click, a key, or the part of the address behind #.

const rooms = document.querySelector(".rooms");
const controls = document.querySelector(".controls").elements;
const videos = new Map(); // of the sections, in their order
const title = document.title;
// Height of the text in a tile, and of what is around it, in pixels.
const TILE_TEXT = 60;
let marked = true; // whether this viewer wants markers
let audio = null;
let refreshing = false;

function put(section, name, text) {
  section.querySelector(`[data-value=${name}]`).textContent = text;
}

function findingItem(number, finding) {
  const item = document.createElement("li");
  const link = document.createElement("a");
  link.href = `/live/${number}/findings/${finding.number}.jpg`;
  const picture = document.createElement("img");
  picture.loading = "lazy"; // tiles do not show it
  picture.src = link.href;
  picture.alt = `Polyp ${finding.number}`;
  const when = new Date(finding.when * 1000).toLocaleTimeString();
  const text = document.createElement("span");
  text.textContent = `${when}, probability ${finding.probability.toFixed(2)}`;
  link.append(picture, text);
  item.append(link);
  return item;
}

function showFindings(section, findings) {
  const list = section.querySelector("[data-value=findings]");
  const newest = findings.length ? String(findings[0].number) : "";
  if (list.dataset.newest === newest || !newest) return;
  beep();
  list.dataset.newest = newest;
  list.replaceChildren(...findings.map((finding) => findingItem(section.dataset.number, finding)));
}

function beep() {
  if (!controls.sound.checked || audio === null) return;
  const tone = audio.createOscillator();
  const volume = audio.createGain();
  tone.frequency.value = 880;
  volume.gain.setValueAtTime(0.2, audio.currentTime);
  volume.gain.exponentialRampToValueAtTime(0.001, audio.currentTime + 0.15);
  tone.connect(volume).connect(audio.destination);
  tone.start();
  tone.stop(audio.currentTime + 0.15);
}

function show(section, status) {
  const ready = status.signal && !status.problem;
  const broken = !ready || Boolean(status.warning) || status.sinks.some((sink) => sink.problem);
  section.classList.toggle("problem", broken);
  section.querySelector(".light").className = `light ${broken ? "bad" : "good"}`;
  const sinks = status.sinks.map((sink) => (sink.problem ? `${sink.name}: ${sink.problem}` : sink.doing));
  const state = ready ? "looking for polyps" : status.problem || (status.ended ? "source ended" : "no signal");
  put(section, "state", [state, ...sinks.filter(Boolean)].join("; "));
  const warning = section.querySelector("[data-value=warning]");
  warning.hidden = !status.warning || !status.signal;
  warning.textContent = status.warning;
  const latency = status.latency_ms;
  put(section, "latency", latency ? `${latency.median.toFixed(0)} ms, 99 % under ${latency.p99.toFixed(0)} ms` : "–");
  put(section, "pace", `${status.shown_per_second.toFixed(0)} per second`);
  put(section, "rate", `${status.shown_per_second.toFixed(1)} frames per second`);
  const { recent } = status;
  put(section, "recent", `${recent.skipped} of ${recent.frames_in} in the last ${recent.seconds.toFixed(0)} s`);
  const drops = Object.entries(status.dropped).filter(([, count]) => count);
  const skipped = drops.reduce((sum, [, count]) => sum + count, 0);
  const reasons = drops.map(([reason, count]) => `${count} ${reason.replace("_", " ")}`).join(", ");
  const unrecorded = status.unrecorded ? `; ${status.unrecorded} not recorded` : "";
  put(section, "skipped", `${skipped} of ${status.frames_in}` + (reasons && ` (${reasons})`) + unrecorded);
  const { own, earlier, none } = status.findings_of;
  const origins = section.querySelector("[data-value=origins]");
  // In-step, each frame has its own findings, which need not be said.
  origins.hidden = origins.previousElementSibling.hidden = !(earlier || none);
  origins.textContent = `of the frame itself in ${own}, of an earlier frame in ${earlier}, none in ${none}`;
  put(section, "losses", ["never", "once"][status.losses] ?? `${status.losses} times`);
  put(section, "viewers", String(status.viewers));
  showFindings(section, status.findings);
}

function showVideos(wanted) {
  for (const video of videos.values()) video.show(wanted);
}

// Chooses the number of columns that makes the pictures largest, so that all tiles fit into the window.
function arrange() {
  const count = videos.size;
  const { width } = rooms.getBoundingClientRect();
  const height = innerHeight - rooms.offsetTop - parseFloat(getComputedStyle(rooms.parentElement).paddingBottom);
  const widthIn = (columns) =>
    Math.min(width / columns, ((height / Math.ceil(count / columns) - TILE_TEXT) * 16) / 9);
  let columns = 1;
  for (let more = 2; more <= count; more++) if (widthIn(more) > widthIn(columns)) columns = more;
  rooms.style.setProperty("--columns", columns);
  rooms.style.setProperty("--others", Math.max(1, count - 1));
  rooms.style.setProperty("--height", `${height}px`);
}

// Shows the source that the address names in full, or all of them as tiles.
function choose() {
  const sections = [...videos.keys()];
  const chosen = sections.length === 1 ? sections[0] : sections.find((section) => linkOf(section).hash === location.hash);
  for (const section of sections) section.classList.toggle("chosen", section === chosen);
  rooms.classList.toggle("one", chosen !== undefined);
  rooms.classList.toggle("several", sections.length > 1);
  document.querySelector("[data-act=all]").hidden = chosen === undefined || sections.length === 1;
  arrange();
}

function linkOf(section) {
  return section.querySelector("h1 a");
}

function go(section) {
  location.hash = section ? linkOf(section).hash : "";
}

function connect(section) {
  section.addEventListener("click", ({ target }) => {
    if (target.closest(".picture")) go(section.classList.contains("chosen") ? undefined : section);
  });
  section.querySelector("[data-act=clip]")?.addEventListener("click", () => {
    act(section, "clip", (clip) => `saved as ${clip.file}`);
  });
  connectMarks(section.querySelector(".mark"), (kind, text) => {
    act(section, "marks", (mark) => `marked: ${mark.title}`, { kind, text });
  });
  const video = new LiveVideo(section);
  video.marked = marked;
  videos.set(section, video);
}

// The server may end sources and start other ones. The sections of those that go on stay as they are.
async function renew(statuses) {
  const page = new DOMParser().parseFromString(await (await fetch(location)).text(), "text/html");
  const numbers = statuses.map((status) => String(status.number));
  for (const [section, video] of videos) {
    if (numbers.includes(section.dataset.number)) continue;
    video.show(false);
    videos.delete(section);
    section.remove();
  }
  const known = [...videos.keys()].map((section) => section.dataset.number);
  for (const section of page.querySelectorAll(".source")) {
    if (known.includes(section.dataset.number)) continue;
    rooms.append(section);
    connect(section);
  }
  choose();
}

// Says how many sources have a problem, also in the title of a tab that is not looked at.
function showProblems() {
  const count = rooms.querySelectorAll(".problem").length;
  const said = count ? `${count} of ${videos.size} with a problem` : "";
  document.querySelector("[data-value=problems]").textContent = videos.size > 1 ? said : "";
  document.title = count ? `(${count}) ${title}` : title;
}

// Markers that are in the picture cannot be switched off for one viewer.
function showSwitch([{ overlay, overlay_style: style }]) {
  const jpegs = ![...videos.values()].some((video) => video.drawsMarkers);
  const why = !overlay ? "(off for all viewers)" : jpegs ? "(part of JPEGs)" : style === "heatmap" ? "(heat map)" : "";
  controls.marked.disabled = why !== "";
  controls.marked.checked = why ? overlay : marked;
  document.querySelector("[data-value=fixed]").textContent = why;
}

async function refresh() {
  if (refreshing || document.hidden) return;
  refreshing = true;
  try {
    const answer = await fetch("/status.json", { signal: AbortSignal.timeout(3000) });
    const statuses = await answer.json();
    const numbers = [...videos.keys()].map((section) => section.dataset.number).sort();
    if (String(statuses.map((status) => String(status.number)).sort()) !== String(numbers)) await renew(statuses);
    showVideos(true);
    for (const section of videos.keys()) {
      show(section, statuses.find((status) => String(status.number) === section.dataset.number));
    }
    showSwitch(statuses);
  } catch {
    showVideos(false);
    for (const section of videos.keys()) {
      section.classList.add("problem");
      section.querySelector(".light").className = "light bad";
      put(section, "state", "polypstream does not answer");
    }
  }
  showProblems();
  refreshing = false;
}

// Asks the server to do something with a source, and says what came of it.
async function act(section, what, done, body) {
  const url = `/api/live/${encodeURIComponent(section.dataset.name)}/${what}`;
  const headers = { "Content-Type": "application/json" };
  try {
    const answer = await ask(url, { method: "POST", headers, body: body && JSON.stringify(body) });
    put(section, "said", done(await answer.json()));
  } catch (error) {
    put(section, "said", error.message);
  }
}

// Keys: 1 to 9 choose a source, the arrows the one beside it, Escape all of them; o switches the markers.
function press(event) {
  if (event.ctrlKey || event.altKey || event.metaKey || event.target.matches("input[name=text]")) return;
  const sections = [...videos.keys()];
  const place = sections.findIndex((section) => section.classList.contains("chosen"));
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (event.key >= "1" && event.key <= "9") {
    if (sections[event.key - 1]) go(sections[event.key - 1]);
  } else if (event.key === "Escape") go();
  else if (step && place >= 0) go(sections.at((place + step) % sections.length));
  else if (event.key === "o") controls.marked.click();
}

for (const section of document.querySelectorAll(".source")) connect(section);
controls.marked.addEventListener("change", () => {
  marked = controls.marked.checked;
  for (const video of videos.values()) video.marked = marked;
});
// Browsers allow sound only after the user has interacted with the page.
controls.sound.addEventListener("change", () => {
  audio ??= new AudioContext();
  audio.resume();
});
addEventListener("hashchange", choose);
addEventListener("resize", arrange);
addEventListener("keydown", press);
// A hidden page needs no video, and each stream of JPEGs uses one of the few connections that a browser opens.
document.addEventListener("visibilitychange", () => (document.hidden ? showVideos(false) : refresh()));
choose();
setInterval(refresh, 1000);
if (!document.hidden) showVideos(true);
refresh();
