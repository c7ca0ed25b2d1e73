// The maps of this file: base64 chunks -> bytes -> rows. All functions are synchronous: a row takes
// milliseconds, so no part of the page waits for another.

const MOST_DECODED = 256 * 2 ** 20; // bytes of decoded maps that stay in memory

/** An error whose message is shown to the reader. */
class PageError extends Error {}

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let crc = byte;
  for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? 0xedb88320 ^ (crc >>> 1) : crc >>> 1;
  return crc;
});

function crc32(bytes) {
  let crc = -1;
  for (let i = 0; i < bytes.length; i++) crc = CRC_TABLE[(crc ^ bytes[i]) & 255] ^ (crc >>> 8);
  return ~crc >>> 0;
}

const fromBase64 = (text) =>
  Uint8Array.fromBase64 ? Uint8Array.fromBase64(text) : Uint8Array.from(atob(text), (char) => char.charCodeAt(0));

/** Returns the bytes of a blob {chunk, count, bytes, crc}, checked. */
function readBlob(blob, what) {
  const bytes = new Uint8Array(blob.bytes);
  try {
    let at = 0;
    for (let i = 0; i < blob.count; i++) {
      const piece = fromBase64(document.querySelector(`script[data-chunk="${blob.chunk + i}"]`).textContent);
      bytes.set(piece, at);
      at += piece.length;
    }
    if (at === blob.bytes && crc32(bytes) === blob.crc) return bytes;
  } catch {
    // Not base64, too long, or absent: the same problem for the reader.
  }
  throw new PageError(`${what} cannot be read: this file is damaged; write it again, or copy it again`);
}

const HALVES = Float32Array.from({ length: 65536 }, (_, half) => { // float16 numbers by their bits
  const exponent = (half >> 10) & 31, fraction = half & 1023;
  const size = exponent ? (1024 + fraction) * 2 ** (exponent - 25) : fraction * 2 ** -24;
  return half & 0x8000 ? -size : size; // files hold no infinity and no NaN
});
const fromHalf = (halves) => new Float32Array(halves.length).map((_, i) => HALVES[halves[i]]);

const decoded = new Map(); // map of the index -> its arrays, the least recently used first

/** Returns the arrays of a map. Decodes them on first use, or again after they were dropped. */
function arraysOf(map) {
  const arrays = decoded.get(map) ?? decode(map);
  decoded.delete(map);
  decoded.set(map, arrays);
  let total = [...decoded.values()].reduce((sum, { size }) => sum + size, 0);
  for (const [old, { size }] of decoded) {
    if (total <= MOST_DECODED || old === map) break;
    decoded.delete(old);
    total -= size;
  }
  return arrays;
}

function decode(map) {
  const bytes = readBlob(map.blob, `The map ${map.name}`);
  let at = 0;
  const take = (type, length) => {
    const array = new type(bytes.buffer, at, length);
    at += length * type.BYTES_PER_ELEMENT;
    return array;
  };
  const rest = (length) => (map.form.endsWith("16") ? fromHalf(take(Uint16Array, length)) : take(Float32Array, length));
  if (!map.grid_q) {
    const each = volume(map.grid_k), peaks = map.peaks ?? [];
    const values = rest(map.heads * each).map((value, i) => value * (peaks[(i / each) | 0] ?? map.peak));
    return { values, size: 4 * values.length };
  }
  const keys = volume(map.grid_k), allKeys = keys + map.extra;
  const queries = map.heads * (volume(map.grid_q) + map.special.length);
  const arrays = { received: take(Float32Array, keys), strongest: take(Float32Array, keys) };
  if (map.form.startsWith("rows")) {
    arrays.tops = take(Float32Array, queries);
    if (map.extra) arrays.elsewhere = take(Float32Array, queries);
    arrays.rows = map.form === "rows8" ? take(Uint8Array, queries * keys) : rest(queries * keys);
    return { ...arrays, size: arrays.rows.byteLength };
  }
  if (map.rule === "softmax") arrays.logSums = take(Float32Array, queries);
  const counts = [queries, map.heads * allKeys], { width } = map;
  const scales = map.form === "qk8" && counts.map((count) => take(Float32Array, count));
  const scaled = (count, side) => Float32Array.from(take(Int8Array, count * width), (value, i) => value * scales[side][(i / width) | 0]);
  [arrays.q, arrays.k] = counts.map(scales ? scaled : (count) => rest(count * width));
  return { ...arrays, size: 4 * (arrays.q.length + arrays.k.length) };
}

/** Returns the vector of one head; for "mean" or "max" that of all heads, or the largest of each entry. */
function joined(map, head, one) {
  if (head !== "mean" && head !== "max") return one(Number(head));
  const total = one(0);
  for (let h = 1; h < map.heads; h++) {
    one(h).forEach((value, i) => { total[i] = head === "max" ? Math.max(total[i], value) : total[i] + value; });
  }
  return head === "mean" ? total.map((sum) => sum / map.heads) : total;
}

/** Returns one query's weights over the keys of the grid, then one entry for all keys without a place. */
const rowOf = (map, head, query) => joined(map, head, (h) => oneRow(map, arraysOf(map), h, query));

function oneRow(map, arrays, h, query) {
  const keys = volume(map.grid_k), allKeys = keys + map.extra;
  const number = h * (volume(map.grid_q) + map.special.length) + query;
  const row = new Float32Array(keys + (map.extra ? 1 : 0));
  if (arrays.rows) return row.map((_, j) => (j < keys ? stored(map, arrays, number, j) : arrays.elsewhere[number]));
  const logits = new Float32Array(allKeys).map((_, j) => product(map, arrays, number, h * allKeys + j));
  const softmax = map.rule === "softmax", [, top] = rangeOf(logits);
  const weights = logits.map((logit) => (softmax ? Math.exp(logit - top) : ruled(map, logit, allKeys)));
  const sum = softmax ? weights.reduce((total, weight) => total + weight, 0) : 1;
  weights.forEach((weight, j) => { row[Math.min(j, keys)] += weight / sum; });
  return row;
}

/** Returns the weight that each query position of the grid gives to one key: a column of the map. */
function columnOf(map, head, key) {
  const arrays = arraysOf(map), queries = volume(map.grid_q);
  const allQueries = queries + map.special.length, allKeys = volume(map.grid_k) + map.extra;
  return joined(map, head, (h) => new Float32Array(queries).map((_, i) => {
    const number = h * allQueries + i;
    if (arrays.rows) return stored(map, arrays, number, key);
    const logit = product(map, arrays, number, h * allKeys + key);
    return map.rule === "softmax" ? Math.exp(logit - arrays.logSums[number]) : ruled(map, logit, allKeys);
  }));
}

function stored(map, arrays, number, key) {
  const value = arrays.rows[number * volume(map.grid_k) + key];
  return arrays.tops[number] * (map.form === "rows8" ? (value / 255) ** 2 : value);
}

function product(map, arrays, query, key) {
  const { q, k } = arrays, width = map.width;
  let sum = 0;
  for (let c = 0, i = query * width, j = key * width; c < width; c++) sum += q[i + c] * k[j + c];
  return sum * map.scale;
}

/** Applies a rule that needs no other logit of the row. */
function ruled(map, logit, numKeys) {
  if (map.rule === "sigmoid") return 1 / (1 + Math.exp(Math.log(numKeys) - logit));
  return (map.rule === "relu_sum" ? Math.max(logit, 0) : logit) / numKeys;
}

/** Returns the values of a map without a query, (T', H', W'), for one weighting or class. */
function fieldOf(map, head) {
  const { values } = arraysOf(map), size = volume(map.grid_k);
  return joined(map, head, (h) => values.slice(h * size, (h + 1) * size));
}
