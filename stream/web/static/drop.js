"use strict";
// Calls `take` with a list of files that the user chooses, drops anywhere on the page, or pastes. If they are those of a
// folder, its name is the second argument.

function receiveFiles(take) {
  const zone = document.querySelector(".drop");
  const give = (files, folder = "") => (files.length || folder) && take([...files], folder);
  for (const input of document.querySelectorAll(".bring input[type=file]")) {
    input.addEventListener("change", () => {
      const folder = input.files[0]?.webkitRelativePath.split("/")[0];
      give(folder ? [...input.files].filter(isMedium) : input.files, folder);
      input.value = ""; // the same file can then be chosen again
    });
  }
  addEventListener("paste", (event) => give(event.clipboardData.files));
  addEventListener("dragover", (event) => {
    event.preventDefault();
    zone.classList.add("over");
  });
  addEventListener("dragleave", () => zone.classList.remove("over"));
  addEventListener("drop", async (event) => {
    event.preventDefault();
    zone.classList.remove("over");
    const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry()).filter(Boolean);
    const folders = entries.filter((entry) => entry.isDirectory);
    if (!folders.length) return give(event.dataTransfer.files);
    const files = (await Promise.all(entries.map(filesOf))).flat();
    return give(files, folders[0].name);
  });
}

// Folders also have files of other kinds. Those are left out.
const isMedium = (file) =>
  /^video\/|^image\/(jpeg|png|tiff|webp|bmp)/.test(file.type) || /\.(mkv|mxf|ts|dcm)$/i.test(file.name);

// The files of a dropped entry, which is a file or a folder.
async function filesOf(entry) {
  const ask = (method, from) => new Promise((resolve, reject) => from[method](resolve, reject));
  if (entry.isFile) return [await ask("file", entry)];
  const reader = entry.createReader();
  const files = [];
  // One call returns a hundred entries at most.
  for (let some = await ask("readEntries", reader); some.length; some = await ask("readEntries", reader)) {
    files.push(...(await Promise.all(some.map(filesOf))).flat());
  }
  return files.filter(isMedium);
}
