"use strict";
// Sends a request to the server. A failure becomes an error with a message for the user.

async function ask(url, options = {}) {
  let answer;
  try {
    answer = await fetch(url, { signal: AbortSignal.timeout(60000), ...options });
  } catch {
    throw new Error("polypstream does not answer");
  }
  if (!answer.ok) throw Object.assign(new Error(reasonOf(answer.status, await answer.text())), { status: answer.status });
  return answer;
}

function reasonOf(status, text) {
  if (status === 401) return "the token has changed; open the address that the server printed";
  try {
    return JSON.parse(text).detail;
  } catch {
    return text || `the server responded with ${status}`;
  }
}

// Shows a message on the page.
function say(text) {
  document.querySelector("[data-value=said]").textContent = text;
}
