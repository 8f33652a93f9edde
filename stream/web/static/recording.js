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

if (video) {
  connectTimeline(video);
  video.addEventListener("error", () => {
    say("This browser cannot play the video. Download annotated.mp4 instead.");
  });
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
