"use strict";
// The page of one recording: shows its progress, and seeks in the finished video to the finding that is clicked on.

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

function seekToTrack() {
  markTrack();
  const bar = section.querySelector(".bar.chosen");
  if (bar) video.currentTime = bar.dataset.first;
}

function showPosition() {
  const head = section.querySelector(".head");
  const { start, end } = section.dataset;
  const place = Math.min(1, Math.max(0, (video.currentTime - start) / (end - start)));
  // The timeline starts at 6 of 1212 units of its drawing.
  head.style.left = `${((6 + 1199 * place) / 1212) * 100}%`;
  head.hidden = false;
}

if (video) {
  video.addEventListener("timeupdate", showPosition);
  video.addEventListener("error", () => {
    say("This browser cannot play the video; download annotated.mp4 instead.");
  });
  // Not a hashchange event: a second click on the same link does not change the URL.
  section.addEventListener("click", (event) => {
    const link = event.target.closest("a[href^='#track-']");
    if (!link) return;
    event.preventDefault();
    history.replaceState(null, "", link.getAttribute("href"));
    seekToTrack();
    video.scrollIntoView({ block: "nearest" });
  });
  video.addEventListener("loadedmetadata", seekToTrack);
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
