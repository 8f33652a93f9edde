"use strict";
// Hands an image to the image page. It is kept in IndexedDB meanwhile, since other stores of a browser are too small.

const isPicture = (file) => /\.(jpe?g|png|tiff?|webp|bmp)$/i.test(file.name);

function openStore() {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open("polypstream", 1);
    request.onupgradeneeded = () => request.result.createObjectStore("pictures");
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

// Calls `act` with the store. Its request's result is returned when the transaction is complete.
async function inStore(act) {
  const database = await openStore();
  try {
    return await new Promise((resolve, reject) => {
      const transaction = database.transaction("pictures", "readwrite");
      const request = act(transaction.objectStore("pictures"));
      transaction.oncomplete = () => resolve(request.result);
      transaction.onerror = transaction.onabort = () => reject(transaction.error);
    });
  } finally {
    database.close();
  }
}

async function handOver(file) {
  await inStore((store) => store.put(file, "dropped"));
  location.assign("/picture#dropped");
}

// The image that another page has handed over; undefined if there is none. It is returned once.
async function handedOver() {
  if (location.hash !== "#dropped") return undefined;
  history.replaceState(null, "", location.pathname);
  const file = await inStore((store) => store.get("dropped"));
  await inStore((store) => store.clear());
  return file;
}
