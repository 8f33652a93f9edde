"use strict";
// Shows times as the browser's user writes them, in local time. Without scripts they are in UTC.

function showLocalTimes(part) {
  for (const time of part.querySelectorAll("time")) {
    time.title = time.textContent;
    time.textContent = new Date(time.dateTime).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
  }
}

showLocalTimes(document);
