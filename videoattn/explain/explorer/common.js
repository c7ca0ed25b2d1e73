// What both pages use: elements, messages, the theme, a damaged file.

const $ = (id) => document.getElementById(id);

/** Returns a new element with a text and properties. */
function element(name, text = "", properties = {}) {
  return Object.assign(document.createElement(name), { textContent: text }, properties);
}

/** Shows a problem above the page; an empty text removes it. */
function say(text) {
  $("problem").hidden = !text;
  $("problem").textContent = text;
}

addEventListener("error", ({ message }) => say(`This page has failed: ${message}`));
addEventListener("unhandledrejection", ({ reason }) => say(`This page has failed: ${reason}`));

function toggleTheme() {
  const dark = getComputedStyle(document.documentElement).colorScheme !== "dark";
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  $("theme").textContent = dark ? "Light" : "Dark";
}

let index = null;
try {
  index = JSON.parse($("index").textContent);
} catch {
  say("This file is damaged; write it again, or copy it again.");
  throw new Error("the index is not JSON");
}
