// Shared by both pages: elements, messages, the theme, and the error of a damaged file.

const $ = (id) => document.getElementById(id);

/** Returns a new element with a text, or a list of texts and elements, and with properties. */
function element(name, content = "", properties = {}) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...[content].flat());
  return made;
}

/** Replaces the rows of a table's body. */
const fillRows = (body, rows) =>
  body.replaceChildren(...rows.map((cells) => element("tr", cells.map((cell) => element("td", cell)))));

/** Shows a problem above the page; an empty text removes it. */
const say = (text) => Object.assign($("problem"), { hidden: !text, textContent: text });

addEventListener("error", ({ message }) => $("problem").hidden && say(`This page has failed: ${message}`));
addEventListener("unhandledrejection", ({ reason }) => say(`This page has failed: ${reason}`));

/** Returns whether the page is dark, as set by its switch or else by the reader's system. */
function isDark() {
  const { theme } = document.documentElement.dataset;
  return theme ? theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

const nameTheme = () => { $("theme").textContent = isDark() ? "Light" : "Dark"; };

function toggleTheme() {
  document.documentElement.dataset.theme = isDark() ? "light" : "dark";
  nameTheme();
}
nameTheme();

let index = null;
try {
  index = JSON.parse($("index").textContent);
} catch {
  say("This file is damaged; write it again, or copy it again.");
  throw new Error("the index is not JSON");
}
