"use strict";
// The page of one recording: shows its progress, or its results.

const section = document.querySelector(".recording");
const video = section.querySelector("video");

async function refresh() {
  try {
    const page = new DOMParser().parseFromString(await (await ask(location.pathname)).text(), "text/html");
    const fresh = page.querySelector(".recording");
    if (fresh.dataset.state !== section.dataset.state) location.reload();
    document.getElementById("state").innerHTML = page.getElementById("state").innerHTML;
    say("");
  } catch (error) {
    say(error.message);
  }
}

async function mark(kind, text) {
  const status = section.querySelector("[data-value=marked]");
  const seconds = video.currentTime;
  const headers = { "Content-Type": "application/json" };
  const body = JSON.stringify({ kind, seconds, text });
  try {
    await ask(`/api/recordings/${section.dataset.id}/marks`, { method: "POST", headers, body });
    status.textContent = `marked at ${seconds.toFixed(1)} s: ${text || kind.replace("-", " ")}`;
  } catch (error) {
    status.textContent = error.message;
  }
}

if (video) {
  connectTimeline(video);
  connectMarks(section.querySelector(".mark"), mark);
  video.addEventListener("error", () => {
    say("This browser cannot play the video. Download annotated.mp4 instead.");
  });
} else if (section.querySelector(".timeline")) {
  addEventListener("hashchange", markTrack);
  markTrack();
} else if (["uploading", "waiting", "processing"].includes(section.dataset.state)) {
  setInterval(refresh, 1000);
}
for (const button of section.querySelectorAll("[data-act]")) {
  button.addEventListener("click", async () => {
    try {
      await ask(`/api/recordings/${section.dataset.id}/${button.dataset.act}`, { method: "POST" });
    } catch (error) {
      say(error.message);
      return;
    }
    refresh();
  });
}

// Annotations take a while, so they are made first and downloaded when they are complete.
async function downloadAnnotations(form) {
  const status = section.querySelector("[data-value=annotations]");
  const { format, every } = form.elements;
  const api = `/api/recordings/${section.dataset.id}`;
  const address = `${api}/annotations/${format.value}?every=${every.value}`;
  form.querySelector("button").disabled = true;
  try {
    let made = await (await ask(address, { method: "POST" })).json();
    while (["waiting", "processing"].includes(made.state)) {
      const done = made.frames_expected ? `${made.frames_done} of ${made.frames_expected}` : made.frames_done;
      status.textContent = made.state === "waiting" ? "waiting for other annotations" : `frames done: ${done}`;
      await new Promise((resolve) => setTimeout(resolve, 500));
      const recording = await (await ask(api)).json();
      made = recording.annotations.find((each) => each.format === format.value) ?? { message: "Please try again." };
    }
    status.textContent = made.message;
    if (made.state === "finished") location.assign(`${api}/annotations/${made.format}?every=${made.every}`);
  } catch (error) {
    status.textContent = error.message;
  }
  form.querySelector("button").disabled = false;
}

section.querySelector(".annotations")?.addEventListener("submit", (event) => {
  event.preventDefault();
  downloadAnnotations(event.target);
});
