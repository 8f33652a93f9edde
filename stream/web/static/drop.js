"use strict";
// Files for a page: chosen, dropped anywhere on it, or pasted. `take` is given a list of them.

function receiveFiles(take) {
  const zone = document.querySelector(".drop");
  const input = zone.querySelector("input");
  const give = (files) => files.length && take([...files]);
  input.addEventListener("change", () => {
    give(input.files);
    input.value = ""; // so that the same file can be chosen again
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
