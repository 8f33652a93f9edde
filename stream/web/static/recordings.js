"use strict";
// Uploads recordings in chunks, so that a broken connection costs one chunk only, and keeps the list up to date.

const CHUNK = 8 * 1024 * 1024;
const LONGEST_WAIT_S = 30;
const list = document.getElementById("recordings");
const waiting = [];
let busy = false;
let refreshing = false;

function rowOf(file) {
  const row = document.createElement("li");
  const name = document.createElement("span");
  name.textContent = file.name;
  const progress = document.createElement("progress");
  progress.max = Math.max(1, file.size);
  progress.value = 0;
  const stop = document.createElement("button");
  stop.type = "button";
  stop.className = "button";
  stop.textContent = "Stop";
  const note = document.createElement("span");
  note.className = "none";
  row.append(name, progress, stop, note);
  document.querySelector(".uploads").append(row);
  const upload = { file, row, progress, note, stopped: false };
  stop.addEventListener("click", () => {
    upload.stopped = true;
    upload.request?.abort();
    row.remove();
  });
  return upload;
}

// XMLHttpRequest, since fetch does not report the progress of an upload.
function sendChunk(upload, id, offset) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    upload.request = request;
    request.upload.addEventListener("progress", (event) => (upload.progress.value = offset + event.loaded));
    request.addEventListener("load", () => resolve(request));
    request.addEventListener("error", () => reject(new Error("the connection is broken")));
    request.addEventListener("abort", () => reject(new Error("stopped")));
    request.open("PATCH", `/api/uploads/${id}?offset=${offset}`);
    request.setRequestHeader("Content-Type", "application/octet-stream");
    request.send(upload.file.slice(offset, offset + CHUNK));
  });
}

// Only uploads that this browser started are continued: recorders reuse the same name for files of the same size.
const keyOf = (file) => `upload ${file.name} ${file.size} ${file.lastModified}`;

async function start(file) {
  const started = localStorage.getItem(keyOf(file));
  if (started) {
    try {
      const recording = await (await ask(`/api/recordings/${started}`)).json();
      if (recording.state === "uploading") return recording;
    } catch (error) {
      if (error.status !== 404) throw error;
    }
  }
  const answer = await ask("/api/uploads", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ name: file.name, size: file.size }),
  });
  const recording = await answer.json();
  localStorage.setItem(keyOf(file), recording.id);
  return recording;
}

// Sends the next chunk. Its offset is requested from the server, since it is unknown after a broken connection.
async function sendNext(upload) {
  const known = upload.recording ? await (await ask(`/api/recordings/${upload.recording.id}`)).json() : null;
  const recording = (upload.recording = known ?? (await start(upload.file)));
  upload.progress.value = recording.received;
  if (recording.state !== "uploading") return true;
  const request = await sendChunk(upload, recording.id, recording.received);
  if (request.status >= 400) {
    throw Object.assign(new Error(reasonOf(request.status, request.response)), { status: request.status });
  }
  return JSON.parse(request.response).state !== "uploading";
}

// Errors after which a retry may succeed: no connection, a previous chunk that still occupies the server, a full disk.
const isTransient = (error) => !error.status || error.status >= 500 || [408, 409].includes(error.status);

async function send(upload) {
  for (let failures = 0, done = false; !done && !upload.stopped; ) {
    try {
      done = await sendNext(upload);
      failures = 0;
      upload.note.textContent = "";
    } catch (error) {
      if (!upload.stopped && !isTransient(error)) throw error;
      failures += 1;
      upload.note.textContent = `${error.message}. Trying again.`;
      await new Promise((resolve) => setTimeout(resolve, 1000 * Math.min(LONGEST_WAIT_S, 2 ** (failures - 1))));
    }
  }
  if (!upload.stopped) localStorage.removeItem(keyOf(upload.file));
}

// One after another: concurrent uploads would only share the bandwidth.
async function sendWaiting() {
  if (busy) return;
  busy = true;
  while (waiting.length) {
    const upload = waiting.shift();
    if (upload.stopped) continue;
    try {
      await send(upload);
      upload.row.remove();
    } catch (error) {
      upload.note.textContent = error.message;
    }
    await refresh();
  }
  busy = false;
}

async function refresh() {
  if (refreshing || document.hidden) return;
  refreshing = true;
  const connection = document.querySelector("[data-value=connection]");
  try {
    const page = new DOMParser().parseFromString(await (await ask(location.href)).text(), "text/html");
    replaceList(page.getElementById("recordings"));
    connection.textContent = "";
  } catch (error) {
    connection.textContent = error.message;
  }
  refreshing = false;
}

// Replacing the list removes the keyboard focus, so it is restored.
function replaceList(fresh) {
  showLocalTimes(fresh);
  if (fresh.innerHTML === list.innerHTML || list.matches(":active")) return;
  const focused = document.activeElement.closest("tr")?.dataset.id;
  const act = document.activeElement.dataset?.act;
  list.innerHTML = fresh.innerHTML;
  if (focused) (list.querySelector(`[data-id="${focused}"] ${act ? `[data-act=${act}]` : "a"}`) ?? list).focus();
}

list.addEventListener("click", async (event) => {
  const { act, name } = event.target.dataset;
  if (!act) return;
  const { id } = event.target.closest("tr").dataset;
  if (act === "delete" && !confirm(`Delete ${name} and its results?`)) return;
  try {
    if (act === "delete") await ask(`/api/recordings/${id}`, { method: "DELETE" });
    else await ask(`/api/recordings/${id}/${act}`, { method: "POST" });
    say("");
  } catch (error) {
    say(error.message);
  }
  refresh();
});

// An image belongs on the image page. To leave this page would stop the uploads.
async function takePictures(pictures, others) {
  if (!busy && !others && pictures.length === 1) return handOver(pictures[0]);
  return say(`${namesOf(pictures)}: the image page shows one image at a time. Drop the image there.`);
}

const namesOf = (files) => files.map((file) => file.name).join(", ");

receiveFiles((files) => {
  say("");
  const pictures = files.filter(isPicture);
  const recordings = files.filter((file) => !isPicture(file));
  const empty = recordings.filter((file) => !file.size);
  if (empty.length) say(`${namesOf(empty)}: the file is empty`);
  if (pictures.length) takePictures(pictures, recordings.length).catch((error) => say(error.message));
  waiting.push(...recordings.filter((file) => file.size).map(rowOf));
  sendWaiting();
});
addEventListener("beforeunload", (event) => busy && event.preventDefault());
setInterval(refresh, 1000);
