"use strict";
// Spectra as SVG from packed arrays (report/dossier.py packs them). Nodes are made one by one: no text is ever parsed.

const SVG = document.querySelector("svg").namespaceURI;

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) if (value != null) element.setAttribute(name, value);
  element.append(...children.filter(child => child != null));
  return element;
}
const html = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes = {}, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

// ---- arrays: base64 of little-endian half floats, or of one byte per value
const HALF = Float32Array.from({length: 65536}, (_, bits) => {
  const sign = bits & 0x8000 ? -1 : 1, exponent = bits >> 10 & 31, mantissa = bits & 1023;
  if (exponent === 31) return mantissa ? NaN : sign * Infinity;
  return sign * (exponent ? (1 + mantissa / 1024) * 2 ** (exponent - 15) : mantissa * 2 ** -24);
});
const bytes = text => Uint8Array.from(atob(text), character => character.charCodeAt(0));
const halves = text => {
  const raw = bytes(text);
  return Float32Array.from({length: raw.length / 2}, (_, i) => HALF[raw[2 * i] | raw[2 * i + 1] << 8]);
};
const sigmas = text => Float32Array.from(bytes(text), code => code ? 1e-3 * 2 ** ((code - 1) / 12) : NaN);

// A packed spectrum as {wave, flux, sigma, model}; flux is NaN where sigma is; the model comes at every second pixel.
function unpack(packed) {
  const flux = halves(packed.flux), sigma = sigmas(packed.sigma), [start, step] = packed.grid;
  const model = new Float32Array(flux.length).fill(NaN);
  if (packed.model) {
    const half = halves(packed.model);
    for (let i = 0; i < model.length; i++) {
      const left = half[i >> 1], right = half[(i + 1) >> 1];
      model[i] = i % 2 ? (right === undefined ? left : (left + right) / 2) : left;
    }
  }
  for (let i = 0; i < flux.length; i++) if (Number.isNaN(sigma[i])) flux[i] = NaN;
  return {wave: Float64Array.from(flux, (_, i) => 10 ** (start + step * i)), flux, sigma, model};
}

// Those of a spectrum's pixels that lie in [low, high] Angstrom.
function cut(spectrum, [low, high]) {
  const {wave} = spectrum, n = wave.length;
  let first = 0, last = n;
  while (first < n && wave[first] < low) first++;
  while (last > first && wave[last - 1] > high) last--;
  return Object.fromEntries(Object.entries(spectrum).map(([name, values]) => [name, values.subarray(first, last)]));
}

// Inverse-variance weighted means of `width` pixels; NaN where none of them is usable.
function rebin({wave, flux, sigma, model}, width) {
  const n = Math.floor(wave.length / width);
  const out = {wave: new Float64Array(n), flux: new Float64Array(n), sigma: new Float64Array(n),
               model: new Float64Array(n)};
  for (let k = 0; k < n; k++) {
    let weight = 0, sum = 0;
    for (let i = k * width; i < (k + 1) * width; i++) {
      out.wave[k] += wave[i] / width;
      out.model[k] += model[i] / width;
      if (!Number.isFinite(flux[i] * sigma[i])) continue;
      weight += sigma[i] ** -2;
      sum += flux[i] * sigma[i] ** -2;
    }
    out.flux[k] = weight ? sum / weight : NaN;
    out.sigma[k] = weight ? weight ** -0.5 : NaN;
  }
  return out;
}

const middle = (grid, a, b) => (grid[a] + grid[b]) / 2;
function quantile(values, share) {
  const finite = Array.from(values).filter(Number.isFinite).sort((a, b) => a - b);
  return finite.length ? finite[Math.min(finite.length - 1, Math.floor(share * finite.length))] : NaN;
}

// [low, high] that holds every finite value of the curves, with a margin.
function limits(...curves) {
  let low = Infinity, high = -Infinity;
  for (const curve of curves) for (const value of curve) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  if (low > high) [low, high] = [0, 1];
  return [low - 0.06 * (high - low) - 1e-3, high + 0.1 * (high - low) + 1e-3];
}

function ticks(low, high, number) {
  const raw = (high - low) / number, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map(m => m * power).find(s => s >= raw * 0.999);
  const found = [];
  const first = Math.ceil(low / step - 1e-9), last = Math.floor(high / step + 1e-9);
  for (let i = first; i <= last; i++) found.push(Number((i * step).toPrecision(6)));
  return found;
}

// ---- a plot: data ranges x, y in a box {left, top, right, bottom} of an SVG
class Frame {
  constructor(x, y, box) { Object.assign(this, {x, y, ...box}); }
  px(x) { return this.left + (x - this.x[0]) / (this.x[1] - this.x[0]) * (this.right - this.left); }
  py(y) {
    const inside = Math.min(Math.max(y, this.y[0]), this.y[1]);
    return this.bottom - (inside - this.y[0]) / (this.y[1] - this.y[0]) * (this.bottom - this.top);
  }
  axes({x = "", y = "", nx = 6, ny = 4, labels = true} = {}) {
    const {left, right, top, bottom} = this, group = svg("g");
    for (const value of ticks(...this.y, ny)) {
      const at = this.py(value).toFixed(1);
      group.append(svg("path", {class: "g", d: `M${left} ${at}H${right}`}),
                   svg("text", {class: "e", x: left - 5, y: +at + 3.5}, String(value)));
    }
    if (labels) for (const value of ticks(...this.x, nx)) {
      const at = this.px(value).toFixed(1);
      group.append(svg("path", {class: "t", d: `M${at} ${bottom}v4`}),
                   svg("text", {x: at, y: bottom + 15}, String(value)));
    }
    group.append(svg("path", {class: "t", d: `M${left} ${bottom}H${right}`}));
    if (x) group.append(svg("text", {x: (left + right) / 2, y: bottom + 29}, x));
    const turned = `translate(${left - 34} ${(top + bottom) / 2})rotate(-90)`;
    if (y) group.append(svg("text", {transform: turned}, y));
    return group;
  }
  line(x, y, css) {
    let d = "", pen = "M";
    for (let i = 0; i < x.length; i++) {
      if (!Number.isFinite(y[i])) { pen = "M"; continue; }
      d += `${pen}${this.px(x[i]).toFixed(1)} ${this.py(y[i]).toFixed(1)}`;
      pen = "L";
    }
    return d ? svg("path", {class: css, d}) : null;
  }
  // A histogram line: each pixel as a flat step between the middles to its neighbours.
  steps(x, y, css) {
    let d = "", on = false;
    this.pixels(x, (i, a, b) => {
      if (!Number.isFinite(y[i])) { on = false; return; }
      d += `${on ? "L" : "M"}${a} ${this.py(y[i]).toFixed(1)}H${b}`;
      on = true;
    });
    return d ? svg("path", {class: css, d}) : null;
  }
  band(x, low, high, css) {
    let d = "";
    this.pixels(x, (i, a, b) => {
      if (!Number.isFinite(low[i] + high[i])) return;
      d += `M${a} ${this.py(high[i]).toFixed(1)}H${b}V${this.py(low[i]).toFixed(1)}H${a}z`;
    });
    return d ? svg("path", {class: css, d}) : null;
  }
  pixels(x, visit) {
    const n = x.length;
    for (let i = 0; i < n; i++) {
      const a = i ? middle(x, i - 1, i) : x[0], b = i < n - 1 ? middle(x, i, i + 1) : x[n - 1];
      visit(i, this.px(a).toFixed(1), this.px(b).toFixed(1));
    }
  }
  bad(x, y) {
    const floor = Float64Array.from(y, value => Number.isFinite(value) ? NaN : this.y[0]);
    return this.band(x, floor, floor.map(value => value + this.y[1] - this.y[0]), "bad");
  }
  rules(values, css) {
    const inside = values.filter(value => value > this.x[0] && value < this.x[1]);
    const d = inside.map(value => `M${this.px(value).toFixed(1)} ${this.top}V${this.bottom}`).join("");
    return d ? svg("path", {class: css, d}) : null;
  }
}

const canvas = (width, height, label, ...children) =>
  svg("svg", {viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label}, ...children);
const minus = (a, b) => Float64Array.from(a, (value, i) => value - b[i]);
const plus = (a, b) => Float64Array.from(a, (value, i) => value + b[i]);
