// The state of the page, which a link restores.
// `set` is the only function that changes it (except that dragging moves the last point). It repairs
// inconsistent values, and returns a message about them. This file draws nothing.

const clips = index.clips.map((clip) => ({ ...clip, pictures: [], faded: [] }));

// Points are queries as places of the clip, so that they survive a change of the map: {frame, y, x},
// y and x in fractions of the frame, or {special} for a query without a place.
const state = {
  scene: 0, map: "", head: "mean", frame: 0, points: [], mode: "query", compare: null, how: "side",
  scale: "row", curve: "linear", opacity: 100, smooth: true, rings: true,
};
const CHOICES = {
  mode: ["query", "reverse"], how: ["side", "difference"], scale: ["row", "fixed"], curve: ["linear", "root"],
  smooth: [true, false], rings: [true, false],
};

const sceneOf = (number = state.scene) => index.scenes[number];
const clipOf = (scene = sceneOf()) => clips[scene.clip];
const mapOf = (scene, name) => scene.maps.find((map) => map.name === name);
const currentMap = () => mapOf(sceneOf(), state.map);
const sceneName = (scene) => `${scene.video}, ${scene.run}`;

/** Returns the number of the cell of a grid that holds a point. */
function cellNumber({ frame, y, x }, grid) {
  const inside = (at, size) => Math.min(Math.floor(at * size), size - 1);
  return numberOfCell([momentOf(frame, grid[0], clipOf()), inside(y, grid[1]), inside(x, grid[2])], grid);
}

/** Returns the number of a point's query on a map, or null if the map has no such query. */
function queryOf(point, { grid_q, special }) {
  if (point.special === undefined) return volume(grid_q) ? cellNumber(point, grid_q) : null;
  return special.includes(point.special) ? volume(grid_q) + special.indexOf(point.special) : null;
}

/** Returns the center of a cell; its frame is the middle one of those that the cell covers. */
function centerOf(number, grid) {
  const [moment, row, column] = cellOf(number, grid), frames = framesOf(moment, grid[0], clipOf());
  return { frame: frames[(frames.length - 1) >> 1], y: (row + 0.5) / grid[1], x: (column + 0.5) / grid[2] };
}

const pointOf = (query, { grid_q, special }) =>
  query < volume(grid_q) ? centerOf(query, grid_q) : { special: special[query - volume(grid_q)] };

/** Returns the state, with queries as numbers of the current map. */
function publicState() {
  const { points, ...others } = state, map = currentMap();
  const queries = map?.grid_q ? points.map((point) => queryOf(point, map)).filter((query) => query !== null) : [];
  return structuredClone({ ...others, queries });
}

/** Changes the state, and returns problems: invalid parts are replaced or left unchanged. */
function change(changes) {
  const problems = [], { clip } = sceneOf(), first = !state.map;
  if (changes.scene !== undefined) {
    if (sceneOf(changes.scene)) state.scene = Number(changes.scene);
    else problems.push(`This file has no clip number ${changes.scene}.`);
  }
  changeMap(changes, problems);
  for (const [key, allowed] of Object.entries(CHOICES)) {
    if (changes[key] === undefined) continue;
    if (allowed.includes(changes[key])) state[key] = changes[key];
    else problems.push(`${key}: got ${changes[key]}; it may be ${allowed.join(" or ")}.`);
  }
  if (changes.opacity !== undefined) state.opacity = Math.min(Math.max(Number(changes.opacity) || 0, 0), 100);
  changePoints(changes, problems, first || clip !== sceneOf().clip);
  if (changes.frame !== undefined) state.frame = Math.floor(Number(changes.frame)) || 0;
  state.frame = Math.min(Math.max(state.frame, 0), clipOf().labels.length - 1);
  if (changes.compare !== undefined) state.compare = changes.compare;
  if (state.compare) checkCompare(problems);
  return problems.join(" ");
}

function changeMap(changes, problems) {
  const { maps } = sceneOf(), before = state.map && currentMap();
  if (changes.map !== undefined) state.map = String(changes.map);
  if (!currentMap()) {
    const pairwise = maps.filter((map) => map.grid_q);
    // Skips maps in which half of all queries look at one place: they show little.
    const shown = pairwise.findLast((map) => map.sink < 0.5) ?? pairwise.at(-1) ?? maps[0];
    const instead = shown ? `; ${shown.name} is shown` : "";
    if (changes.map !== undefined) problems.push(`This clip has no map ${state.map}${instead}.`);
    state.map = shown?.name ?? "";
  }
  // A class of one map is not a head of another.
  const kept = before === currentMap() || !(before?.head_names || currentMap()?.head_names) ? state.head : "mean";
  const head = headOf(currentMap(), changes.head ?? kept);
  if (changes.head !== undefined && String(head) !== String(changes.head)) {
    problems.push(`${state.map} has no ${currentMap()?.head_word ?? "head"} ${changes.head}.`);
  }
  state.head = head;
}

/** Returns the head if the map has it: "mean", "max" or a number; classes and weightings are numbers. */
function headOf(map, head) {
  const usual = map?.head_names ? 0 : "mean", number = Number(head);
  if (head === "max" && map?.heads > 1 && !map.head_names) return head;
  return head !== "mean" && Number.isInteger(number) && number >= 0 && number < map?.heads ? number : usual;
}

function changePoints(changes, problems, moved) {
  const map = currentMap();
  if (changes.points) state.points = changes.points.slice(-2);
  else if (moved) state.points = sceneOf().queries.slice(0, 1);
  if (moved) state.frame = state.points[0]?.frame ?? 0;
  if (!map?.grid_q) return;
  if (changes.queries) {
    const total = volume(map.grid_q) + map.special.length;
    const fit = changes.queries.map(Number).filter((n) => Number.isInteger(n) && n >= 0 && n < total);
    if (fit.length < changes.queries.length) problems.push(`The queries of ${map.name} are 0 to ${total - 1}.`);
    if (fit.length) state.points = fit.slice(-2).map((query) => pointOf(query, map));
  }
  if (!state.points.some((point) => queryOf(point, map) !== null)) state.points = [pointOf(0, map)];
}

/** Drops an invalid comparison. */
function checkCompare(problems) {
  const { scene: number, map: name, head } = state.compare, scene = sceneOf(number), map = scene && mapOf(scene, name);
  state.compare = map && scene.clip === sceneOf().clip ? { scene: Number(number), map: name, head: headOf(map, head) } : null;
  if (!map) problems.push(`This file has no map ${name} to compare with.`);
  else if (!state.compare) {
    problems.push(`${sceneName(scene)} has other frames than ${sceneName(sceneOf())}, so they cannot be compared.`);
  } else if (state.how === "difference") {
    const both = [currentMap(), map], grid = (one) => String((state.mode === "reverse" && one.grid_q) || one.grid_k);
    if (grid(both[0]) === grid(both[1]) && !both.some(({ kind }) => ["channel", "box"].includes(kind))) return;
    state.how = "side";
    problems.push("Maps of different grids have no difference; they are shown side by side.");
  }
}

/** Returns an address that restores the state: strings as they are, other values as JSON. */
function addressOf() {
  const words = Object.entries(publicState()).map(([key, value]) => [key, typeof value === "string" ? value : JSON.stringify(value)]);
  return new URL(`#${new URLSearchParams(words)}`, location.href).href;
}

/** Returns the changes that an address asks for. */
function fromAddress() {
  const parsed = (text) => { try { return JSON.parse(text); } catch { return text; } };
  return Object.fromEntries([...new URLSearchParams(location.hash.slice(1))].map(([key, value]) => [key, parsed(value)]));
}
