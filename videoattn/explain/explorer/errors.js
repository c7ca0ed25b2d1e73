// The page of a run's test videos, the most wrong first, with a confusion matrix that filters them.

const PAGE = 40; // number of videos listed at first, and added by each "Show more"
const MOST_CLASSES = 20; // largest number of classes in the matrix; those with the most errors are shown
const filter = { label: null, guess: null, all: false, count: PAGE };
let strips = null; // the pictures of all videos, one after the other

const className = (k) => index.class_names[k];
const matches = (video) =>
  (filter.label === null || video.label === filter.label) &&
  (filter.guess === null || video.guess === filter.guess) &&
  (filter.all || video.label !== video.guess || (filter.label !== null && filter.label === filter.guess));

/** Changes the filter, draws the list, and returns the filter. */
function set(changes) {
  Object.assign(filter, { count: PAGE }, changes);
  for (const id of ["label", "guess"]) $(id).value = filter[id] ?? "";
  $("all").checked = filter.all;
  drawList();
  drawMatrix();
  return { ...filter };
}

function drawList() {
  const found = index.videos.filter(matches), wrong = found.filter((video) => video.label !== video.guess).length;
  $("count").textContent = `${found.length} of ${index.videos.length} videos, ${wrong} of them wrong; the most wrong first.`;
  $("videos").replaceChildren(...found.slice(0, filter.count).map(listItem));
  $("more").hidden = found.length <= filter.count;
}

function listItem(video) {
  const wrong = element("b", `Prediction: ${className(video.guess)} ${percent(video.probability)}.`);
  const line = element("p", [
    element("b", `Ground truth: ${className(video.label)}`), ` (${percent(video.label_probability)}). `,
    video.label === video.guess ? "The prediction is correct." : wrong, " ",
    video.explorer ? element("a", "Explore this video", { href: video.explorer }) : "",
  ]);
  const command = video.explorer || !video.command ? [] : [" · ", element("code", video.command)];
  const name = element("p", [video.name, ...command], { className: "soft" });
  if (!video.size || !strips) return element("li", [line, name]);
  const url = URL.createObjectURL(new Blob([strips.subarray(video.at, video.at + video.size)], { type: "image/webp" }));
  const strip = element("img", "", { src: url, alt: `Frames of ${video.name}`, onload: () => URL.revokeObjectURL(url) });
  return element("li", [line, strip, name]);
}

/** Returns the classes of the matrix, in the network's order. */
function matrixClasses() {
  const errors = new Map();
  for (const { label, guess } of index.videos) {
    for (const k of [label, guess]) errors.set(k, (errors.get(k) ?? 0) + (label === guess ? 1e-6 : 1));
  }
  return [...errors.keys()].sort((a, b) => errors.get(b) - errors.get(a)).slice(0, MOST_CLASSES).sort((a, b) => a - b);
}

function drawMatrix() {
  const classes = matrixClasses(), counts = new Map();
  for (const { label, guess } of index.videos) counts.set(`${label} ${guess}`, (counts.get(`${label} ${guess}`) ?? 0) + 1);
  const most = Math.max(...counts.values(), 1);
  const some = classes.length < index.class_names.length ? ` The ${classes.length} classes with the most errors.` : "";
  $("matrix-title").textContent = `Rows: ground truth. Columns: prediction. Click a cell to filter the list.${some}`;
  const cell = (label, guess) => {
    const count = counts.get(`${label} ${guess}`);
    if (!count) return element("td");
    const title = `${className(label)} answered as ${className(guess)}`, at = 3 * Math.round((200 * count) / most);
    const go = element("button", String(count), {
      title, ariaLabel: `${title}: ${count}`, ariaPressed: filter.label === label && filter.guess === guess,
      className: label === guess ? "right" : "", onclick: () => set({ label, guess }),
    });
    go.style.borderBottomColor = `rgb(${palette.sequential.slice(at, at + 3)})`;
    return element("td", go);
  };
  const head = ["", ...classes.map(className)].map((name) => element("th", name, name ? { scope: "col" } : {}));
  const rows = classes.map((label) => [element("th", className(label), { scope: "row" }), ...classes.map((guess) => cell(label, guess))]);
  $("matrix").replaceChildren(...[head, ...rows].map((cells) => element("tr", cells)));
}

function startErrors() {
  $("title").textContent = document.title = `Errors of ${index.run}`;
  $("about").textContent = index.about;
  for (const id of ["label", "guess"]) {
    $(id).append(new Option("any class", ""), ...index.class_names.map((name, k) => new Option(name, k)));
    $(id).addEventListener("input", () => set({ [id]: $(id).value === "" ? null : Number($(id).value) }));
  }
  $("all").addEventListener("input", () => set({ all: $("all").checked }));
  $("clear").addEventListener("click", () => set({ label: null, guess: null, all: false }));
  $("more").addEventListener("click", () => set({ count: filter.count + PAGE }));
  $("theme").addEventListener("click", toggleTheme);
  try {
    strips = readBlob(index.blob, "The frames");
  } catch (error) {
    say(error.message);
  }
  set({});
}

window.videoattn = { state: () => ({ ...filter }), set, videos: () => index.videos.filter(matches) };
startErrors();
