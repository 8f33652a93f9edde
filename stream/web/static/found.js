// Highlights the track that the URL names, on its card and on the timeline. Used by a recording's page and its report.
function markTrack() {
  const track = location.hash.slice("#track-".length);
  for (const card of document.querySelectorAll(".card")) card.classList.toggle("chosen", card.id === `track-${track}`);
  for (const bar of document.querySelectorAll(".bar")) bar.classList.toggle("chosen", bar.dataset.track === track);
}
