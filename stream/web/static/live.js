"use strict";
// Requests the status of the sources once per second, and shows it next to their video.

const sections = [...document.querySelectorAll(".source")];
const videos = sections.map((section) => new LiveVideo(section));
const controls = document.querySelector(".controls").elements;
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
  section.querySelector(".light").className = `light ${ready ? "good" : "bad"}`;
  const sinks = status.sinks.map((sink) => (sink.problem ? `${sink.name}: ${sink.problem}` : sink.doing));
  const state = ready ? "looking for polyps" : status.problem || (status.ended ? "source ended" : "no signal");
  put(section, "state", [state, ...sinks.filter(Boolean)].join("; "));
  const warning = section.querySelector("[data-value=warning]");
  warning.hidden = !status.warning || !status.signal;
  warning.textContent = status.warning;
  const latency = status.latency_ms;
  put(section, "latency", latency ? `${latency.median.toFixed(0)} ms, 99 % under ${latency.p99.toFixed(0)} ms` : "–");
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
  for (const video of videos) video.show(wanted);
}

async function refresh() {
  if (refreshing || document.hidden) return;
  refreshing = true;
  try {
    const answer = await fetch("/status.json", { signal: AbortSignal.timeout(3000) });
    const statuses = await answer.json();
    controls.overlay.checked = statuses[0].overlay;
    showVideos(true);
    sections.forEach((section, number) => show(section, statuses[number]));
  } catch {
    showVideos(false);
    for (const section of sections) {
      section.querySelector(".light").className = "light bad";
      put(section, "state", "polypstream does not answer");
    }
  }
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

for (const section of sections) {
  section.querySelector("[data-act=clip]")?.addEventListener("click", () => {
    act(section, "clip", (clip) => `saved as ${clip.file}`);
  });
  connectMarks(section.querySelector(".mark"), (kind, text) => {
    act(section, "marks", (mark) => `marked: ${mark.title}`, { kind, text });
  });
}

controls.overlay.addEventListener("change", () => {
  const state = controls.overlay.checked ? "on" : "off";
  fetch(`/overlay/${state}`, { method: "PUT" });
});
// Browsers allow sound only after the user has interacted with the page.
controls.sound.addEventListener("change", () => {
  audio ??= new AudioContext();
  audio.resume();
});
// A hidden page needs no video, and each stream of JPEGs uses one of the few connections that a browser opens.
document.addEventListener("visibilitychange", () => (document.hidden ? showVideos(false) : refresh()));
setInterval(refresh, 1000);
if (!document.hidden) showVideos(true);
refresh();
