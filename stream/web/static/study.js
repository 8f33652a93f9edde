// The contact sheets of a study: causes that the reader chooses, their tally, and their download.

const keyOf = (card) => `${location.pathname}#${["setting", "recording", "what", "first"].map((name) => card.dataset[name]).join("|")}`;

// A browser may refuse to store anything for a file. Then choices last as long as the page.
function stored(card) {
  try {
    return localStorage.getItem(keyOf(card)) ?? "";
  } catch {
    return "";
  }
}

function store(card, cause) {
  try {
    localStorage.setItem(keyOf(card), cause);
  } catch {}
}

// Fills the table with the number of cards of each cause and setting.
function tally(sheet) {
  const cards = [...sheet.querySelectorAll(".card")];
  const causes = [...cards[0].querySelectorAll("option")].map((option) => [option.value, option.textContent]);
  const count = (cause, setting) =>
    cards.filter((card) => card.querySelector("select").value === cause && card.dataset.setting === setting).length;
  const rows = causes.map(([value, text]) => [text, ...settings.map((setting) => count(value, setting))]);
  rows.push(["all", ...settings.map((setting) => cards.filter((card) => card.dataset.setting === setting).length)]);
  sheet.querySelector(".tally tbody").replaceChildren(
    ...rows.map((row) => {
      const line = document.createElement("tr");
      line.append(
        ...row.map((value, place) => {
          const cell = document.createElement(place ? "td" : "th");
          cell.textContent = value;
          return cell;
        }),
      );
      return line;
    }),
  );
}

function asCsv(sheet) {
  const names = ["setting", "recording", "what", "first", "seconds"];
  const quoted = (value) => (/[",\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value);
  const rows = [...sheet.querySelectorAll(".card")].map((card) => [
    ...names.map((name) => card.dataset[name]),
    card.querySelector("select").value,
  ]);
  const header = ["setting", "recording", "what", "first_s", "seconds", "cause"];
  return [header, ...rows].map((row) => row.map(quoted).join(",")).join("\n") + "\n";
}

function download(name, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

for (const sheet of document.querySelectorAll("section")) {
  if (!sheet.querySelector(".card")) continue;
  for (const card of sheet.querySelectorAll(".card")) {
    const select = card.querySelector("select");
    select.value = stored(card);
    select.addEventListener("change", () => {
      store(card, select.value);
      tally(sheet);
    });
  }
  tally(sheet);
  sheet.querySelector(".download").addEventListener("click", () => download(`${sheet.id}-causes.csv`, asCsv(sheet)));
}
