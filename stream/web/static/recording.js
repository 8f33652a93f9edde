"use strict";
// One recording: follows its progress; when it is finished, takes the video to the finding that is clicked on.

const section = document.querySelector(".recording");
const video = section.querySelector("video");

async function follow() {
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

function choose() {
  markTrack();
  const bar = section.querySelector(".bar.chosen");
  if (bar) video.currentTime = bar.dataset.first;
}

function showHead() {
  const head = section.querySelector(".head");
  const { start, end } = section.dataset;
  const place = Math.min(1, Math.max(0, (video.currentTime - start) / (end - start)));
  // The timeline is drawn 6 units into a picture of 1212.
  head.style.left = `${((6 + 1199 * place) / 1212) * 100}%`;
  head.hidden = false;
}

if (video) {
  video.addEventListener("timeupdate", showHead);
  video.addEventListener("error", () => {
    say("This browser cannot play the video; download annotated.mp4 instead.");
  });
  // Also when the same one is clicked on again, which changes no address.
  section.addEventListener("click", (event) => {
    const link = event.target.closest("a[href^='#track-']");
    if (!link) return;
    event.preventDefault();
    history.replaceState(null, "", link.getAttribute("href"));
    choose();
    video.scrollIntoView({ block: "nearest" });
  });
  video.addEventListener("loadedmetadata", choose);
} else if (["uploading", "waiting", "processing"].includes(section.dataset.state)) {
  setInterval(follow, 1000);
}
for (const button of section.querySelectorAll("[data-act]")) {
  button.addEventListener("click", async () => {
    try {
      await ask(`/api/recordings/${section.dataset.id}/${button.dataset.act}`, { method: "POST" });
    } catch (error) {
      say(error.message);
      return;
    }
    follow();
  });
}
