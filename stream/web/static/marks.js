"use strict";
// The buttons that set marks. `set` is called with the kind of the mark and the text that the user has written.

function connectMarks(form, set) {
  const take = (kind) => {
    const { text } = form.elements;
    set(kind, text.value.trim());
    text.value = "";
  };
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    take("note");
  });
  for (const button of form.querySelectorAll("[type=button][data-mark]")) {
    button.addEventListener("click", () => take(button.dataset.mark));
  }
}
