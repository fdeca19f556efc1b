"use strict";
// A trained model, one symbol at a time: read from the bytes of the page, run, made to write, to score and to be looked
// into. It needs the language alone, so that any JavaScript engine runs it; in the page, `worker.js` drives it.
//
// Letters: R rows and C columns of a matrix, H units of a layer, V symbols.

// ---- bytes

const BASE64 = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

function fromBase64(text) {
  const values = new Uint8Array(128);
  for (let i = 0; i < 64; i++) values[BASE64.charCodeAt(i)] = i;
  const padding = text.endsWith("==") ? 2 : text.endsWith("=") ? 1 : 0;
  const bytes = new Uint8Array(text.length / 4 * 3);
  for (let i = 0, at = 0; i < text.length; i += 4) {
    let four = 0;
    for (let k = i; k < i + 4; k++) four = four << 6 | values[text.charCodeAt(k)];
    bytes[at++] = four >> 16;
    bytes[at++] = four >> 8;
    bytes[at++] = four;
  }
  return bytes.subarray(0, bytes.length - padding);
}

function half(bits) {
  const exponent = bits >> 10 & 31, fraction = bits & 1023, sign = bits & 0x8000 ? -1 : 1;
  return sign * (exponent ? (1 + fraction / 1024) * 2 ** (exponent - 15) : fraction * 2 ** -24);
}

/** Reads what `packing.py` wrote, from the first byte to the last; numbers are little-endian. */
class Reader {
  constructor(bytes) {
    this.view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    this.at = 0;
  }

  /** A whole number: each byte of 255 adds 255 and says that it goes on. */
  count() {
    let total = 0, byte;
    do total += byte = this.view.getUint8(this.at++); while (byte === 255);
    return total;
  }

  floats(size, kind) {
    const [width, get] = {
      fp32: [4, at => this.view.getFloat32(at, true)],
      fp16: [2, at => half(this.view.getUint16(at, true))],
      int8: [1, at => this.view.getInt8(at)],
    }[kind];
    const found = Float32Array.from({ length: size }, (_, i) => get(this.at + i * width));
    this.at += size * width;
    return found;
  }
}

// ---- the network

/** A sparse matrix by rows: those of row r have numbers starts[r] to starts[r + 1]. */
class Matrix {
  constructor({ name, rows, cols, block, connections, gates }, reader, kind) {
    Object.assign(this, { name, rows, cols, gates });
    // What is stored is blocks of `block` rows that share a column; a full matrix has no columns.
    const bands = rows / block, stored = connections / block, full = connections === rows * cols;
    const ends = Uint32Array.from({ length: bands }, () => full ? cols : reader.count());
    for (let i = 1; i < bands; i++) ends[i] += ends[i - 1];
    const columns = new Uint32Array(stored);
    for (let band = 0, k = 0; band < bands; band++)
      for (let column = -1; k < ends[band]; k++) columns[k] = column += 1 + (full ? 0 : reader.count());
    const scales = kind === "int8" ? reader.floats(rows, "fp32") : null;
    const values = reader.floats(connections, kind);
    this.starts = new Uint32Array(rows + 1);
    this.columns = new (cols > 65536 ? Uint32Array : Uint16Array)(connections);
    this.values = new Float32Array(connections);
    for (let row = 0, n = 0; row < rows; row++) {
      const band = Math.floor(row / block), scale = scales ? scales[row] : 1;
      for (let k = band ? ends[band - 1] : 0; k < ends[band]; k++, n++) {
        this.columns[n] = columns[k];
        this.values[n] = values[k * block + row % block] * scale;
      }
      this.starts[row + 1] = n;
    }
  }

  /** y += W x */
  addProduct(x, y) {
    const { starts, columns, values, rows } = this;
    for (let row = 0, k = 0; row < rows; row++) {
      const end = starts[row + 1];
      let a = 0, b = 0, c = 0, d = 0, e = 0, f = 0, g = 0, h = 0; // eight sums at once: none waits for another
      for (; k + 7 < end; k += 8) {
        a += values[k] * x[columns[k]];
        b += values[k + 1] * x[columns[k + 1]];
        c += values[k + 2] * x[columns[k + 2]];
        d += values[k + 3] * x[columns[k + 3]];
        e += values[k + 4] * x[columns[k + 4]];
        f += values[k + 5] * x[columns[k + 5]];
        g += values[k + 6] * x[columns[k + 6]];
        h += values[k + 7] * x[columns[k + 7]];
      }
      for (; k < end; k++) a += values[k] * x[columns[k]];
      y[row] += a + b + c + d + e + f + g + h;
    }
  }

  row(number) {
    const dense = new Float64Array(this.cols);
    for (let k = this.starts[number]; k < this.starts[number + 1]; k++) dense[this.columns[k]] = this.values[k];
    return dense;
  }

  /** How many connections there are in each field of a raster over some rows. */
  raster(first, last, most) {
    const height = Math.min(most, last - first), width = Math.min(most, this.cols);
    const counts = new Uint32Array(height * width);
    for (let row = first; row < last; row++) {
      const line = Math.floor((row - first) * height / (last - first)) * width;
      for (let k = this.starts[row]; k < this.starts[row + 1]; k++)
        counts[line + Math.floor(this.columns[k] * width / this.cols)]++;
    }
    return { height, width, counts };
  }
}

const sigmoid = x => 1 / (1 + Math.exp(-x));

// One step of a cell, in place: a = W_ih x + b_ih and m = W_hh h + b_hh, gates in the order in which PyTorch stacks them.
const CELLS = {
  rnn: { states: 1, next(a, m, [h], H) {
    for (let i = 0; i < H; i++) h[i] = Math.tanh(a[i] + m[i]);
  } },
  gru: { states: 1, next(a, m, [h], H) {
    for (let i = 0; i < H; i++) {
      const r = sigmoid(a[i] + m[i]), z = sigmoid(a[H + i] + m[H + i]);
      h[i] = (1 - z) * Math.tanh(a[2 * H + i] + r * m[2 * H + i]) + z * h[i];
    }
  } },
  lstm: { states: 2, next(a, m, [h, c], H) {
    for (let i = 0; i < H; i++) {
      const input = sigmoid(a[i] + m[i]), forget = sigmoid(a[H + i] + m[H + i]);
      c[i] = forget * c[i] + input * Math.tanh(a[2 * H + i] + m[2 * H + i]);
      h[i] = sigmoid(a[3 * H + i] + m[3 * H + i]) * Math.tanh(c[i]);
    }
  } },
};

/** Layer normalisation, with the epsilon of the product. */
function normalised(h, [gain, bias]) {
  const mean = h.reduce((sum, value) => sum + value, 0) / h.length;
  const variance = h.reduce((sum, value) => sum + (value - mean) ** 2, 0) / h.length;
  const scale = 1 / Math.sqrt(variance + 1e-5);
  return h.map((value, i) => (value - mean) * scale * gain[i] + bias[i]);
}

function joined(parts) {
  const whole = new Float64Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}

const ACTIVATIONS = { identity: x => x, relu: x => x > 0 ? x : 0, tanh: Math.tanh };
const CACHED = 1 << 23; // numbers that are kept of products with symbols

class Model {
  constructor(header, base64) {
    const reader = new Reader(fromBase64(base64)), kind = header.weights;
    const matrices = header.matrices.map(matrix => new Matrix(matrix, reader, kind));
    const biases = header.biases.map(size => reader.floats(size, kind === "fp32" ? "fp32" : "fp16"));
    if (reader.at !== reader.view.byteLength) throw new Error("The weights in this file are damaged.");
    this.matrices = matrices.slice();
    this.vocabulary = new Vocabulary(header.vocabulary);
    this.cell = CELLS[header.cell];
    this.activation = ACTIVATIONS[header.activation];
    this.embedding = matrices.shift();
    this.layers = Array.from({ length: header.layers }, () => {
      const [input, recurrent] = matrices.splice(0, 2), [biasIn, biasState] = biases.splice(0, 2);
      const norm = header.norm ? biases.splice(0, 2) : null;
      const a = new Float64Array(input.rows), m = new Float64Array(input.rows);
      return { input, recurrent, biasIn, biasState, norm, a, m };
    });
    this.skip = header.skip;
    if (header.tied) matrices.push(this.embedding);
    this.linears = matrices.map((weight, i) => ({ weight, bias: biases[i], y: new Float64Array(weight.rows) }));
    this.hidden = this.layers[0].recurrent.cols;
    this.known = new Map();
  }

  /** The state before the first symbol; `logits` [V] are those of the symbol that comes next. */
  start() {
    const empty = () => Array.from({ length: this.cell.states }, () => new Float64Array(this.hidden));
    return { layers: this.layers.map(empty), logits: new Float64Array(this.embedding.rows) };
  }

  /** W_ih x + b_ih of the first layer, where x is a symbol. */
  fromSymbol(symbol) {
    const { input, biasIn } = this.layers[0];
    let a = this.known.get(symbol);
    if (!a) {
      if ((this.known.size + 1) * input.rows > CACHED) this.known.clear();
      this.known.set(symbol, a = Float64Array.from(biasIn));
      input.addProduct(this.embedding.row(symbol), a);
    }
    return a;
  }

  /** Let a state read a symbol. */
  step(state, symbol) {
    let x;
    const embedded = this.skip ? this.embedding.row(symbol) : null, all = [];
    for (const [i, { input, recurrent, biasIn, biasState, norm, a, m }] of this.layers.entries()) {
      const states = state.layers[i];
      if (i && this.skip) x = joined([x, embedded]);
      if (i) {
        a.set(biasIn);
        input.addProduct(x, a);
      }
      m.set(biasState);
      recurrent.addProduct(states[0], m);
      this.cell.next(i ? a : this.fromSymbol(symbol), m, states, this.hidden);
      x = norm ? normalised(states[0], norm) : states[0];
      if (this.skip) all.push(x);
    }
    if (this.skip) x = joined(all);
    for (const [i, { weight, bias, y }] of this.linears.entries()) {
      const last = i === this.linears.length - 1, out = last ? state.logits : y;
      out.set(bias);
      weight.addProduct(x, out);
      x = last ? out : out.map(this.activation);
    }
  }
}

// ---- symbols

/** Bytes of UTF-8 to text, one by one: what is unfinished is held back, what is broken becomes U+FFFD. */
class Decoder {
  constructor() {
    this.need = this.code = 0;
    [this.low, this.high] = [0x80, 0xbf];
  }

  push(byte) {
    if (this.need) {
      const fits = byte >= this.low && byte <= this.high;
      [this.low, this.high] = [0x80, 0xbf];
      if (!fits) {
        this.need = 0;
        return "\ufffd" + this.push(byte);
      }
      this.code = this.code << 6 | byte & 0x3f;
      return --this.need ? "" : String.fromCodePoint(this.code);
    }
    if (byte < 0x80) return String.fromCharCode(byte);
    if (byte < 0xc2 || byte > 0xf4) return "\ufffd";
    this.need = byte < 0xe0 ? 1 : byte < 0xf0 ? 2 : 3;
    this.code = byte & 0x3f >> this.need;
    // No longer form than needed, no half of a pair, nothing beyond the last character.
    this.low = byte === 0xe0 ? 0xa0 : byte === 0xf0 ? 0x90 : 0x80;
    this.high = byte === 0xed ? 0x9f : byte === 0xf4 ? 0x8f : 0xbf;
    return "";
  }
}

function toUtf8(character) {
  let code = character.codePointAt(0);
  if (code >= 0xd800 && code < 0xe000) code = 0xfffd;
  if (code < 0x80) return [code];
  const bytes = [];
  let first = 0x40;
  for (; code >= first; code = Math.floor(code / 64), first >>= 1) bytes.unshift(0x80 | code & 0x3f);
  return [0x100 - 2 * first | code, ...bytes];
}

const UNKNOWN = 0;

/** Bytes, or characters, of which symbol 0 stands for all that are not among them. */
class Vocabulary {
  constructor({ kind, characters }) {
    this.bytes = kind === "byte";
    this.characters = this.bytes ? [] : ["<unk>", ...characters];
    this.size = this.bytes ? 256 : this.characters.length;
    this.numbers = new Map(this.characters.map((character, i) => [character, i]).slice(1));
  }

  /** The symbols of each character of a text. */
  encode(text) {
    return Array.from(text, c => this.bytes ? toUtf8(c) : [this.numbers.get(c) ?? UNKNOWN]);
  }

  isUnknown(symbol) {
    return !this.bytes && symbol === UNKNOWN;
  }

  /** What a state reads before it writes: the prompt, or in its place a line end. */
  opening(prompt) {
    const symbols = this.encode(prompt || "\n").flat();
    if (!prompt) return this.isUnknown(symbols[0]) ? [this.size > 1 ? 1 : 0] : symbols;
    const strange = [...new Set(prompt)].filter(c => this.isUnknown(this.encode(c)[0][0]));
    if (strange.length)
      throw new Error(`The model does not know ${strange.slice(0, 5).map(c => JSON.stringify(c)).join(", ")}.`);
    return symbols;
  }

  /** A symbol in words that show, whatever it is. */
  name(symbol) {
    const text = this.bytes ? symbol < 0x80 ? String.fromCharCode(symbol) : "" : this.characters[symbol];
    if (!text) return `byte ${symbol.toString(16).toUpperCase().padStart(2, "0")}`;
    return { " ": "space", "\n": "line end", "\t": "tab", "\r": "return" }[text]
      ?? (/^[\p{L}\p{N}\p{P}\p{S}]+$/u.test(text) ? text
        : `U+${text.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`);
  }
}

// ---- writing

/** Numbers from 0 to 1, the same from the same seed in every browser (sfc32, by Chris Doty-Humphrey). */
class Random {
  constructor(seed) {
    this.words = Uint32Array.of(seed, Math.floor(seed / 2 ** 32), 0x9e3779b9, 1);
    for (let i = 0; i < 15; i++) this.next();
  }

  next() {
    const words = this.words, [a, b, c, d] = words;
    const sum = (a + b + d) >>> 0;
    words.set([b ^ b >>> 9, c + (c << 3), (c << 21 | c >>> 11) + sum, d + 1]);
    return sum / 2 ** 32;
  }
}

/** Which symbols may come next and their probabilities: temperature acts first, then top-k, then top-p. */
function candidates(logits, temperature, topK, topP) {
  let symbols = [...logits.keys()], largest = -Infinity, total = 0, sum = 0, kept = 0;
  const limit = (topP ?? 1) < 1 ? topP : Infinity;
  if (topK || limit < 1) symbols = symbols.sort((a, b) => logits[b] - logits[a] || a - b).slice(0, topK || undefined);
  for (const symbol of symbols) largest = Math.max(largest, logits[symbol]);
  const shares = symbols.map(symbol => Math.exp((logits[symbol] - largest) / temperature));
  for (const share of shares) total += share;
  while (kept < symbols.length && sum < limit * total) sum += shares[kept++];
  return { symbols: symbols.slice(0, kept), shares: shares.slice(0, kept).map(share => share / sum) };
}

/** Cuts a text that comes in pieces before the first of some texts that is complete in it. */
class Ending {
  constructor(stops) {
    Object.assign(this, { stops, held: "", reached: false });
  }

  push(piece) {
    for (const character of piece) {
      this.held += character;
      const complete = this.stops.filter(stop => this.held.endsWith(stop)).map(stop => stop.length);
      if (complete.length) {
        this.reached = true;
        return this.take(this.held.length - Math.max(...complete));
      }
    }
    const begun = stop => {
      let length = Math.min(stop.length - 1, this.held.length);
      while (length && !this.held.endsWith(stop.slice(0, length))) length--;
      return length;
    };
    return this.take(this.held.length - Math.max(0, ...this.stops.map(begun)));
  }

  take(length) {
    const certain = this.held.slice(0, length);
    this.held = this.reached ? "" : this.held.slice(length);
    return certain;
  }
}

/** Continues a prompt, symbol by symbol. */
class Writer {
  constructor(model, prompt, seed) {
    Object.assign(this, { model, state: model.start(), random: new Random(seed), decoder: new Decoder() });
    this.unread = model.vocabulary.opening(prompt).reverse();
  }

  /** Read one more symbol of what it continues; false if it has read all of it. */
  read() {
    if (!this.unread.length) return false;
    this.model.step(this.state, this.unread.pop());
    return true;
  }

  /** Write one symbol; the text that it completes, often none. */
  write({ temperature, topK, topP }) {
    while (this.read());
    const { logits } = this.state, { vocabulary } = this.model;
    if (!vocabulary.bytes) logits[UNKNOWN] = -Infinity;
    if (logits.some(Number.isNaN)) throw new Error("The predictions of this model are not numbers.");
    if (!temperature) [temperature, topK] = [1, 1];
    const { symbols, shares } = candidates(logits, temperature, topK, topP);
    let left = symbols.length > 1 ? this.random.next() : 0, i = 0;
    while (i < symbols.length - 1 && (left -= shares[i]) >= 0) i++;
    this.unread.push(symbols[i]);
    return vocabulary.bytes ? this.decoder.push(symbols[i]) : vocabulary.characters[symbols[i]];
  }
}

// ---- reading

const SHOWN = 5; // likeliest symbols
const CODE_POINTS = 0x110000;

/** Scores a text character by character: each is predicted from all before it, but the first symbol is not. */
class Scorer {
  constructor(model, text) {
    Object.assign(this, { model, state: model.start(), symbols: model.vocabulary.encode(text), at: 0 });
    Object.assign(this, { bits: 0, characters: 0 });
  }

  /** Score one more character: its bits, null if nothing predicts it, and what was likeliest in its place. */
  next() {
    const first = this.at === 0, found = { bits: first ? null : 0, likeliest: [] };
    for (const [i, symbol] of this.symbols[this.at].entries()) {
      if (!first || i) found.bits += this.cost(symbol);
      if (!first && !i) found.likeliest = this.likeliest();
      this.model.step(this.state, symbol);
    }
    this.at++;
    this.bits += found.bits ?? 0;
    this.characters += first ? 0 : 1;
    return found;
  }

  total() {
    const { logits } = this.state, largest = logits.reduce((a, b) => Math.max(a, b));
    return largest + Math.log(logits.reduce((sum, logit) => sum + Math.exp(logit - largest), 0));
  }

  cost(symbol) {
    // A symbol for many characters does not say which: that costs as much as a choice among all others.
    const { size } = this.model.vocabulary, naming = Math.log2(CODE_POINTS - size);
    const bits = (this.total() - this.state.logits[symbol]) / Math.LN2;
    return this.model.vocabulary.isUnknown(symbol) ? bits + naming : bits;
  }

  likeliest() {
    const { logits } = this.state, total = this.total(), best = [];
    for (let symbol = 0; symbol < logits.length; symbol++) {
      if (best.length === SHOWN && logits[symbol] <= logits[best[SHOWN - 1]]) continue;
      let place = best.findIndex(other => logits[symbol] > logits[other]);
      best.splice(place < 0 ? best.length : place, 0, symbol);
      best.length = Math.min(best.length, SHOWN);
    }
    return best.map(symbol => [this.model.vocabulary.name(symbol), Math.exp(logits[symbol] - total)]);
  }
}

/** Reads a text and remembers every unit after each character. */
class Trace {
  constructor(model, text, mostNumbers = 1 << 24) {
    Object.assign(this, { model, state: model.start(), units: model.layers.length * model.hidden, at: 0 });
    this.symbols = model.vocabulary.encode(text).slice(0, Math.max(1, Math.floor(mostNumbers / this.units)));
    this.values = new Float32Array(this.symbols.length * this.units);
  }

  next() {
    for (const symbol of this.symbols[this.at]) this.model.step(this.state, symbol);
    this.state.layers.forEach(([h], i) => this.values.set(h, this.at * this.units + i * this.model.hidden));
    this.at++;
  }

  /** Every unit with its standard deviation over the text, those that vary most first. */
  ranking() {
    const mean = new Float64Array(this.units), square = new Float64Array(this.units);
    this.values.forEach((value, i) => { mean[i % this.units] += value / this.at; });
    this.values.forEach((value, i) => { square[i % this.units] += (value - mean[i % this.units]) ** 2 / this.at; });
    const ranked = Array.from(square, (variance, unit) => [unit, Math.sqrt(variance)]);
    return ranked.sort((a, b) => b[1] - a[1] || a[0] - b[0]);
  }

  unit(number) {
    return Float32Array.from({ length: this.at }, (_, i) => this.values[i * this.units + number]);
  }
}

/** Where the connections are, gate by gate; and how many each symbol keeps in the embedding and the output. */
function connectivity({ matrices, embedding, linears, vocabulary }, most) {
  const gates = matrices.flatMap(matrix => matrix.gates.map((name, i) => {
    const rows = matrix.rows / matrix.gates.length, first = i * rows, last = first + rows;
    const connections = matrix.starts[last] - matrix.starts[first];
    return { name, rows, cols: matrix.cols, connections, ...matrix.raster(first, last, most) };
  }));
  const own = [...new Set([embedding, linears.at(-1).weight])]; // if tied, they are one
  const kept = symbol => own.reduce((sum, { starts }) => sum + starts[symbol + 1] - starts[symbol], 0);
  const symbols = Array.from({ length: embedding.rows }, (_, i) => [vocabulary.name(i), kept(i)]);
  return { gates, symbols, most: own.reduce((sum, { cols }) => sum + cols, 0) };
}
