// Numbers and sentences; the sentences are those of explain/words.py.

/** Formats a number with three digits, or with two and a power of ten: 0.123, 4.2, 2.9e4. */
function numberText(value) {
  const rounded = Number(value.toPrecision(3)), power = Number(rounded.toExponential().split("e")[1]);
  if (power >= -4 && power < 3) return String(rounded).replaceAll("-", "\u2212");
  return value.toExponential(1).replace("+", "").replaceAll("-", "\u2212");
}

const percent = (share) => (Number.isFinite(share) ? `${(100 * share).toFixed(0)} %` : "unknown");

/** Returns "frame 40", or "frames 40 to 52" for a moment that covers several. */
function momentText(clip, moment, moments) {
  const count = clip.labels.length;
  const covered = clip.labels.filter((_, f) => Math.floor((f * moments) / count) === moment);
  const [first, last] = [covered[0][0], covered.at(-1)[0]];
  return first === last ? `frame ${first}` : `frames ${first} to ${last}`;
}

function cellOf(number, [, height, width]) {
  return [Math.floor(number / (height * width)), Math.floor(number / width) % height, number % width];
}

const cellText = ([, y, x]) => `row ${y + 1}, column ${x + 1}`;

/** Returns each moment's share of the summed absolute values. */
function momentShares(values, moments) {
  const each = values.length / moments;
  const masses = Array.from({ length: moments }, (_, moment) => {
    let mass = 0;
    for (let i = moment * each; i < (moment + 1) * each; i++) mass += Math.abs(values[i]);
    return mass;
  });
  const total = masses.reduce((sum, mass) => sum + mass, 0);
  return masses.map((mass) => (total ? mass / total : 1 / moments));
}

/** Returns the share of each frame: frames that one moment covers share its weight equally. */
function frameShares(shares, numFrames) {
  const cells = Array.from({ length: numFrames }, (_, f) => Math.floor((f * shares.length) / numFrames));
  const counts = shares.map((_, moment) => cells.filter((cell) => cell === moment).length);
  return cells.map((cell) => shares[cell] / counts[cell]);
}

const indexOfMost = (values, by = Math.abs) =>
  values.reduce((best, value, i) => (by(value) > by(values[best]) ? i : best), 0);

/** Says what a query looks at, or with `reverse` from where a place is looked at. */
function pairwiseText({ clip, map, head, values, grid, query, name, elsewhere, reverse }) {
  const shares = momentShares(values, grid[0]), most = indexOfMost(shares);
  const peak = indexOfMost(values), cell = cellOf(peak, grid);
  const visible = map.kind === "local" ? values.reduce((n, v) => n + (v !== 0), 0) : values.length;
  const when = momentText(clip, most, grid[0]), share = percent(shares[most]);
  const where = `${cellText(cell)} of ${momentText(clip, cell[0], grid[0])}`;
  const who = `${name} of ${map.name}${headText(map, head)}`;
  if (reverse) {
    const unit = volume(map.grid_k);
    return `${who} is looked at mostly from ${when} (${share} of what it receives), most of all ` +
      `from ${where}` + (map.normalized ? `: ${numberText(values[peak] * unit)} times the uniform weight.` : ".");
  }
  const verb = map.normalized ? "looks mostly at" : "responds mostly to";
  const amount = map.normalized
    ? `${numberText(values[peak] * visible)} times the uniform weight` : `a response of ${numberText(values[peak])}`;
  let text = `${who} ${verb} ${when} (${share}). Its strongest place, ${where}, has ${amount}.`;
  if (query !== null && peak === keyOfQuery(query, map)) text += " That is the query's own place.";
  const sink = arraysOf(map).strongest[peak];
  if (sink >= palette.sink) text += ` It is a sink: ${percent(sink)} of all queries look here.`;
  if (elsewhere) text += ` ${percent(elsewhere)} of its weight falls on keys without a place.`;
  return text;
}

/** Returns the key whose cell holds the center of a query's cell. */
function keyOfQuery(query, { grid_q, grid_k }) {
  const cell = cellOf(query, grid_q).map((at, axis) => Math.floor(((at + 0.5) * grid_k[axis]) / grid_q[axis]));
  return (cell[0] * grid_k[1] + cell[1]) * grid_k[2] + cell[2];
}

function headText(map, head) {
  if (map.heads === 1 || head === "mean") return "";
  return head === "max" ? ` (largest of ${map.heads} ${map.head_words})` : ` (${headName(map, head)})`;
}

const headName = (map, head) => map.head_names?.[head] ?? `${map.head_word} ${Number(head) + 1}`;

/** Says where the values of a map without a query are largest. */
function fieldText({ clip, map, head, values }) {
  const grid = map.grid_k, peak = indexOfMost(values, (value) => value), cell = cellOf(peak, grid);
  const [low, high] = rangeOf(values), who = `${map.name}${headText(map, head)}`;
  if (map.kind === "channel") return `${who}: ${map.description}. From ${numberText(low)} to ${numberText(high)}.`;
  if (map.kind === "box") return `${who}: the bright part of each frame is what the local branch sees.`;
  const when = momentText(clip, cell[0], grid[0]);
  const where = map.kind === "temporal" ? when : `${cellText(cell)} of ${when}`;
  const amount = map.normalized
    ? `${numberText(high * values.length)} times the uniform weight` : numberText(high);
  return `${map.description}: largest at ${where} (${amount}).`;
}
