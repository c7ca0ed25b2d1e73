// A view describes the drawing of one map of one clip: {scene, clip, map, head} with
//   layers  {values, grid, scale}, one for each query; for a map without a query, one
//   heat    a small picture for each moment; `boxes`: a box instead
//   marks   rings and outlines over frames;  keys: the strongest cells
//   amounts {value, text} for the bar of each frame;  text: the sentence

const STRONGEST = 10;

/** Returns one view, two views to show side by side, or one view of a difference. */
function makeViews(points) {
  const view = makeView(state, points), other = state.compare && makeView(state.compare, points);
  if (!other) return [view];
  return state.how === "side" ? [view, other] : [differenceOf(view, other)];
}

function makeView({ scene: number, map: name, head }, points) {
  const scene = sceneOf(number), map = mapOf(scene, name), clip = clipOf(scene);
  const view = { scene, clip, map, head, layers: [], heat: null, boxes: null, marks: [], keys: [], amounts: null, text: "" };
  view.text = map ? `${name} has no such query.` : "This file has no map of this network.";
  try {
    if (map?.grid_q) addRows(view, points);
    else if (map) addField(view);
  } catch (error) {
    if (!(error instanceof PageError)) throw error;
    say((view.text = error.message));
  }
  return view;
}

function addRows(view, points) {
  const { map, head, clip } = view, reverse = state.mode === "reverse", grid = reverse ? map.grid_q : map.grid_k;
  for (const point of points) {
    const query = queryOf(point, map), placed = point.special === undefined;
    if (query === null || (reverse && !placed)) continue;
    const all = reverse ? columnOf(map, head, cellNumber(point, map.grid_k)) : rowOf(map, head, query);
    const values = all.subarray(0, volume(grid)), own = reverse ? map.grid_k : map.grid_q;
    const cell = placed && cellOf(cellNumber(point, own), own);
    const name = placed ? `Frame ${clip.labels[point.frame][0]}, ${cellText(cell)}` : `The ${point.special} token`;
    view.layers.push({ values, grid, scale: scaleOfRow(map, values), point, query, elsewhere: all[volume(grid)], name });
    if (placed) view.marks.push({ kind: "query", frame: point.frame, y: point.y, x: point.x, box: boxOf(cell, own) });
  }
  const active = view.layers.at(-1);
  if (!active) return;
  if (view.layers.length > 1) view.marks.forEach((mark, i) => { mark.color = `rgb(${HUES[i]})`; });
  view.heat = view.layers.length > 1 ? heatOfTwo(view.layers) : heatOf(active);
  view.keys = strongestOf(active.values);
  view.amounts = frameShares(active.values, grid[0], clip).map((value) => ({ value, text: percent(value) }));
  view.text = rowText(view, active, reverse);
  if (map.kind === "local" && !reverse) view.marks.unshift(...windowMarks(active, clip));
  if (state.rings) view.marks.unshift(...view.keys.flatMap((key, rank) => keyMarks(key, rank + 1, grid, clip)));
}

function scaleOfRow(map, values) {
  const positions = map.kind === "local" ? values.reduce((n, value) => n + (value !== 0), 0) : volume(map.grid_k);
  const top = state.scale === "fixed" ? map.top : Math.max(...rangeOf(values).map(Math.abs));
  return { ...makeScale(map, top, positions || 1), root: state.curve === "root" };
}

/** Returns the cells with the largest absolute values, largest first; none is below the mean. */
function strongestOf(values) {
  const size = (i) => Math.abs(values[i]);
  const least = values.reduce((sum, value) => sum + Math.abs(value), 0) / values.length * (1 - 1e-5);
  return [...values.keys()].filter((i) => size(i) >= least).sort((a, b) => size(b) - size(a)).slice(0, STRONGEST);
}

/** Returns the edges of a cell in fractions of the frame: top, left, bottom, right. */
const boxOf = ([, row, column], [, height, width]) =>
  [row / height, column / width, (row + 1) / height, (column + 1) / width];

function keyMarks(key, rank, grid, clip) {
  const { y, x } = centerOf(key, grid);
  return framesOf(cellOf(key, grid)[0], grid[0], clip).map((frame) => ({ kind: "key", frame, y, x, rank }));
}

/** Returns the outline of the cells that a query with a window sees. */
function windowMarks({ values, grid }, clip) {
  const cells = [...values.keys()].filter((i) => values[i]).map((i) => cellOf(i, grid));
  const edges = cells.map((cell) => boxOf(cell, grid)), box = [0, 1, 2, 3].map((side) =>
    edges.reduce((edge, one) => (side < 2 ? Math.min : Math.max)(edge, one[side]), side < 2 ? 1 : 0));
  return [...new Set(cells.map(([moment]) => moment))].flatMap((moment) => framesOf(moment, grid[0], clip))
    .map((frame) => ({ kind: "window", frame, box }));
}

function addField(view) {
  const { map, head, clip } = view, values = fieldOf(map, head), grid = map.grid_k;
  const layer = { values, grid, scale: { ...makeFieldScale(map, values), root: state.curve === "root" } };
  view.layers = [layer];
  view.text = fieldText(view, layer);
  if (map.kind === "channel") return;
  const each = grid[1] * grid[2], parts = Array.from({ length: grid[0] }, (_, t) => values.subarray(t * each, (t + 1) * each));
  if (map.kind === "box") view.boxes = parts;
  else if (map.kind !== "temporal") view.heat = heatOf(layer);
  const area = ([top, left, bottom, right]) => (bottom - top) * (right - left);
  const amount = map.kind === "box" ? area : (part) => part.reduce((sum, value) => sum + value, 0) / each;
  const shares = map.normalized ? frameShares(values, grid[0], clip) : null;
  view.amounts = clip.labels.map((_, frame) => {
    const value = shares ? shares[frame] : amount(parts[momentOf(frame, grid[0], clip)]);
    return { value, text: shares || map.kind === "box" ? percent(value) : numberText(value) };
  });
}

/** Returns the difference of two views of one grid, in multiples of the uniform weight if both have one. */
function differenceOf(view, other) {
  const [a, b] = [view.layers.at(-1), other.layers.at(-1)];
  if (!a || !b) return view;
  const values = a.values.map((value, i) => value / a.scale.unit - b.values[i] / b.scale.unit);
  const top = Math.max(...rangeOf(values).map(Math.abs)) || 1, root = state.curve === "root";
  const scale = { unit: 1, bottom: -top, top, least: 0, diverging: true, root, times: a.scale.unit !== 1 };
  const layer = { ...a, values, scale }, shares = view.map.grid_q || view.map.normalized;
  const amounts = view.amounts.map(({ value }, frame) => {
    const more = value - other.amounts[frame].value;
    return { value: more, text: shares ? percent(more) : numberText(more) };
  });
  const [first, second] = [view, other].map((one) => `${mapText(one.map, one.head)} of ${one.scene.run}`);
  return {
    ...view, layers: [layer], heat: heatOf(layer), keys: strongestOf(values), amounts, difference: true,
    marks: view.marks.filter(({ kind }) => kind === "query"),
    text: `Red: more in ${first}. Blue: more in ${second}. ${view.text}`,
  };
}
