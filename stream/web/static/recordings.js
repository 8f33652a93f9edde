"use strict";
// Sends recordings in pieces, so that a broken line costs one piece; keeps the list of recordings as it is.

const PIECE = 8 * 1024 * 1024;
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

// XMLHttpRequest, since fetch does not tell how much of a body is gone.
function sendPiece(upload, id, offset) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    upload.request = request;
    request.upload.addEventListener("progress", (event) => (upload.progress.value = offset + event.loaded));
    request.addEventListener("load", () => resolve(request));
    request.addEventListener("error", () => reject(new Error("the line is broken")));
    request.addEventListener("abort", () => reject(new Error("stopped")));
    request.open("PATCH", `/api/uploads/${id}?offset=${offset}`);
    request.setRequestHeader("Content-Type", "application/octet-stream");
    request.send(upload.file.slice(offset, offset + PIECE));
  });
}

// Only what this browser began is gone on with: recorders give files of one size the same names, over and over.
const keyOf = (file) => `upload ${file.name} ${file.size} ${file.lastModified}`;

async function begin(file) {
  const begun = localStorage.getItem(keyOf(file));
  if (begun) {
    try {
      const recording = await (await ask(`/api/recordings/${begun}`)).json();
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

// One piece, or the question how far it is; after a broken line that is not known here.
async function goOn(upload) {
  const known = upload.recording ? await (await ask(`/api/recordings/${upload.recording.id}`)).json() : null;
  const recording = (upload.recording = known ?? (await begin(upload.file)));
  upload.progress.value = recording.received;
  if (recording.state !== "uploading") return true;
  const request = await sendPiece(upload, recording.id, recording.received);
  if (request.status >= 400) {
    throw Object.assign(new Error(reasonOf(request.status, request.response)), { status: request.status });
  }
  return JSON.parse(request.response).state !== "uploading";
}

// What time may mend: no line, a piece that the server still waits for, its disk.
const mayPass = (error) => !error.status || error.status >= 500 || [408, 409].includes(error.status);

async function send(upload) {
  for (let failures = 0, done = false; !done && !upload.stopped; ) {
    try {
      done = await goOn(upload);
      failures = 0;
      upload.note.textContent = "";
    } catch (error) {
      if (!upload.stopped && !mayPass(error)) throw error;
      failures += 1;
      upload.note.textContent = `${error.message}; trying again`;
      await new Promise((resolve) => setTimeout(resolve, 1000 * Math.min(LONGEST_WAIT_S, 2 ** (failures - 1))));
    }
  }
  if (!upload.stopped) localStorage.removeItem(keyOf(upload.file));
}

// One after another: several at once would only share the line.
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
  const line = document.querySelector("[data-value=line]");
  try {
    const page = new DOMParser().parseFromString(await (await ask(location.href)).text(), "text/html");
    replaceList(page.getElementById("recordings"));
    line.textContent = "";
  } catch (error) {
    line.textContent = error.message;
  }
  refreshing = false;
}

// A list that is replaced takes the keyboard's place with it.
function replaceList(fresh) {
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
  if (act === "delete" && !confirm(`Delete ${name} and what was found in it?`)) return;
  try {
    if (act === "delete") await ask(`/api/recordings/${id}`, { method: "DELETE" });
    else await ask(`/api/recordings/${id}/${act}`, { method: "POST" });
    say("");
  } catch (error) {
    say(error.message);
  }
  refresh();
});

receiveFiles((files) => {
  const empty = files.filter((file) => !file.size);
  if (empty.length) say(`${empty.map((file) => file.name).join(", ")}: empty`);
  waiting.push(...files.filter((file) => file.size).map(rowOf));
  sendWaiting();
});
addEventListener("beforeunload", (event) => busy && event.preventDefault());
setInterval(refresh, 1000);
