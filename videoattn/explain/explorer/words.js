// Cells, numbers and sentences. The arithmetic is that of explain/render.py, and the sentences are
// those of explain/words.py.

const volume = (grid) => grid[0] * grid[1] * grid[2];

/** Returns the (t, y, x) of a cell of a grid. */
const cellOf = (number, [, height, width]) =>
  [Math.floor(number / (height * width)), Math.floor(number / width) % height, number % width];
const numberOfCell = ([t, y, x], [, height, width]) => (t * height + y) * width + x;
const momentOf = (frame, moments, clip) => Math.floor((frame * moments) / clip.labels.length);

/** Returns the frames that a moment of a map covers. */
const framesOf = (moment, moments, clip) =>
  [...clip.labels.keys()].filter((frame) => momentOf(frame, moments, clip) === moment);

/** Returns the key whose cell holds the center of a query's cell. */
function keyOfQuery(query, { grid_q, grid_k }) {
  return numberOfCell(cellOf(query, grid_q).map((at, i) => Math.floor(((2 * at + 1) * grid_k[i]) / (2 * grid_q[i]))), grid_k);
}

/** Formats a number with three digits, or with two and a power of ten: 0.123, 4.2, 2.9e4. */
function numberText(value) {
  const rounded = Number(value.toPrecision(3)), power = Number(rounded.toExponential().split("e")[1]);
  const text = power >= -4 && power < 3 ? String(rounded) : value.toExponential(1).replace("+", "");
  return text.replaceAll("-", "\u2212");
}

const percent = (share) => (Number.isFinite(share) ? `${(100 * share).toFixed(0)} %`.replace("-", "\u2212") : "unknown");
const cellText = ([, y, x]) => `row ${y + 1}, column ${x + 1}`;

/** Returns "frame 40", or "frames 40 to 52" for a moment that covers several. */
function momentText(moment, moments, clip) {
  const numbers = framesOf(moment, moments, clip).map((frame) => clip.labels[frame][0]);
  return numbers[0] === numbers.at(-1) ? `frame ${numbers[0]}` : `frames ${numbers[0]} to ${numbers.at(-1)}`;
}

/** Returns each moment's share of the summed absolute values. */
function momentShares(values, moments) {
  const each = values.length / moments, masses = new Float64Array(moments);
  values.forEach((value, i) => { masses[Math.floor(i / each)] += Math.abs(value); });
  const total = masses.reduce((sum, mass) => sum + mass, 0);
  return masses.map((mass) => (total ? mass / total : 1 / moments));
}

/** Returns the share of each frame. The frames of a moment share its weight equally. */
function frameShares(values, moments, clip) {
  const shares = momentShares(values, moments);
  const counts = [...shares.keys()].map((moment) => framesOf(moment, moments, clip).length);
  return clip.labels.map((_, frame) => momentOf(frame, moments, clip)).map((moment) => shares[moment] / counts[moment]);
}

/** Returns the index of the value with the largest `size`, by default of the largest value. */
function indexOfMost(values, size = (value) => value) {
  let best = 0;
  for (let i = 1; i < values.length; i++) if (size(values[i]) > size(values[best])) best = i;
  return best;
}

const headName = (map, head) => map.head_names?.[head] ?? `${map.head_word} ${Number(head) + 1}`;

/** Returns a map's name with its head, class or weighting. */
function mapText(map, head) {
  if (map.heads === 1 || head === "mean") return map.name;
  return `${map.name} (${head === "max" ? `largest of ${map.heads} ${map.head_words}` : headName(map, head)})`;
}

/** Returns sentences about where a query looks or, if `reverse`, about the queries that look at a place. */
function rowText({ map, head, clip }, { values, grid, query, elsewhere, name }, reverse) {
  const shares = momentShares(values, grid[0]), most = indexOfMost(shares), peak = indexOfMost(values, Math.abs);
  const cell = cellOf(peak, grid), who = `${name} of ${mapText(map, head)}`;
  const when = momentText(most, grid[0], clip), where = `${cellText(cell)} of ${momentText(cell[0], grid[0], clip)}`;
  const times = (positions) => `${numberText(values[peak] * positions)} times the uniform weight`;
  if (reverse) {
    const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
    const amount = map.normalized ? `${numberText(mean * volume(map.grid_k))} times the uniform weight` : numberText(mean);
    return `${who} receives ${amount} on average, mostly from ${when} (${percent(shares[most])}). The place that looks at it ` +
      `most is ${where}${map.normalized ? `, with ${times(volume(map.grid_k))}` : ""}.`;
  }
  const visible = map.kind === "local" ? values.reduce((n, value) => n + (value !== 0), 0) : values.length;
  const sink = arraysOf(map).strongest[peak];
  return [
    `${who} ${map.normalized ? "looks" : "responds"} mostly ${map.normalized ? "at" : "to"} ${when} (${percent(shares[most])}).`,
    `Its strongest place, ${where}, has ${map.normalized ? times(visible) : `a response of ${numberText(values[peak])}`}.`,
    query < volume(map.grid_q) && peak === keyOfQuery(query, map) ? "That is the query's own place." : "",
    sink >= palette.sink ? `It is a sink: ${percent(sink)} of all queries look here.` : "",
    elsewhere ? `${percent(elsewhere)} of its weight falls on keys without a place.` : "",
  ].filter(Boolean).join(" ");
}

/** Returns a sentence about where the values of a map without a query are largest. */
function fieldText({ map, head, clip }, { values, grid }) {
  const peak = indexOfMost(values), cell = cellOf(peak, grid), when = momentText(cell[0], grid[0], clip);
  const who = `${mapText(map, head)}: ${map.description}`;
  if (map.kind === "box") return `${who}.`;
  const where = { channel: `channel ${cell[2]}`, temporal: when }[map.kind] ?? `${cellText(cell)} of ${when}`;
  const amount = map.normalized ? `${numberText(values[peak] * volume(grid))} times uniform` : numberText(values[peak]);
  return `${who}. It is largest at ${where} (${amount}).`;
}
