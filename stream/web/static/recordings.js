"use strict";
// Sends recordings in pieces, so that a broken line costs one piece; keeps the list of recordings as it is.

const PIECE = 8 * 1024 * 1024;
const list = document.getElementById("recordings");
const waiting = [];
let busy = false;

function say(text) {
  document.querySelector("[data-value=said]").textContent = text;
}

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

async function begin(file) {
  const known = await (await fetch("/api/recordings")).json();
  const begun = known.find((each) => each.state === "uploading" && each.name === file.name && each.size === file.size);
  if (begun) return begun;
  const answer = await fetch("/api/uploads", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ name: file.name, size: file.size }),
  });
  if (!answer.ok) throw new Error(await reasonOf(answer));
  return answer.json();
}

async function send(upload) {
  let recording = await begin(upload.file);
  for (let failures = 0; recording.state === "uploading" && !upload.stopped; ) {
    try {
      const request = await sendPiece(upload, recording.id, recording.received);
      if (request.status >= 400 && request.status !== 409) throw new Error(JSON.parse(request.response).detail);
      failures = 0;
      upload.note.textContent = "";
    } catch (error) {
      if (upload.stopped) return;
      failures += 1;
      upload.note.textContent = `${error.message}; trying again`;
      await new Promise((resolve) => setTimeout(resolve, 1000 * Math.min(30, 2 ** failures)));
    }
    const answer = await fetch(`/api/recordings/${recording.id}`).catch(() => null);
    if (answer?.ok) recording = await answer.json();
    else if (answer?.status === 404) throw new Error("it was deleted meanwhile");
    upload.progress.value = recording.received;
  }
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
  const answer = await fetch("/recordings").catch(() => null);
  if (!answer?.ok) return say("polypstream does not answer");
  say("");
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  const fresh = page.getElementById("recordings");
  // A list that is replaced takes the keyboard's place with it.
  if (fresh.innerHTML === list.innerHTML) return;
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
  const answer =
    act === "delete"
      ? await fetch(`/api/recordings/${id}`, { method: "DELETE" })
      : await fetch(`/api/recordings/${id}/cancel`, { method: "POST" });
  if (!answer.ok) say(await reasonOf(answer));
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
