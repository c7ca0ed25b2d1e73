// Paints weights as colors over frames. Scales, colors and cells are those of the contact sheets;
// the index holds their numbers.

const [sequential, diverging] = [index.palette.sequential, index.palette.diverging].map(fromBase64);
const palette = { ...index.palette, sequential, diverging };
const HUES = [[255, 153, 51], [51, 204, 255]]; // of the first and the second pinned query

/** Returns the scale of some weights: see explain/render.py. `top` is the largest absolute value. */
function makeScale(map, top, positions) {
  const shown = Math.max(top * positions, palette.least_range);
  if (map.normalized) return { unit: 1 / positions, bottom: 0, top: shown, least: 1 };
  return { unit: 1, bottom: -(top || 1), top: top || 1, least: 0, diverging: true };
}

/** Returns the scale of weights without a query, around their identity value. */
function makeFieldScale(map, values) {
  const [low, high] = rangeOf(values);
  if (map.normalized) return makeScale(map, Math.max(high, -low), volume(map.grid_k));
  const middle = map.identity ?? 0;
  const span = palette.least_span * Math.max(Math.abs(low), Math.abs(high), Math.abs(middle)) || 1;
  if ((low < middle && middle < high) || (low === middle && middle === high)) {
    const reach = Math.max(high - middle, middle - low, span);
    return { unit: 1, bottom: middle - reach, top: middle + reach, least: middle, diverging: true };
  }
  return { unit: 1, bottom: low, top: Math.max(high, low + span), least: low };
}

function rangeOf(values) {
  let low = Infinity, high = -Infinity;
  for (const value of values) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return [low, high];
}

/** Returns the strength of a mark, 0 to 1, for a displayed value. */
function strengthOf(value, scale) {
  const beyond = value - scale.least;
  return Math.min(Math.max((scale.diverging ? Math.abs(beyond) : beyond) / (scale.top - scale.least), 0), 1);
}

/** Returns the displayed value of a weight, in units of the scale; `root` takes roots of distances from its minimum. */
function shownValue(weight, { unit, least, top, root }) {
  const beyond = weight / unit - least, reach = top - least;
  return least + (root ? Math.sign(beyond) * Math.sqrt(Math.abs(beyond) / reach) * reach : beyond);
}

/** Writes the color of a displayed value as four bytes. */
function colorInto(bytes, at, value, scale) {
  const strength = strengthOf(value, scale), position = (value - scale.bottom) / (scale.top - scale.bottom);
  const table = scale.diverging ? palette.diverging : palette.sequential;
  const entry = 3 * Math.round(Math.min(Math.max(position, 0), 1) * (table.length / 3 - 1));
  bytes.set(table.subarray(entry, entry + 3), at);
  bytes[at + 3] = 255 * palette.strongest_alpha * strength ** (scale.diverging ? 1.25 : 0.75);
}

/** Returns one small picture for each moment of a layer {values, grid, scale}, a pixel for a cell. */
const heatOf = ({ values, grid, scale }) =>
  tiles(grid, (bytes, at, cell) => colorInto(bytes, at, shownValue(values[cell], scale), scale));

/** Returns the same for two layers, in two hues. */
function heatOfTwo(layers) {
  return tiles(layers[0].grid, (bytes, at, cell) => {
    const parts = layers.map(({ values, scale }) => strengthOf(shownValue(values[cell], scale), scale));
    const sum = parts[0] + parts[1] || 1;
    for (let c = 0; c < 3; c++) bytes[at + c] = (parts[0] * HUES[0][c] + parts[1] * HUES[1][c]) / sum;
    bytes[at + 3] = 255 * palette.strongest_alpha * Math.max(...parts) ** 0.75;
  });
}

function tiles([moments, height, width], color) {
  return Array.from({ length: moments }, (_, moment) => {
    const canvas = newCanvas(width, height), image = new ImageData(width, height);
    for (let i = 0; i < width * height; i++) color(image.data, 4 * i, moment * width * height + i);
    canvas.getContext("2d").putImageData(image, 0, 0);
    return canvas;
  });
}

const newCanvas = (width, height) => element("canvas", "", { width, height });

/** Returns a frame with reduced color, because strong colors could be mistaken for attention. */
function faded(clip, frame) {
  const canvas = newCanvas(clip.width, clip.height), context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(clip.pictures[frame], 0, 0, clip.width, clip.height);
  const image = context.getImageData(0, 0, clip.width, clip.height), bytes = image.data, keep = palette.saturation;
  for (let i = 0; i < bytes.length; i += 4) {
    const gray = 0.299 * bytes[i] + 0.587 * bytes[i + 1] + 0.114 * bytes[i + 2];
    for (let c = 0; c < 3; c++) bytes[i + c] = gray + keep * (bytes[i + c] - gray);
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

/** Paints a frame of a view on a canvas: the picture, heat over it, a box, and marks. */
function paintFrame(canvas, view, frame, { opacity, smooth }) {
  const { clip, heat, boxes } = view, { width, height } = canvas;
  const context = canvas.getContext("2d"), numFrames = clip.labels.length;
  if (heat) clip.faded[frame] ??= faded(clip, frame);
  context.imageSmoothingEnabled = true;
  context.drawImage(heat ? clip.faded[frame] : clip.pictures[frame], 0, 0, width, height);
  if (heat) {
    Object.assign(context, { globalAlpha: opacity / 100, imageSmoothingEnabled: smooth });
    context.drawImage(heat[Math.floor((frame * heat.length) / numFrames)], 0, 0, width, height);
    context.globalAlpha = 1;
  }
  if (boxes) paintBox(context, boxes[Math.floor((frame * boxes.length) / numFrames)]);
  for (const mark of view.marks) if (mark.frame === frame) paintMark(context, mark);
}

/** Darkens the frame outside a box, which is given in fractions of the frame. All zeros: no box. */
function paintBox(context, [top, left, bottom, right]) {
  const { width, height } = context.canvas;
  Object.assign(context, { fillStyle: "rgba(0, 0, 0, 0.55)", strokeStyle: "#ffd60a", lineWidth: 2 });
  context.beginPath();
  context.rect(0, 0, width, height);
  const box = [left * width, top * height, (right - left) * width, (bottom - top) * height];
  context.rect(...box);
  context.fill("evenodd");
  if (box[2]) context.strokeRect(...box);
}

/** Paints a query (an outlined cell and a ring), a window (dashed), or a strong key (a ring with its rank). */
function paintMark(context, { kind, y, x, box, rank, color = "#fff" }) {
  const { width, height } = context.canvas, large = width > 260;
  for (const [ink, line] of [["#000", 4], [color, 2]]) {
    Object.assign(context, { strokeStyle: ink, fillStyle: ink, lineWidth: large ? line : line * 0.7 });
    context.beginPath();
    if (box) {
      const [top, left, bottom, right] = box;
      context.rect(left * width, top * height, (right - left) * width, (bottom - top) * height);
    }
    if (kind !== "window") {
      const radius = (kind === "query" ? 11 : 9) * (large ? 1 : 0.5);
      context.moveTo(x * width + radius, y * height);
      context.arc(x * width, y * height, radius, 0, 2 * Math.PI);
    }
    context.setLineDash(kind === "window" ? [6, 4] : []);
    context.stroke();
    if (!rank || !large) continue;
    Object.assign(context, { font: "600 11px system-ui, sans-serif", textAlign: "center", textBaseline: "middle" });
    if (ink === "#000") context.strokeText(rank, x * width, y * height);
    else context.fillText(rank, x * width, y * height);
  }
}
