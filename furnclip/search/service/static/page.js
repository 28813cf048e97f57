// The page works without this file: it adds dropping and pasting an image, keys, and a sign of waiting.
"use strict";
const form = document.querySelector("form.drop");
const chooser = document.getElementById("image");

function waiting(text) {
  document.body.classList.add("waiting");
  document.querySelector(".progress span").textContent = text;
}

function searchBy(files) {
  const images = [...files].filter((file) => file.type.startsWith("image/"));
  if (!images.length) return;
  const chosen = new DataTransfer();
  chosen.items.add(images[0]);
  chooser.files = chosen.files;
  form.requestSubmit();
}

if (form) {
  document.body.classList.add("drops");
  let inside = 0;
  const veil = (on) => document.body.classList.toggle("dropping", on);
  chooser.addEventListener("change", () => chooser.files.length && form.requestSubmit());
  addEventListener("dragenter", (event) => { event.preventDefault(); inside += 1; veil(true); });
  addEventListener("dragleave", () => { inside -= 1; if (inside <= 0) veil(false); });
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => { event.preventDefault(); inside = 0; veil(false); searchBy(event.dataTransfer.files); });
  addEventListener("paste", (event) => searchBy(event.clipboardData.files));
}

const typing = (event) => event.target.closest("input, textarea") || event.ctrlKey || event.metaKey || event.altKey;
const vote = document.querySelector("form.vote");
const shownAt = performance.now();
addEventListener("keydown", (event) => {
  if (typing(event) || event.repeat) return;
  if (event.key === "/" && document.getElementById("q")) {
    event.preventDefault();
    document.getElementById("q").select();
  }
  // No judgment takes less than this: what comes sooner was meant for the ballot before.
  if (vote && performance.now() - shownAt > 250) {
    const button = vote.querySelector(`button[value="${CSS.escape(event.key.toUpperCase())}"]`);
    if (button) button.click();
  }
});
addEventListener("submit", (event) => {
  if (document.body.classList.contains("waiting")) event.preventDefault();
  else waiting(vote ? "" : "Searching");
});
addEventListener("click", (event) => {
  if (event.target.closest("a[href^='/?']") && !event.ctrlKey && !event.metaKey && !event.shiftKey) waiting("Searching");
});
addEventListener("pageshow", () => document.body.classList.remove("waiting"));

// On a phone the filters begin folded.
const filters = document.querySelector("details.filters");
if (filters && matchMedia("(max-width: 760px)").matches) filters.open = false;
