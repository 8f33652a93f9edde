// Marks the track that the address names, on its card and on the timeline; on a recording's page and in its report.
function markTrack() {
  const track = location.hash.slice("#track-".length);
  for (const card of document.querySelectorAll(".card")) card.classList.toggle("chosen", card.id === `track-${track}`);
  for (const bar of document.querySelectorAll(".bar")) bar.classList.toggle("chosen", bar.dataset.track === track);
}
