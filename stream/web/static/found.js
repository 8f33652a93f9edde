// The timeline of a recording, on its page and in its report.

// Highlights the polyp that the URL names, on its card and on the timeline.
function markTrack() {
  const track = location.hash.slice("#track-".length);
  for (const card of document.querySelectorAll(".card")) card.classList.toggle("chosen", card.id === `track-${track}`);
  for (const bar of document.querySelectorAll(".bar")) bar.classList.toggle("chosen", bar.dataset.track === track);
}

// The time at a place of the timeline. A bar may be narrower than a pixel, so a click on it gives a time within it.
function timeAt(timeline, event) {
  const { start, end } = timeline.dataset;
  const { left, width } = timeline.getBoundingClientRect();
  const { first, last } = event.target.closest("[data-first]")?.dataset ?? { first: start, last: end };
  return Math.min(last, Math.max(first, Number(start) + ((event.clientX - left) / width) * (end - start)));
}

// Lets the timeline and the names of the polyps go to a time of the video, and shows the time of the video.
// Times are those of the recording. A video of a range of it has a shorter clock, which begins at `data-begins`.
function connectTimeline(video) {
  const begins = Number(video.dataset.begins ?? 0);
  const timeline = document.querySelector(".timeline");
  const head = document.querySelector(".head");
  const { start, end } = timeline.dataset;
  const firstOf = (track) => document.querySelector(`.bar[data-track="${track}"]`)?.dataset.first;
  const goTo = (seconds) => {
    video.currentTime = seconds - begins;
    video.scrollIntoView({ block: "nearest" });
  };
  document.addEventListener("click", (event) => {
    if (video.hidden) return;
    const link = event.target.closest("a[href^='#track-']");
    if (link) {
      event.preventDefault();
      // Not a hashchange event: a second click on the same link does not change the URL.
      history.replaceState(null, "", link.getAttribute("href"));
      markTrack();
    }
    if (timeline.contains(event.target)) goTo(timeAt(timeline, event));
    else if (link) goTo(firstOf(link.getAttribute("href").slice("#track-".length)));
  });
  video.addEventListener("timeupdate", () => {
    const place = (video.currentTime + begins - start) / (end - start || 1);
    head.style.left = `${100 * Math.min(1, Math.max(0, place))}%`;
    head.hidden = false;
  });
  video.addEventListener("loadedmetadata", () => {
    markTrack();
    const chosen = firstOf(location.hash.slice("#track-".length));
    if (chosen) video.currentTime = chosen - begins;
  });
}
