"use strict";
// Uploads recordings and sets of images in chunks, so that a broken connection costs one chunk only, and keeps the list up to date.

const CHUNK = 8 * 1024 * 1024;
const LONGEST_WAIT_S = 30;
const list = document.getElementById("recordings");
const waiting = [];
let busy = false;
let refreshing = false;

// `images`: the images that follow one another in the file; undefined: it is a recording.
function rowOf(file, images) {
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
  const upload = { file, images, row, progress, note, stopped: false };
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

async function start({ file, images }) {
  const started = localStorage.getItem(keyOf(file));
  if (started) {
    try {
      const recording = await (await ask(`/api/recordings/${started}`)).json();
      if (recording.state === "uploading") return recording;
    } catch (error) {
      if (error.status !== 404) throw error;
    }
  }
  const answer = await ask(images ? "/api/image-sets" : "/api/uploads", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(images ? { name: file.name, images } : { name: file.name, size: file.size }),
  });
  const recording = await answer.json();
  localStorage.setItem(keyOf(file), recording.id);
  return recording;
}

// Sends the next chunk. Its offset is requested from the server, since it is unknown after a broken connection.
async function sendNext(upload) {
  const known = upload.recording ? await (await ask(`/api/recordings/${upload.recording.id}`)).json() : null;
  const recording = (upload.recording = known ?? (await start(upload)));
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

// A single image belongs on the image page. To leave this page would stop the uploads.
async function takePicture(picture, others) {
  if (!busy && !others) return handOver(picture);
  return say(`${picture.name}: the image page shows one image at a time. Drop the image there.`);
}

// Several images, or those of a folder, are one set. The parts of a File are read from the disk when they are sent.
function rowOfSet(pictures, folder) {
  const sorted = pictures.toSorted((one, other) => one.name.localeCompare(other.name, undefined, { numeric: true }));
  const lastModified = Math.max(...sorted.map((picture) => picture.lastModified));
  const file = new File(sorted, folder || `${sorted.length} images`, { lastModified });
  return rowOf(file, sorted.map(({ name, size }) => ({ name, size })));
}

const namesOf = (files) => files.map((file) => file.name).join(", ");

receiveFiles((files, folder) => {
  say("");
  const full = files.filter((file) => file.size);
  const pictures = full.filter(isPicture);
  const recordings = full.filter((file) => !isPicture(file));
  const empty = files.filter((file) => !file.size);
  if (!files.length) say(`${folder}: has no images and no recordings`);
  if (empty.length) say(`${namesOf(empty)}: the file is empty`);
  if (pictures.length > 1 || (folder && pictures.length)) waiting.push(rowOfSet(pictures, folder));
  else if (pictures.length) takePicture(pictures[0], recordings.length).catch((error) => say(error.message));
  waiting.push(...recordings.map((file) => rowOf(file)));
  sendWaiting();
});
addEventListener("beforeunload", (event) => busy && event.preventDefault());
setInterval(refresh, 1000);
