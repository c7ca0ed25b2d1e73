// Draws the state, and changes it on input.

const COMMANDS = [
  ["click, drag", "choose the query; with Shift a second one"], ["\u2190 \u2191 \u2192 \u2193", "move the query by one place"],
  ["Page Up, Page Down", "move the query in time"], ["Home, End", "first, last frame"], ["Space", "play, pause"],
  ["[ ]", "previous, next map"], [", .", "previous, next head or class"], ["M", "mean of all heads"],
  ["R", "where it looks / who looks here"], ["C", "compare with the next choice, or end the comparison"],
  ["Escape", "one query only"], ["S, L, ?", "save a picture, copy the link, this help"],
];
const FIELDS = ["scene", "map", "head", "frame", "scale", "curve", "opacity", "smooth", "rings", "how"]; // ids of controls
const GROUPS = [
  ["Attention between places", (map) => map.grid_q], ["Evidence for a class", (map) => map.kind === "cam"],
  ["Gates, poolings and boxes", (map) => !map.grid_q && map.kind !== "cam"],
];
let views = [];
let preview = null; // the point under the mouse, drawn instead of the pinned points
let broken = ""; // why the frames cannot be drawn
let made = ""; // what the lists and the strip were made for
const timers = { play: 0, paint: 0, address: 0, voice: 0 };

/** Changes the state, draws it, and returns it. */
function set(changes = {}) {
  preview = null;
  say(change(changes) || broken);
  render();
  clearTimeout(timers.address); // browsers limit how often an address may change
  timers.address = setTimeout(() => history.replaceState(null, "", addressOf()), 200);
  return publicState();
}

function renderSoon() {
  cancelAnimationFrame(timers.paint);
  timers.paint = requestAnimationFrame(render);
}

function render() {
  views = makeViews(preview ? [preview] : state.points);
  const [view] = views, made_for = `${state.scene} ${views.length}`;
  if (made !== made_for) makeScene(view);
  made = made_for;
  fillControls(view);
  if (view.clip.pictures.length) paint();
  $("sentence").textContent = views.map(({ text }, i) => (views.length > 1 ? `${"AB"[i]}: ${text}` : text)).join(" ");
  const { reason } = (!preview && view.map?.grid_q && state.points.at(-1)) || {};
  $("reason").textContent = reason ? `This query was chosen because ${reason}.` : "";
  clearTimeout(timers.voice); // a screen reader hears at most two sentences a second
  if (!preview) timers.voice = setTimeout(() => { $("live").textContent = $("sentence").textContent; }, 500);
}

function paint() {
  views.forEach((view, i) => {
    const canvas = $(`canvas${i}`);
    canvas.setAttribute("aria-label", `${view.clip.labels[state.frame][2]}. ${view.text}`);
    const run = views.at(-1).scene === views[0].scene ? "" : ` of ${view.scene.run}`;
    canvas.nextElementSibling.textContent = views.length > 1 ? `${"AB"[i]}: ${mapText(view.map, view.head)}${run}` : "";
    fit(canvas, view.clip);
    paintFrame(canvas, view, state.frame, state);
  });
  const { amounts, clip } = views[0], most = Math.max(...(amounts ?? []).map(({ value }) => Math.abs(value)), 1e-12);
  const seen = $("strip").getBoundingClientRect(), tiles = [...$("strip").children].map((item) => item.firstElementChild);
  const places = tiles.map((tile) => tile.getBoundingClientRect()); // read all first: writes in between force layouts
  tiles.forEach((tile, frame) => {
    const amount = amounts?.[frame], [bar, text] = tile.lastElementChild.children;
    tile.setAttribute("aria-current", frame === state.frame);
    tile.tabIndex = frame === state.frame ? 0 : -1;
    const shown = views.map(({ amounts: each }) => each?.[frame]?.text).filter(Boolean).join(" | ");
    tile.setAttribute("aria-label", `${clip.labels[frame][2]}${shown && `: ${shown}`}`);
    bar.style.width = `${(60 * Math.abs(amount?.value ?? 0)) / most}%`;
    bar.hidden = views.length > 1; // one bar cannot show two shares
    text.textContent = shown;
    const { top, bottom } = places[frame];
    if (bottom < Math.max(seen.top, 0) || top > Math.min(seen.bottom, innerHeight)) return; // painted when scrolled to
    tile.querySelectorAll("canvas").forEach((canvas, i) => {
      fit(canvas, views[i].clip);
      paintFrame(canvas, views[i], frame, state);
    });
  });
}

/** Gives a canvas as many pixels as it has on the screen, at most 2,048 a side. */
function fit(canvas, { width, height }) {
  const factor = Math.min((canvas.clientWidth * devicePixelRatio) / width, 2048 / Math.max(width, height));
  const size = { width: Math.max(Math.round(width * factor), 1), height: Math.max(Math.round(height * factor), 1) };
  if (canvas.width !== size.width || canvas.height !== size.height) Object.assign(canvas, size);
}

/** Fills the parts that depend on the scene: title, lists, strip. */
function makeScene({ scene, clip }) {
  const [name, probability] = scene.classes[0] ?? ["nothing", NaN];
  $("title").textContent = document.title = scene.video;
  const truth = { [name]: ", which is right" }[scene.truth] ?? (scene.truth ? `, but it is ${scene.truth}` : "");
  $("about").textContent = `${scene.run} (${scene.network}) answers ${name}, ${percent(probability)}${truth}`;
  $("scene").replaceChildren(...index.scenes.map((one, i) => new Option(sceneName(one), i)));
  $("scene").parentElement.hidden = index.scenes.length < 2;
  $("map").replaceChildren(...GROUPS.map(([label, fits]) =>
    element("optgroup", scene.maps.filter(fits).map((map) => new Option(map.name)), { label }),
  ).filter((group) => group.children.length));
  fillRows($("classes").tBodies[0], scene.classes.map(([one, share]) => [one === scene.truth ? `${one} (true)` : one, percent(share)]));
  $("missing").hidden = !scene.missing.length;
  $("missing").lastElementChild.replaceChildren(...scene.missing.map((text) => element("li", text)));
  const start = (title, pointNow) => element("button", title, { onclick: () => set({ points: [pointNow()], frame: pointNow().frame }) });
  const mostLookedAt = () => centerOf(indexOfMost(arraysOf(currentMap()).strongest), currentMap().grid_k);
  $("starts").replaceChildren(...scene.queries.map((point) => start(point.title, () => point)), start("most looked at", mostLookedAt));
  document.body.style.setProperty("--aspect", clip.width / clip.height);
  $("frame").max = clip.labels.length - 1;
  $("canvas1").parentElement.hidden = views.length < 2;
  $("strip").style.setProperty("--columns", columnsOf(clip));
  $("strip").replaceChildren(...clip.labels.map(([number, time], frame) => {
    const canvases = views.map(() => element("canvas"));
    for (const canvas of canvases) takePointer(canvas, () => frame);
    const label = element("span", [element("b", number), ` ${time}`]);
    const bar = element("span", [element("i"), element("small")], { className: "bar" });
    return element("li", element("button", [label, ...canvases, bar], { onclick: () => set({ frame }) })); // by key, too
  }));
}

/** Returns the smallest number of columns that fits all frames on the screen; many frames scroll. */
function columnsOf({ width, height, labels }) {
  const room = { width: $("strip").clientWidth - 20, height: 0.7 * innerHeight }, most = Math.max(Math.floor(room.width / 80), 2);
  const tall = (columns) => Math.ceil(labels.length / columns) * (views.length * (room.width / columns - 20) * (height / width) + 52);
  let columns = 2;
  while (columns < most && tall(columns) > room.height) columns++;
  return columns;
}

/** Fills the parts that depend on the map and the query. */
function fillControls(view) {
  const { map, clip, layers } = view, scale = layers.at(-1)?.scale, time = clip.labels[state.frame][2];
  $("head").parentElement.hidden = !map || map.heads === 1;
  if (map?.heads > 1) {
    const all = map.head_names ? [] : [new Option(`mean of ${map.heads} ${map.head_words}`, "mean"), new Option("largest of all", "max")];
    $("head").replaceChildren(...all, ...Array.from({ length: map.heads }, (_, h) => new Option(headName(map, h), h)));
    $("head-word").textContent = map.head_word;
  }
  fillCompare();
  for (const id of FIELDS) $(id)[$(id).type === "checkbox" ? "checked" : "value"] = state[id];
  $(state.mode).checked = true;
  $("frame").setAttribute("aria-valuetext", time);
  $("time").textContent = time;
  $("grid").textContent = map?.note ?? "";
  for (const id of ["modes", "starts", "keys", "marks"]) $(id).hidden = !map?.grid_q;
  const shows = state.mode === "query" ? "where the network looks from there" : "from where the network looks at it";
  $("hint").textContent = map?.grid_q ? `Click anything in any frame: the colors show ${shows}, in every frame.`
    : map ? "This map needs no query: it is one picture of the whole clip." : "";
  $("legend").hidden = !scale || ["channel", "box", "temporal"].includes(map.kind);
  if (!$("legend").hidden) drawLegend(view, scale);
  $("strip").hidden = map?.kind === "channel";
  $("chart").hidden = !$("strip").hidden;
  if (!$("chart").hidden && layers.length) drawChart(view);
  if (!map?.grid_q || !scale) return;
  const times = scale.unit !== 1 || scale.times ? "\u00d7" : "", { grid, values } = layers.at(-1);
  $("unit").textContent = times ? "times uniform" : "response";
  fillRows($("keys").tBodies[0], view.keys.map((key, rank) => {
    const point = centerOf(key, grid), go = element("button", `${rank + 1}: ${cellText(cellOf(key, grid))}`);
    go.onclick = () => set({ points: [point], frame: point.frame });
    return [clip.labels[point.frame][0], go, numberText(values[key] / scale.unit) + times];
  }));
}

/** Returns the choices for a comparison: other heads or classes, other maps, other runs. */
function comparisons() {
  return index.scenes.flatMap((scene, number) => scene.maps.flatMap((map) => {
    const own = number === state.scene && map.name === state.map;
    const heads = own || map.head_names ? [...(map.head_names ? [] : ["mean"]), ...Array(map.heads).keys()] : [headOf(map, state.head)];
    return [...new Set(heads.map((head) => headOf(map, head)))].filter((head) => !own || head !== state.head).map((head) => ({
      choice: { scene: number, map: map.name, head }, refused: scene.clip !== sceneOf().clip,
      text: `${mapText(map, head)}${number === state.scene ? "" : ` of ${sceneName(scene)}`}`,
    }));
  }));
}

function fillCompare() {
  $("compare").replaceChildren(new Option("nothing", "null"), ...comparisons().map(({ choice, text, refused }) =>
    Object.assign(new Option(text + (refused ? " (other frames)" : ""), JSON.stringify(choice)), { disabled: refused })));
  $("compare").value = JSON.stringify(state.compare);
  $("how").disabled = !state.compare;
}

function drawLegend({ map, difference }, scale) {
  const times = scale.unit !== 1 || scale.times ? "\u00d7" : "";
  const what = difference ? "difference" : map.grid_q ? (map.normalized ? "attention" : "response") : map.noun;
  const end = map.grid_q && !difference ? `, up to ${state.scale === "fixed" ? "the map's" : "this query's"} maximum` : "";
  $("legend-title").textContent = `${what}${times && ", in times the uniform weight"}${end}${scale.root ? ", square-root scale" : ""}`;
  const image = new ImageData(256, 1), { data } = image, context = $("ramp").getContext("2d");
  for (let i = 0; i < 1024; i += 4) {
    colorInto(data, i, shownValue((scale.bottom + (i / 1020) * (scale.top - scale.bottom)) * scale.unit, scale), scale);
    for (let c = i; c < i + 3; c++) data[c] = 127 + (data[c] - 127) * (data[i + 3] / 255); // over gray, as over a frame
    data[i + 3] = 255;
  }
  for (let y = 0; y < 12; y++) context.putImageData(image, 0, y);
  const ends = [scale.bottom, scale.diverging ? scale.least : (scale.bottom + scale.top) / 2, scale.top];
  const texts = ends.map((value) => numberText(value) + (value ? times : ""));
  $("ramp").setAttribute("aria-label", `Colors from ${texts[0]} to ${texts[2]}`);
  $("ticks").replaceChildren(...texts.map((text) => element("span", text)));
}

/** Draws a gate of channels as bars, strongest first: each channel's mean over time. */
function drawChart({ map, layers: [{ values }] }) {
  const [moments, , count] = map.grid_k, means = new Float32Array(count);
  values.forEach((value, i) => { means[i % count] += value / moments; });
  const order = [...means.keys()].sort((a, b) => means[b] - means[a]), [low, high] = rangeOf([0, ...means]);
  const canvas = $("bars"), context = canvas.getContext("2d"), wide = canvas.width / count;
  context.clearRect(0, 0, canvas.width, canvas.height);
  context.fillStyle = getComputedStyle(document.body).getPropertyValue("--accent");
  order.forEach((channel, i) => {
    const [zero, top] = [0, means[channel]].map((value) => canvas.height * (1 - (value - low) / (high - low || 1)));
    context.fillRect(i * wide, Math.min(zero, top), Math.max(wide - 0.5, 0.5), Math.abs(zero - top));
  });
  const named = (some) => some.map((channel) => `${channel} (${numberText(means[channel])})`).join(", ");
  $("channels").textContent = `Strongest channels: ${named(order.slice(0, 6))}. Weakest: ${named(order.slice(-6).reverse())}.`;
}

function takePointer(canvas, frameOf) {
  const active = () => currentMap()?.grid_q, inside = (at) => Math.min(Math.max(at, 0), 1 - 1e-9);
  const pointAt = ({ clientX, clientY }) => {
    const { left, top, width, height } = canvas.getBoundingClientRect();
    return { frame: frameOf(), y: inside((clientY - top) / height), x: inside((clientX - left) / width) };
  };
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button || !active()) return;
    if (event.pointerType === "mouse") canvas.setPointerCapture(event.pointerId);
    const point = pointAt(event);
    set({ points: event.shiftKey ? [state.points[0], point] : [point], frame: point.frame });
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!active() || event.pointerType === "touch") return;
    if (event.buttons & 1) state.points = [...state.points.slice(0, -1), pointAt(event)];
    else preview = pointAt(event);
    renderSoon();
  });
  canvas.addEventListener("pointerup", () => set());
  canvas.addEventListener("pointerleave", () => { preview = null; renderSoon(); });
  canvas.addEventListener("click", (event) => active() && event.stopPropagation()); // not the tile's
}

/** Moves the last query by cells (t, y, x) of the map. */
function move(...steps) {
  const { grid_q: grid } = currentMap() ?? {}, point = state.points.at(-1);
  if (!grid || point.special !== undefined) return;
  const cell = cellOf(cellNumber(point, grid), grid).map((at, axis) => Math.min(Math.max(at + steps[axis], 0), grid[axis] - 1));
  const moved = centerOf(numberOfCell(cell, grid), grid);
  if (!steps[0]) moved.frame = point.frame;
  set({ points: [...state.points.slice(0, -1), moved], frame: moved.frame });
}

/** Chooses the option after (1) or before (-1) the current one, in a circle. */
function step(id, by) {
  const options = [...$(id).querySelectorAll("option:not(:disabled)")].map(({ value }) => value), at = options.indexOf($(id).value);
  if (!$(id).parentElement.hidden) choose(id, options[(at + by + options.length) % options.length]);
}

const choose = (id, value) => set({ [id]: id === "compare" ? JSON.parse(value) : id === "scene" ? Number(value) : value });

function play() {
  clearInterval(timers.play);
  timers.play = timers.play ? 0 : setInterval(() => set({ frame: (state.frame + 1) % clipOf().labels.length }), 250);
  $("play").textContent = timers.play ? "Pause" : "Play";
}

async function copyLink() {
  try {
    await navigator.clipboard.writeText(addressOf());
    $("link").textContent = "Copied";
    setTimeout(() => { $("link").textContent = "Copy link"; }, 1500);
  } catch { // if the browser refuses, the reader copies the link manually
    openManual();
    $("address").select();
  }
}

function openManual() {
  $("address").value = addressOf();
  if (!$("manual").open) $("manual").showModal();
}

function download(blob, end) {
  const href = URL.createObjectURL(blob);
  element("a", "", { href, download: `${sceneOf().video}_${state.map}`.replace(/[^\w.-]+/g, "_") + end }).click();
  setTimeout(() => URL.revokeObjectURL(href), 1000);
}

/** Draws the screen as one picture: title, one frame, legend, all frames, sentence. */
function picture() {
  const { clip } = views[0], gap = 16, width = 1600, columns = Math.min(clip.labels.length, 8), style = getComputedStyle(document.body);
  const shape = clip.height / clip.width, tile = (width - gap) / columns - gap, row = tile * shape + 40;
  const wide = Math.min((width - 380) / views.length, 640 / shape), body = 120 + wide * shape + gap;
  const lines = linesOf($("sentence").textContent, 140), rows = views.length * Math.ceil(clip.labels.length / columns);
  const canvas = newCanvas(width, Math.ceil(body + rows * row + lines.length * 30 + 2 * gap)), context = canvas.getContext("2d");
  context.fillStyle = style.backgroundColor;
  context.fillRect(0, 0, width, canvas.height);
  context.fillStyle = style.color;
  const write = (text, x, y, size) => {
    context.font = `${size}px system-ui, sans-serif`;
    context.fillText(text, x, y, width - x - gap);
  };
  const place = (view, frame, x, y, side) => {
    const copy = newCanvas(Math.round(side), Math.round(side * shape));
    paintFrame(copy, view, frame, state);
    context.drawImage(copy, x, y);
  };
  write($("title").textContent, gap, 44, 34);
  write(`${$("about").textContent} \u00b7 ${$("map").value}`, gap, 84, 22);
  views.forEach((view, i) => {
    place(view, state.frame, gap + i * (wide + gap), 110, wide);
    clip.labels.forEach(([number, time], frame) => {
      const x = gap + (frame % columns) * (tile + gap), y = body + (i * rows / views.length + Math.floor(frame / columns)) * row;
      write(`${number}  ${time}  ${view.amounts?.[frame].text ?? ""}`, x, y + 18, 16);
      place(view, frame, x, y + 26, tile);
    });
  });
  const x = views.length * (wide + gap) + gap;
  if (!$("legend").hidden) context.drawImage($("ramp"), x, 120, 300, 20);
  [...$("ticks").children].forEach(({ textContent }, i) => write(textContent, x + 130 * i, 164, 18));
  linesOf($("legend-title").textContent, 32).forEach((line, i) => write(line, x, 200 + 24 * i, 18));
  lines.forEach((line, i) => write(line, gap, canvas.height - gap - 30 * (lines.length - 1 - i), 22));
  return canvas;
}

/** Breaks a text into lines of at most `length` characters. */
const linesOf = (text, length) => text.match(new RegExp(`.{1,${length}}(\\s|$)|\\S{${length}}`, "g")) ?? [];

/** Returns the weights on the screen as comma-separated values. */
function table() {
  const { values, grid, scale } = views[0].layers.at(-1);
  const lines = [...values].map((value, i) => {
    const [moment, row, column] = cellOf(i, grid), [first] = framesOf(moment, grid[0], clipOf());
    return [clipOf().labels[first][0], row + 1, column + 1, value, value / scale.unit].join(",");
  });
  return ["frame,row,column,weight,times_uniform", ...lines, ""].join("\n");
}

const savePicture = () => picture().toBlob((blob) => download(blob, ".png"));
const saveTable = () => views[0].layers.length && download(new Blob([table()], { type: "text/csv" }), ".csv");

const KEYS = {
  ArrowLeft: () => move(0, 0, -1), ArrowRight: () => move(0, 0, 1), ArrowUp: () => move(0, -1, 0), ArrowDown: () => move(0, 1, 0),
  PageUp: () => move(-1, 0, 0), PageDown: () => move(1, 0, 0), Home: () => set({ frame: 0 }), End: () => set({ frame: 1e9 }),
  " ": play, "[": () => step("map", -1), "]": () => step("map", 1), ",": () => step("head", -1), ".": () => step("head", 1),
  m: () => currentMap()?.head_names || set({ head: "mean" }), r: () => set({ mode: state.mode === "query" ? "reverse" : "query" }),
  c: () => step("compare", 1), s: savePicture, l: copyLink, "?": openManual, Escape: () => set({ points: state.points.slice(-1) }),
};

function onKey(event) {
  const act = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key], { target } = event;
  if (!act || event.ctrlKey || event.metaKey || event.altKey || target.closest("input, select, dialog")) return;
  if (event.key === " " && target.closest("button, summary")) return; // presses it
  event.preventDefault();
  act();
  if ($("strip").contains(target)) $("strip").children[state.frame].firstElementChild.focus();
}

function listen() {
  for (const id of [...FIELDS, "compare"]) {
    $(id).addEventListener("input", ({ target }) => choose(id, target.type === "checkbox" ? target.checked : target.value));
  }
  for (const id of CHOICES.mode) $(id).addEventListener("input", () => set({ mode: id }));
  const clicks = {
    play, theme: () => { toggleTheme(); render(); }, help: openManual, link: copyLink, save: savePicture, csv: saveTable,
    back: () => set({ frame: state.frame - 1 }), forward: () => set({ frame: state.frame + 1 }),
  };
  for (const [id, act] of Object.entries(clicks)) $(id).addEventListener("click", act);
  for (const id of ["canvas0", "canvas1"]) takePointer($(id), () => state.frame);
  document.addEventListener("keydown", onKey);
  $("strip").addEventListener("scroll", renderSoon);
  for (const kind of ["scroll", "resize"]) addEventListener(kind, renderSoon);
  addEventListener("hashchange", () => set(fromAddress()));
}

/** Decodes the frames of all clips. */
async function loadPictures(clip) {
  const bytes = readBlob(clip.blob, "The frames");
  let at = 0;
  const files = clip.sizes.map((size) => new Blob([bytes.subarray(at, (at += size))], { type: "image/webp" }));
  clip.pictures = await Promise.all(files.map((file) => createImageBitmap(file)));
}

async function start() {
  fillRows($("manual-keys"), COMMANDS);
  listen();
  set(fromAddress());
  await Promise.all(clips.map(loadPictures)).catch((error) => say((broken = error.message)));
  render();
}

function known(name) {
  const map = mapOf(sceneOf(), name);
  if (!map) throw new PageError(`There is no map ${name}; choose from ${sceneOf().maps.map((one) => one.name).join(", ")}.`);
  return map;
}

// For tests and scripts. Rows, columns and heat are Float32Arrays over places in the order t, y, x.
window.videoattn = {
  maps: () => sceneOf().maps.map(({ name, kind, grid_q, grid_k, heads, special }) => ({ name, kind, grid_q, grid_k, heads, special })),
  row: (name, head, query) => rowOf(known(name), head, query).slice(0, volume(known(name).grid_k)),
  column: (name, head, key) => columnOf(known(name), head, key),
  heat: (frame) => {
    const { values, grid } = makeView(state, state.points).layers.at(-1), each = grid[1] * grid[2];
    return values.slice(momentOf(frame, grid[0], clipOf()) * each).slice(0, each);
  },
  state: publicState, set, table, picture: () => picture().toDataURL(), ready: start(),
};
