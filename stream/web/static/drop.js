"use strict";
// Calls `take` with a list of files that the user chooses, drops anywhere on the page, or pastes.

function receiveFiles(take) {
  const zone = document.querySelector(".drop");
  const input = zone.querySelector("input");
  const give = (files) => files.length && take([...files]);
  input.addEventListener("change", () => {
    give(input.files);
    input.value = ""; // the same file can then be chosen again
  });
  addEventListener("paste", (event) => give(event.clipboardData.files));
  addEventListener("dragover", (event) => {
    event.preventDefault();
    zone.classList.add("over");
  });
  addEventListener("dragleave", () => zone.classList.remove("over"));
  addEventListener("drop", (event) => {
    event.preventDefault();
    zone.classList.remove("over");
    give(event.dataTransfer.files);
  });
}
