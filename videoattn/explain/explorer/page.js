// The state of the page, the views that it stands for, and what the reader does to it.
//
// `state` is what a link restores. `set` is the only function that changes it; it repairs what does
// not fit together, and names it. `render` draws the state; it keeps nothing that state has not.

const $ = (id) => document.getElementById(id);
const clips = index.clips.map((clip) => ({ ...clip, pictures: [], faded: [] }));
const STRONGEST = 10; // keys in the table and ringed
const MODES = ["query", "reverse"], HOWS = ["side", "difference"];
const SCALES = ["row", "fixed"], CURVES = ["linear", "root"];
const KEYS = [
  ["click, drag", "choose the query; with Shift a second one"],
  ["\u2190 \u2191 \u2192 \u2193", "move the query by one place"],
  ["Page Up, Page Down", "move the query in time"],
  ["Home, End", "first, last frame"],
  ["Space", "play, pause"],
  ["[ ]", "previous, next map"],
  [", .", "previous, next head or class"],
  ["M", "mean of all heads"],
  ["R", "where it looks / who looks here"],
  ["C", "compare with the next choice, or with nothing"],
  ["S, L, ?", "save a picture, copy the link, this help"],
];

// Points are places in the clip, so that they survive a change of the map: {frame, y, x} with y and
// x in fractions of the frame, or {special} for a query without a place.
const state = {
  scene: 0, map: "", head: "mean", frame: 0, points: [], mode: "query", scale: "row",
  curve: "linear", smooth: true, opacity: 100, rings: true, compare: null, how: "side",
};
let preview = null; // the point under the mouse, drawn instead of the pinned ones
let player = 0; // the timer while playing
let shown = null; // the scene and number of canvases that the controls and the strip are made for

const sceneOf = (number = state.scene) => index.scenes[number];
const mapOf = (scene, name) => scene.maps.find((map) => map.name === name);
const currentMap = () => mapOf(sceneOf(), state.map);
const currentClip = () => clips[sceneOf().clip];

/** Returns the query number of a point on a map, or null if the map has no such query. */
function numberOf(point, map) {
  if (!map?.grid_q) return null;
  if (point.special !== undefined) {
    const at = map.special.indexOf(point.special);
    return at < 0 ? null : volume(map.grid_q) + at;
  }
  return volume(map.grid_q) ? placeNumber(point, map.grid_q) : null;
}

function placeNumber({ frame, y, x }, [moments, height, width]) {
  const cell = (at, size) => Math.min(Math.floor(at * size), size - 1);
  const moment = Math.floor((frame * moments) / currentClip().labels.length);
  return (moment * height + cell(y, height)) * width + cell(x, width);
}

/** Returns the center of a cell; its frame is the middle one of those that the cell covers. */
function pointOf(number, grid) {
  const [moment, row, column] = cellOf(number, grid);
  return { frame: middleFrame(moment, grid[0]), y: (row + 0.5) / grid[1], x: (column + 0.5) / grid[2] };
}

function middleFrame(moment, moments) {
  const frames = currentClip().labels.map((_, f) => f);
  const covered = frames.filter((f) => Math.floor((f * moments) / frames.length) === moment);
  return covered[(covered.length - 1) >> 1];
}

function queryPoint(number, map) {
  const places = volume(map.grid_q);
  return number < places ? pointOf(number, map.grid_q) : { special: map.special[number - places] };
}

// ---- State ----

function publicState() {
  const { points, ...others } = state, map = currentMap();
  const queries = points.map((point) => numberOf(point, map)).filter((number) => number !== null);
  return structuredClone({ ...others, queries });
}

/** Changes the state and draws it. What cannot be is replaced, and a message names it. */
function set(changes = {}) {
  const problems = [], next = { ...state };
  const choose = (key, allowed) => {
    if (changes[key] === undefined) return;
    if (allowed.includes(changes[key])) next[key] = changes[key];
    else problems.push(`${key} cannot be ${changes[key]}.`);
  };
  if (changes.scene !== undefined && !sceneOf(changes.scene)) problems.push(`This file has no clip number ${changes.scene}.`);
  else if (changes.scene !== undefined) next.scene = Number(changes.scene);
  const scene = sceneOf(next.scene);
  if (changes.map !== undefined) next.map = changes.map;
  if (!mapOf(scene, next.map)) {
    const first = scene.maps.findLast((map) => map.grid_q) ?? scene.maps[0];
    if (changes.map !== undefined) problems.push(`This file has no map ${next.map}${first ? `; ${first.name} is shown` : ""}.`);
    next.map = first?.name ?? "";
  }
  const map = mapOf(scene, next.map);
  if (changes.head !== undefined) next.head = changes.head;
  const head = validHead(map, next.head);
  if (changes.head !== undefined && String(head) !== String(next.head)) problems.push(`${next.map} has no head ${next.head}.`);
  next.head = head;
  choose("mode", MODES);
  choose("scale", SCALES);
  choose("curve", CURVES);
  choose("how", HOWS);
  for (const key of ["smooth", "rings"]) if (changes[key] !== undefined) next[key] = Boolean(changes[key]);
  if (changes.opacity !== undefined) next.opacity = Math.min(Math.max(Number(changes.opacity) || 0, 0), 100);
  if (changes.compare !== undefined) next.compare = changes.compare;
  const moved = scene.clip !== sceneOf().clip || !state.map;
  Object.assign(state, next); // points are relative to the current clip
  problems.push(...setPoints(changes, map, moved), ...checkCompare());
  const last = currentClip().labels.length - 1;
  if (changes.frame !== undefined) state.frame = Math.min(Math.max(Math.floor(Number(changes.frame)) || 0, 0), last);
  state.frame = Math.min(state.frame, last);
  preview = null;
  say(problems.join(" "));
  render();
  remember();
  return publicState();
}

function validHead(map, head) {
  if (!map || map.heads === 1) return map?.head_names ? 0 : "mean";
  if (head === "mean" || head === "max") return map.head_names ? 0 : head;
  return Number.isInteger(Number(head)) && head >= 0 && head < map.heads ? Number(head) : validHead(map, "mean");
}

function setPoints(changes, map, moved) {
  if (changes.points) state.points = changes.points.slice(-2);
  else if (moved) state.points = sceneOf().queries.slice(0, 1);
  if (moved && state.points[0]?.frame !== undefined) state.frame = state.points[0].frame;
  const problems = [];
  if (changes.queries && map?.grid_q) {
    const total = volume(map.grid_q) + map.special.length;
    const fits = changes.queries.map(Number).filter((n) => Number.isInteger(n) && n >= 0 && n < total);
    if (fits.length < changes.queries.length) problems.push(`${map.name} has queries 0 to ${total - 1}.`);
    if (fits.length) state.points = fits.slice(-2).map((number) => queryPoint(number, map));
  }
  if (map?.grid_q && !state.points.some((point) => numberOf(point, map) !== null)) state.points = [queryPoint(0, map)];
  return problems;
}

/** Drops a comparison that makes no sense, and returns why. */
function checkCompare() {
  const other = state.compare;
  if (!other) return [];
  const scene = sceneOf(other.scene), map = scene && mapOf(scene, other.map);
  state.compare = null;
  if (!map) return [`This file has no map ${other.map} to compare with.`];
  if (scene.clip !== sceneOf().clip) {
    return [`${sceneName(scene)} has other frames than ${sceneName(sceneOf())}, so they cannot be compared.`];
  }
  state.compare = { scene: Number(other.scene), map: map.name, head: validHead(map, other.head) };
  const grids = [currentMap(), map].map((one) => String(state.mode === "reverse" ? one.grid_q : one.grid_k));
  const drawable = [currentMap(), map].every((one) => !["channel", "box"].includes(one.kind));
  if (state.how === "difference" && (grids[0] !== grids[1] || !drawable)) {
    state.how = "side";
    return ["Maps of different grids have no difference; they are shown side by side."];
  }
  return [];
}

const sceneName = (scene) => `${scene.video}, ${scene.run}`;

function say(text) {
  $("problem").hidden = !text;
  $("problem").textContent = text;
}

let remembering = 0;
function remember() {
  clearTimeout(remembering); // browsers limit how often an address may change
  remembering = setTimeout(() => history.replaceState(null, "", addressOf()), 200);
}

function addressOf() {
  const { compare, queries, ...others } = publicState();
  const words = { ...others, queries: queries.join(",") };
  if (compare) words.compare = [compare.scene, compare.map, compare.head].join("|");
  return `#${new URLSearchParams(words)}`;
}

/** Returns the changes that an address asks for. */
function fromAddress(hash) {
  const words = Object.fromEntries(new URLSearchParams(hash.slice(1)));
  for (const key of ["smooth", "rings"]) if (key in words) words[key] = words[key] === "true";
  if (words.queries !== undefined) words.queries = words.queries.split(",").filter(Boolean);
  if (words.compare) {
    const [scene, map, head] = words.compare.split("|");
    words.compare = { scene: Number(scene), map, head };
  }
  return words;
}

// ---- Views ----

/** Returns what the canvases show: one view, two side by side, or one difference. */
function makeViews() {
  const points = preview ? [preview] : state.points;
  const view = makeView(state, points);
  if (!state.compare) return [view];
  const other = makeView(state.compare, points);
  return state.how === "side" ? [view, other] : [differenceOf(view, other)];
}

function makeView({ scene: number, map: name, head }, points) {
  const scene = sceneOf(number), map = mapOf(scene, name);
  const view = {
    scene, map, head, clip: clips[scene.clip], layers: [], marks: [], keys: [], heat: null, boxes: null,
    amounts: null, text: "This file has no map of this network; see \u201cNot in this file\u201d.",
  };
  if (!map) return view;
  try {
    (map.grid_q ? addRows : addField)(view, points);
  } catch (error) {
    if (!(error instanceof PageError)) throw error;
    say(error.message);
    view.text = error.message;
  }
  return view;
}

function addRows(view, points) {
  const { map, head, clip } = view, reverse = state.mode === "reverse";
  const grid = reverse ? map.grid_q : map.grid_k;
  for (const point of points) {
    const query = numberOf(point, map);
    if (query === null || (reverse && point.special !== undefined)) continue;
    const all = reverse ? columnOf(map, head, placeNumber(point, map.grid_k)) : rowOf(map, head, query);
    const values = all.subarray(0, volume(grid));
    const scale = scaleOfRow(map, values);
    view.layers.push({ point, query, values, grid, scale, elsewhere: all[volume(grid)] ?? 0 });
  }
  const active = view.layers.at(-1);
  if (!active) {
    view.text = `${map.name} has no such query.`;
    return;
  }
  view.heat = view.layers.length > 1 ? heatOfTwo(view.layers) : heatOf(active);
  view.keys = strongestOf(active.values);
  const shares = momentShares(active.values, grid[0]);
  view.amounts = frameShares(shares, clip.labels.length).map((share) => ({ value: share, text: percent(share) }));
  const key = active.point.special === undefined ? keyOfQuery(active.query, map) : null;
  view.text = pairwiseText({
    clip, map, head, values: active.values, grid, query: key === null ? null : active.query, reverse,
    name: placeName(active.point, clip, map), elsewhere: active.elsewhere,
  });
  addMarks(view, active, grid);
}

function scaleOfRow(map, values) {
  const positions = map.kind === "local" ? values.reduce((n, v) => n + (v !== 0), 0) || 1 : volume(map.grid_k);
  const top = state.scale === "fixed" ? map.top : Math.max(...rangeOf(values).map(Math.abs));
  return { ...makeScale(map, top, positions), root: state.curve === "root" };
}

function placeName(point, clip, map) {
  if (point.special !== undefined) return `The ${point.special} token`;
  return `Frame ${clip.labels[point.frame][0]}, ${cellText(cellOf(numberOf(point, map), map.grid_q))}`;
}

/** Returns the numbers of the strongest keys, strongest first; none is below the mean. */
function strongestOf(values) {
  const found = [];
  let mean = 0;
  for (const value of values) mean += Math.abs(value) / values.length;
  for (let i = 0; i < values.length; i++) {
    const size = Math.abs(values[i]);
    if (size < mean * (1 - 1e-5) || (found.length === STRONGEST && size <= Math.abs(values[found.at(-1)]))) continue;
    const at = found.findIndex((other) => Math.abs(values[other]) < size);
    found.splice(at < 0 ? found.length : at, 0, i);
    if (found.length > STRONGEST) found.pop();
  }
  return found;
}

function boundsOf([, row, column], [, height, width]) {
  return [row / height, column / width, (row + 1) / height, (column + 1) / width];
}

function addMarks(view, active, grid) {
  const { map, clip } = view, two = view.layers.length > 1;
  const framesOf = (moment, moments) =>
    clip.labels.map((_, f) => f).filter((f) => Math.floor((f * moments) / clip.labels.length) === moment);
  if (state.rings) {
    view.keys.forEach((key, rank) => {
      const cell = cellOf(key, grid), y = (cell[1] + 0.5) / grid[1], x = (cell[2] + 0.5) / grid[2];
      for (const frame of framesOf(cell[0], grid[0])) view.marks.push({ kind: "key", frame, y, x, rank: rank + 1 });
    });
  }
  if (map.kind === "local" && state.mode === "query") {
    const used = [...active.values.keys()].filter((i) => active.values[i]).map((i) => cellOf(i, grid));
    const all = used.map((cell) => boundsOf(cell, grid));
    const pick = (side, most) => most(...all.map((bounds) => bounds[side]));
    const cell = [pick(0, Math.min), pick(1, Math.min), pick(2, Math.max), pick(3, Math.max)];
    for (const moment of new Set(used.map(([t]) => t))) {
      for (const frame of framesOf(moment, grid[0])) view.marks.push({ kind: "window", frame, cell, y: 0, x: 0 });
    }
  }
  view.layers.forEach(({ point }, i) => {
    if (point.special !== undefined) return;
    const own = state.mode === "reverse" ? map.grid_k : map.grid_q;
    const cell = boundsOf(cellOf(placeNumber(point, own), own), own);
    view.marks.push({ kind: "query", ...point, cell, color: two ? `rgb(${HUES[i]})` : "#fff" });
  });
}

function addField(view) {
  const { map, head, clip } = view, grid = map.grid_k, values = fieldOf(map, head);
  const scale = { ...makeFieldScale(map, values), root: state.curve === "root" };
  view.layers = [{ values, grid, scale }];
  view.text = fieldText({ clip, map, head, values });
  const count = clip.labels.length, inMoment = (f) => Math.floor((f * grid[0]) / count);
  if (map.kind === "channel") return;
  if (map.kind === "box") {
    view.boxes = Array.from({ length: grid[0] }, (_, t) => [...values.subarray(4 * t, 4 * t + 4)]);
    const areas = view.boxes.map(([top, left, bottom, right]) => (bottom - top) * (right - left));
    view.amounts = clip.labels.map((_, f) => ({ value: areas[inMoment(f)], text: percent(areas[inMoment(f)]) }));
    return;
  }
  if (map.kind !== "temporal") view.heat = heatOf(view.layers[0]);
  if (map.normalized) {
    const shares = frameShares(momentShares(values, grid[0]), count);
    view.amounts = shares.map((share) => ({ value: share, text: percent(share) }));
    return;
  }
  const each = grid[1] * grid[2];
  const means = Array.from({ length: grid[0] }, (_, t) => values.subarray(t * each, (t + 1) * each).reduce((a, b) => a + b, 0) / each);
  view.amounts = clip.labels.map((_, f) => ({ value: means[inMoment(f)], text: numberText(means[inMoment(f)]) }));
}

/** Returns the difference of two views of one grid, in multiples of the uniform weight if both have one. */
function differenceOf(view, other) {
  const [a, b] = [view.layers.at(-1), other.layers.at(-1)];
  if (!a || !b) return view;
  const values = a.values.map((value, i) => value / a.scale.unit - b.values[i] / b.scale.unit);
  const top = Math.max(...rangeOf(values).map(Math.abs)) || 1;
  const scale = { unit: 1, bottom: -top, top, least: 0, diverging: true, root: state.curve === "root", times: a.scale.unit !== 1 };
  const layer = { ...a, values, scale };
  const amounts = view.amounts.map(({ value }, f) => {
    const change = value - other.amounts[f].value;
    return { value: change, text: view.map.grid_q || view.map.normalized ? `${change > 0 ? "+" : ""}${percent(change).replace("-", "\u2212")}` : numberText(change) };
  });
  const names = [view, other].map(({ map, head, scene }) => `${map.name}${headText(map, head)} of ${scene.run}`);
  return {
    ...view, layers: [layer], heat: heatOf(layer), keys: strongestOf(values), amounts, difference: true,
    marks: view.marks.filter((mark) => mark.kind === "query"),
    text: `Red: more in ${names[0]}; blue: more in ${names[1]}. ${view.text}`,
  };
}

// ---- Drawing ----

let views = [];
let painting = 0;

/** Draws the state: at once, or with the next picture of the screen if `later`. */
function render(later = false) {
  cancelAnimationFrame(painting);
  if (later) {
    painting = requestAnimationFrame(() => render());
    return;
  }
  views = makeViews();
  fillControls();
  const [view] = views, clip = view.clip;
  if (clip.pictures.length) paint();
  const point = preview ?? state.points.at(-1);
  $("sentence").textContent = views.map((one, i) => (views.length > 1 ? `${"AB"[i]}: ${one.text}` : one.text)).join(" ");
  $("reason").textContent = !preview && point?.reason && view.map?.grid_q ? `This query was chosen because ${point.reason}.` : "";
  if (!preview) announce($("sentence").textContent);
  fillTable(view);
  drawLegend(view);
  drawChart(view);
}

function paint() {
  const canvases = [$("frame"), $("frame2")];
  views.forEach((view, i) => {
    fit(canvases[i], view.clip);
    paintFrame(canvases[i], view, state.frame, state);
    canvases[i].setAttribute("aria-label", `${view.clip.labels[state.frame][2]}: ${view.text}`);
    canvases[i].parentElement.lastElementChild.textContent =
      views.length > 1 ? `${"AB"[i]}: ${view.map?.name}${headText(view.map, view.head)} of ${view.scene.run}` : "";
  });
  paintStrip();
}

/** Gives a canvas as many pixels as it has on the screen, at most 2,048 a side. */
function fit(canvas, clip) {
  canvas.style.aspectRatio = `${clip.width} / ${clip.height}`;
  const dense = Math.min((canvas.clientWidth * devicePixelRatio) / clip.width, 2048 / Math.max(clip.width, clip.height));
  const [width, height] = [clip.width, clip.height].map((side) => Math.max(Math.round(side * dense), 1));
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
}

function paintStrip() {
  const amounts = views[0].amounts, most = Math.max(...(amounts ?? []).map(({ value }) => Math.abs(value)), 1e-12);
  const area = $("strip").getBoundingClientRect();
  [...$("strip").children].forEach((item, frame) => {
    const tile = item.firstElementChild, amount = amounts?.[frame];
    tile.setAttribute("aria-current", frame === state.frame);
    tile.tabIndex = frame === state.frame ? 0 : -1;
    tile.setAttribute("aria-label", `${views[0].clip.labels[frame][2]}${amount ? `: ${amount.text}` : ""}`);
    const [bar, text] = tile.querySelectorAll("i, small");
    bar.style.width = `${(62 * Math.abs(amount?.value ?? 0)) / most}%`;
    text.textContent = amount?.text ?? "";
    const box = item.getBoundingClientRect();
    if (box.bottom < Math.max(area.top, -400) || box.top > Math.min(area.bottom, innerHeight + 400)) return;
    tile.querySelectorAll("canvas").forEach((canvas, i) => {
      fit(canvas, views[i].clip);
      paintFrame(canvas, views[i], frame, state);
    });
  });
}

/** Fills what depends on the scene and the map: lists, titles, the strip. */
function fillControls() {
  const scene = sceneOf(), map = currentMap(), clip = currentClip();
  const key = `${state.scene} ${views.length}`;
  if (shown !== key) {
    shown = key;
    makeStrip(clip);
    $("frame2").parentElement.hidden = views.length < 2;
    $("scrub").max = clip.labels.length - 1;
    fillScene(scene);
  }
  $("scene").value = state.scene;
  $("map").value = state.map;
  $("grid").textContent = map?.note ?? "";
  fillHeads(map);
  $("modes").hidden = $("starts").hidden = $("keys").hidden = !map?.grid_q;
  document.querySelector(`input[name=mode][value=${state.mode}]`).checked = true;
  for (const id of ["scale", "curve", "how", "opacity"]) $(id).value = state[id];
  for (const id of ["smooth", "rings"]) $(id).checked = state[id];
  $("scrub").value = state.frame;
  $("scrub").setAttribute("aria-valuetext", clip.labels[state.frame][2]);
  $("time").textContent = clip.labels[state.frame][2];
  $("hint").textContent = !map?.grid_q ? "This map needs no query: it is one picture for the whole clip."
    : state.mode === "query" ? "Click anything in any frame. The colors show where the network looks from there, in every frame."
    : "Click anything in any frame. The colors show from where the network looks at it, in every frame.";
  fillCompare();
}

function option(value, text, disabled = false) {
  const element = new Option(text, value);
  element.disabled = disabled;
  return element;
}

function fillScene(scene) {
  const [name, probability] = scene.classes[0] ?? ["", 0];
  $("title").textContent = scene.video;
  document.title = `${scene.video} - videoattn explorer`;
  const truth = !scene.truth ? "" : scene.truth === name ? ", which is right" : `; it is ${scene.truth}`;
  $("about").textContent = `${scene.run} (${scene.network}) answers ${name}, ${percent(probability)}${truth}`;
  $("scene-label").hidden = index.scenes.length < 2;
  $("scene").replaceChildren(...index.scenes.map((one, i) => option(i, sceneName(one))));
  const groups = [["Attention between places", (map) => map.grid_q], ["Evidence for a class", (map) => map.kind === "cam"],
    ["Gates, poolings and boxes", (map) => !map.grid_q && map.kind !== "cam"]];
  $("map").replaceChildren(...groups.map(([label, fits]) => {
    const group = document.createElement("optgroup");
    group.label = label;
    group.append(...scene.maps.filter(fits).map((map) => option(map.name, map.name)));
    return group;
  }).filter((group) => group.children.length));
  const rows = scene.classes.map(([one, share]) => [one === scene.truth ? `${one} (true)` : one, percent(share)]);
  fillRows($("classes").tBodies[0], rows);
  $("missing").hidden = !scene.missing.length;
  $("missing").lastElementChild.replaceChildren(...scene.missing.map((text) => {
    const item = document.createElement("li");
    item.textContent = text;
    return item;
  }));
  $("starts").replaceChildren(...scene.queries.map((point) => button(point.title, () => set({ points: [point], frame: point.frame }))));
}

function button(text, act) {
  const element = document.createElement("button");
  element.textContent = text;
  element.addEventListener("click", act);
  return element;
}

function fillRows(body, rows) {
  body.replaceChildren(...rows.map((cells) => {
    const row = document.createElement("tr");
    for (const cell of cells) row.insertCell().append(cell);
    return row;
  }));
}

function fillHeads(map) {
  $("head-label").hidden = !map || map.heads === 1;
  if ($("head-label").hidden) return;
  $("head-word").textContent = map.head_word[0].toUpperCase() + map.head_word.slice(1);
  const all = map.head_names ? [] : [option("mean", `mean of ${map.heads} heads`), option("max", "largest of all")];
  $("head").replaceChildren(...all, ...Array.from({ length: map.heads }, (_, h) => option(h, headName(map, h))));
  $("head").value = state.head;
}

/** Returns what the current map can be compared with: other runs, maps, heads, classes. */
function comparisons() {
  return index.scenes.flatMap((scene, number) => scene.maps.flatMap((map) => {
    const heads = map.head_names || (number === state.scene && map.name === state.map)
      ? Array.from({ length: map.heads }, (_, h) => h) : [validHead(map, state.head)];
    const same = ([head]) => number === state.scene && map.name === state.map && String(validHead(map, head)) === String(state.head);
    return heads.filter((head) => !same([head])).map((head) => ({
      choice: { scene: number, map: map.name, head: validHead(map, head) },
      text: `${map.name}${headText(map, head)}${number === state.scene ? "" : ` of ${sceneName(scene)}`}`,
      refused: scene.clip !== sceneOf().clip,
    }));
  }));
}

function fillCompare() {
  const all = comparisons();
  $("compare").replaceChildren(option("", "nothing"), ...all.map(({ choice, text, refused }) =>
    option(JSON.stringify(choice), refused ? `${text} (other frames)` : text, refused)));
  $("compare").value = state.compare ? JSON.stringify(state.compare) : "";
  $("how").disabled = !state.compare;
}

function makeStrip(clip) {
  $("strip").replaceChildren(...clip.labels.map(([number, time], frame) => {
    const item = document.createElement("li"), tile = document.createElement("button");
    const label = document.createElement("span"), strong = document.createElement("b");
    strong.textContent = number;
    label.append(strong, time && ` ${time}`);
    const canvases = views.map(() => document.createElement("canvas"));
    const bar = document.createElement("span");
    bar.className = "bar";
    bar.append(document.createElement("i"), document.createElement("small"));
    tile.append(label, ...canvases, bar);
    tile.addEventListener("click", () => set({ frame })); // by keyboard, or beside the picture
    for (const canvas of canvases) takePointer(canvas, () => frame);
    item.append(tile);
    return item;
  }));
}

function fillTable(view) {
  const layer = view.layers.at(-1), times = layer && (layer.scale.unit !== 1 || layer.scale.times);
  $("unit").textContent = times ? "times uniform" : "response";
  if (!view.map?.grid_q || !layer) return;
  fillRows($("keys").tBodies[0], view.keys.map((key, rank) => {
    const cell = cellOf(key, layer.grid), point = pointOf(key, layer.grid);
    const go = button(`${rank + 1}: ${cellText(cell)}`, () => set({ points: [point], frame: point.frame }));
    return [view.clip.labels[point.frame][0], go, numberText(layer.values[key] / layer.scale.unit) + (times ? "\u00d7" : "")];
  }));
}

function drawLegend({ map, layers, difference }) {
  const scale = layers.at(-1)?.scale;
  $("legend").hidden = !scale || ["channel", "box", "temporal"].includes(map.kind);
  if ($("legend").hidden) return;
  const times = scale.unit !== 1 || scale.times ? "\u00d7" : "";
  $("legend-title").textContent = `${difference ? "difference" : map.grid_q ? (map.normalized ? "attention" : "response") : map.noun}` +
    `${times ? ", in times the uniform weight" : ""}${scale.root ? ", square-root scale" : ""}` +
    (map.grid_q && !difference ? (state.scale === "fixed" ? "; up to the map's maximum" : "; up to this query's maximum") : "");
  const image = new ImageData(256, 1), context = $("ramp").getContext("2d");
  for (let i = 0; i < 256; i++) {
    const value = scale.bottom + (i / 255) * (scale.top - scale.bottom);
    colorInto(image.data, 4 * i, value, scale);
    const alpha = image.data[4 * i + 3] / 255; // over gray, as over a frame
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = image.data[4 * i + c] * alpha + 127 * (1 - alpha);
    image.data[4 * i + 3] = 255;
  }
  for (let y = 0; y < 12; y++) context.putImageData(image, 0, y);
  const ends = [scale.bottom, scale.diverging ? scale.least : (scale.bottom + scale.top) / 2, scale.top];
  const texts = ends.map((value) => numberText(value) + (value ? times : ""));
  $("ramp").setAttribute("aria-label", `Colors from ${texts[0]} to ${texts[2]}`);
  $("ticks").replaceChildren(...texts.map((text) => Object.assign(document.createElement("span"), { textContent: text })));
}

/** Draws a gate of channels as bars, strongest first. */
function drawChart(view) {
  const channels = view.map?.kind === "channel";
  $("chart").hidden = !channels;
  $("strip").hidden = channels;
  if (!channels || !view.layers.length) return;
  const [{ values }] = view.layers, count = view.map.grid_k[2], moments = view.map.grid_k[0];
  const mean = Array.from({ length: count }, (_, c) => Array.from({ length: moments }, (_, t) => values[t * count + c]).reduce((a, b) => a + b, 0) / moments);
  const order = [...mean.keys()].sort((a, b) => mean[b] - mean[a]), [low, high] = rangeOf([...mean, view.map.identity ?? 0]);
  const canvas = $("bars"), width = (canvas.width = canvas.clientWidth), height = (canvas.height = 220);
  const context = canvas.getContext("2d"), y = (value) => height - 4 - ((value - low) / (high - low || 1)) * (height - 8);
  context.fillStyle = getComputedStyle(document.body).getPropertyValue("--accent");
  order.forEach((c, i) => context.fillRect((i * width) / count, y(mean[c]), Math.max(width / count - 0.5, 0.5), height - y(mean[c])));
  const named = (list) => list.map((c) => `${c} (${numberText(mean[c])})`).join(", ");
  $("channels").textContent = `Strongest channels: ${named(order.slice(0, 6))}. Weakest: ${named(order.slice(-6).reverse())}.`;
}

let announced = 0;
/** Gives a screen reader the sentence, at most twice a second. */
function announce(text) {
  clearTimeout(announced);
  announced = setTimeout(() => { $("live").textContent = text; }, 500);
}

// ---- What the reader does ----

/** Returns the point of the clip under a pointer on a canvas that shows a frame. */
function pointAt(canvas, event, frame) {
  const box = canvas.getBoundingClientRect(), inside = (at) => Math.min(Math.max(at, 0), 1 - 1e-9);
  return { frame, y: inside((event.clientY - box.top) / box.height), x: inside((event.clientX - box.left) / box.width) };
}

function takePointer(canvas, frameOf) {
  const point = (event) => pointAt(canvas, event, frameOf());
  const free = () => currentMap()?.grid_q;
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button || !free()) return;
    if (event.pointerType === "mouse") canvas.setPointerCapture(event.pointerId);
    const one = point(event);
    set({ points: event.shiftKey ? [state.points[0], one] : [one], frame: one.frame });
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!free() || event.pointerType === "touch") return;
    if (event.buttons & 1) state.points = [...state.points.slice(0, -1), point(event)];
    else preview = point(event);
    render(true);
  });
  canvas.addEventListener("pointerup", () => remember());
  canvas.addEventListener("pointerleave", () => {
    if (!preview) return;
    preview = null;
    render(true);
  });
  canvas.addEventListener("click", (event) => free() && event.stopPropagation());
}

/** Moves the last query by cells (t, y, x) of the map. */
function move(...steps) {
  const map = currentMap(), point = state.points.at(-1);
  if (!map?.grid_q || point?.special !== undefined) return;
  const cell = cellOf(placeNumber(point, map.grid_q), map.grid_q);
  const next = cell.map((at, axis) => Math.min(Math.max(at + steps[axis], 0), map.grid_q[axis] - 1));
  const moved = pointOf((next[0] * map.grid_q[1] + next[1]) * map.grid_q[2] + next[2], map.grid_q);
  if (!steps[0]) moved.frame = point.frame;
  set({ points: [...state.points.slice(0, -1), moved], frame: moved.frame });
}

function stepMap(step) {
  const names = sceneOf().maps.map((map) => map.name);
  set({ map: names[(names.indexOf(state.map) + step + names.length) % names.length] });
}

function stepHead(step) {
  const choices = [...$("head").options].map((one) => one.value);
  if (choices.length && !$("head-label").hidden) {
    set({ head: choices[(choices.indexOf(String(state.head)) + step + choices.length) % choices.length] });
  }
}

function stepCompare() {
  const all = comparisons().filter(({ refused }) => !refused).map(({ choice }) => choice);
  const at = all.findIndex((choice) => JSON.stringify(choice) === JSON.stringify(state.compare));
  set({ compare: all[at + 1] ?? null });
}

function play() {
  clearInterval(player);
  player = player ? 0 : setInterval(() => set({ frame: (state.frame + 1) % currentClip().labels.length }), 250);
  $("play").textContent = player ? "Pause" : "Play";
}

function toggleTheme() {
  const dark = getComputedStyle(document.documentElement).colorScheme !== "dark";
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  $("theme").textContent = dark ? "Light" : "Dark";
  render();
}

async function copyLink() {
  const address = new URL(addressOf(), location.href).href;
  try {
    await navigator.clipboard.writeText(address);
    $("link").textContent = "Copied";
    setTimeout(() => { $("link").textContent = "Copy link"; }, 1500);
  } catch { // the browser refuses: the reader copies it by hand
    openManual();
    $("address").focus();
    $("address").select();
  }
}

function openManual() {
  $("address").value = new URL(addressOf(), location.href).href;
  if (!$("manual").open) $("manual").showModal();
}

function download(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name.replace(/[^\w.-]+/g, "_");
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

/** Draws the page's picture at twice the size: title, one frame, all frames, legend, sentence. */
function picture() {
  const [view] = views, { clip } = view, columns = Math.min(clip.labels.length, 8), gap = 16;
  const width = 1600, tile = (width - (columns + 1) * gap) / columns, high = (tile * clip.height) / clip.width;
  const rows = Math.ceil(clip.labels.length / columns), big = Math.min((720 * clip.height) / clip.width, 720) * views.length ** 0;
  const canvas = newCanvas(width, 0), context = canvas.getContext("2d"), dark = getComputedStyle(document.body);
  const lines = wrap(context, $("sentence").textContent, width - 2 * gap), top = 110;
  canvas.height = top + big + 40 + views.length * rows * (high + 52) + lines.length * 32 + 40;
  context.fillStyle = dark.backgroundColor;
  context.fillRect(0, 0, width, canvas.height);
  const write = (text, x, y, size, bold = "") => {
    context.fillStyle = dark.color;
    context.font = `${bold} ${size}px system-ui, sans-serif`;
    context.fillText(text, x, y, width - x - gap);
  };
  write($("title").textContent, gap, 42, 32, "600");
  write(`${$("about").textContent} \u00b7 ${state.map}${headText(view.map, state.head)}`, gap, 80, 22);
  const place = (source, x, y, w, h, frame, one) => {
    const copy = newCanvas(Math.round(w), Math.round(h));
    paintFrame(copy, one, frame, state);
    context.drawImage(copy, x, y);
  };
  const wide = (big * clip.width) / clip.height;
  views.forEach((one, i) => place(null, gap + i * (wide + gap), top, wide, big, state.frame, one));
  const beside = gap + views.length * (wide + gap);
  if (!$("legend").hidden && beside + 320 < width) {
    context.drawImage($("ramp"), beside, top + 30, 300, 20);
    wrap(context, $("legend-title").textContent, 300, "18px").forEach((line, i) => write(line, beside, top + 110 + 24 * i, 18));
    [...$("ticks").children].forEach((tick, i) => write(tick.textContent, beside + i * 130, top + 78, 18));
  }
  views.forEach((one, i) => clip.labels.forEach(([number, time], f) => {
    const x = gap + (f % columns) * (tile + gap), y = top + big + 40 + (i * rows + Math.floor(f / columns)) * (high + 52);
    write(`${number}  ${time}  ${one.amounts?.[f].text ?? ""}`, x, y + 18, 16);
    place(null, x, y + 26, tile, high, f, one);
  }));
  lines.forEach((line, i) => write(line, gap, canvas.height - 32 * (lines.length - i), 22));
  return canvas;
}

function wrap(context, text, width, size = "22px") {
  context.font = `${size} system-ui, sans-serif`;
  return text.split(" ").reduce((lines, word) => {
    const longer = lines.length ? `${lines.at(-1)} ${word}` : word;
    if (lines.length && context.measureText(longer).width <= width) lines[lines.length - 1] = longer;
    else lines.push(word);
    return lines;
  }, []);
}

function savePicture() {
  picture().toBlob((blob) => download(blob, `${sceneOf().video}_${state.map}.png`));
}

/** Returns the weights on the screen as a table of comma-separated values. */
function table() {
  const layer = views[0].layers.at(-1);
  const lines = [...layer.values].map((value, i) => {
    const [moment, row, column] = cellOf(i, layer.grid);
    return [currentClip().labels[middleFrame(moment, layer.grid[0])][0], row + 1, column + 1, value, value / layer.scale.unit].join(",");
  });
  return ["frame,row,column,weight,times_uniform", ...lines, ""].join("\n");
}

function saveTable() {
  if (views[0].layers.length) download(new Blob([table()], { type: "text/csv" }), `${sceneOf().video}_${state.map}.csv`);
}

const ACTS = {
  ArrowLeft: () => move(0, 0, -1), ArrowRight: () => move(0, 0, 1),
  ArrowUp: () => move(0, -1, 0), ArrowDown: () => move(0, 1, 0),
  PageUp: () => move(-1, 0, 0), PageDown: () => move(1, 0, 0),
  Home: () => set({ frame: 0 }), End: () => set({ frame: Infinity }),
  " ": play, "[": () => stepMap(-1), "]": () => stepMap(1), ",": () => stepHead(-1), ".": () => stepHead(1),
  m: () => set({ head: "mean" }), r: () => set({ mode: state.mode === "query" ? "reverse" : "query" }),
  c: stepCompare, s: savePicture, l: copyLink, "?": openManual,
  Escape: () => set({ points: state.points.slice(-1) }),
};

function onKey(event) {
  const own = event.target.closest("input, select, textarea, dialog");
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key, act = ACTS[key];
  if (!act || own || event.ctrlKey || event.metaKey || event.altKey) return;
  if (key === " " && event.target.closest("button, summary")) return; // presses it
  event.preventDefault();
  const inStrip = $("strip").contains(document.activeElement);
  act();
  if (inStrip) $("strip").children[state.frame].firstElementChild.focus();
}

function listen() {
  for (const id of ["map", "head", "scale", "curve", "how", "opacity"]) {
    $(id).addEventListener("input", () => set({ [id]: $(id).value }));
  }
  for (const id of ["smooth", "rings"]) $(id).addEventListener("input", () => set({ [id]: $(id).checked }));
  $("scene").addEventListener("input", () => set({ scene: Number($("scene").value) }));
  $("scrub").addEventListener("input", () => set({ frame: $("scrub").value }));
  $("compare").addEventListener("input", () => set({ compare: $("compare").value ? JSON.parse($("compare").value) : null }));
  for (const radio of document.querySelectorAll("input[name=mode]")) {
    radio.addEventListener("input", () => set({ mode: radio.value }));
  }
  const acts = { play, theme: toggleTheme, help: openManual, link: copyLink, save: savePicture, csv: saveTable };
  for (const [id, act] of Object.entries(acts)) $(id).addEventListener("click", act);
  $("back").addEventListener("click", () => set({ frame: state.frame - 1 }));
  $("forward").addEventListener("click", () => set({ frame: state.frame + 1 }));
  for (const id of ["frame", "frame2"]) takePointer($(id), () => state.frame);
  document.addEventListener("keydown", onKey);
  $("strip").addEventListener("scroll", () => render(true));
  addEventListener("scroll", () => render(true));
  addEventListener("resize", () => render(true));
  addEventListener("hashchange", () => set(fromAddress(location.hash)));
}

/** Decodes the frames of all clips. */
function loadPictures() {
  return Promise.all(clips.map(async (clip) => {
    const bytes = readBlob(clip.blob, "The clip's frames");
    let at = 0;
    const blobs = clip.sizes.map((size) => new Blob([bytes.subarray(at, (at += size))], { type: "image/webp" }));
    clip.pictures = await Promise.all(blobs.map((blob) => createImageBitmap(blob)));
  }));
}

async function start() {
  fillRows($("manual-keys"), KEYS);
  listen();
  set(fromAddress(location.hash));
  try {
    await loadPictures();
  } catch (error) {
    say(error instanceof PageError ? error.message : `The frames cannot be drawn: ${error.message}`);
  }
  render();
}

// For tests and scripts. Rows and heat are Float32Arrays over places in the order t, y, x.
window.videoattn = {
  maps: () => sceneOf().maps.map(({ name, kind, grid_q, grid_k, heads, special }) =>
    ({ name, kind, grid_q, grid_k, heads, special: special ?? [] })),
  row: (name, head, query) => rowOf(known(name), head, query).slice(0, volume(known(name).grid_k)),
  column: (name, head, key) => columnOf(known(name), head, key),
  heat: (frame) => {
    const { values, grid } = makeView(state, state.points).layers.at(-1);
    const moment = Math.floor((frame * grid[0]) / currentClip().labels.length), each = grid[1] * grid[2];
    return values.slice(moment * each, (moment + 1) * each);
  },
  state: publicState,
  set,
  picture: () => picture().toDataURL(),
  table,
  ready: null,
};

function known(name) {
  const map = mapOf(sceneOf(), name);
  if (!map) throw new PageError(`There is no map ${name}; there are ${sceneOf().maps.map((one) => one.name).join(", ")}.`);
  return map;
}

window.videoattn.ready = start();
