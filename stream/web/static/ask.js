"use strict";
// Asks the server; what is not well becomes an error whose message is for people.

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
  if (status === 401) return "the token is another one now; open the address that the server printed";
  try {
    const detail = JSON.parse(text).detail;
    return typeof detail === "string" ? detail : detail.map((each) => each.msg).join("; ");
  } catch {
    return text || `the server answered ${status}`;
  }
}

function say(text) {
  document.querySelector("[data-value=said]").textContent = text;
}
