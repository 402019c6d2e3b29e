// One candidate's dossier: spectrum with identities, zoom, line fit, companion lines, other fibres, numbers, verdicts.

const KMS = 299792.458, UNIT = "flux density";
const around = (wave, pixels) => [wave * 10 ** (-pixels * 1e-4), wave * 10 ** (pixels * 1e-4)];

// The whole coverage, and below it one strip per identity that the line could have, with the lines expected then.
function overview(dossier, spectrum, range) {
  const width = 1240, top = 8, bottom = 238, left = 118, right = width - 12;
  const part = cut(spectrum, range), count = part.wave.length;
  const shown = rebin(part, Math.max(1, Math.round(count / 1100)));
  const near = Array.from(shown.flux).filter((_, i) => Math.abs(Math.log(shown.wave[i] / dossier.line)) < 5e-4);
  const good = shown.flux.filter((_, i) => shown.sigma[i] < 3 * quantile(shown.sigma, 0.5));  // noisy ends may leave
  const y = limits([quantile(good, 0.003), quantile(good, 0.997)], shown.model, near);
  const frame = new Frame(range, y, {left, top, right, bottom});
  const body = [frame.bad(shown.wave, shown.flux), frame.axes({y: UNIT, nx: 12, labels: false}),
                frame.rules(PAGE.sky, "sky"), frame.rules(dossier.lens, "lens"), frame.rules([dossier.line], "hit"),
                frame.band(shown.wave, minus(shown.flux, shown.sigma), plus(shown.flux, shown.sigma), "band"),
                frame.steps(shown.wave, shown.flux, "flux"), frame.line(shown.wave, shown.model, "model"),
                attention(dossier, frame)];
  let at = bottom + 4;
  for (const identity of dossier.identities) {
    body.push(strip(identity, frame, at));
    at += 17;
  }
  const axis = new Frame(range, [0, 1], {left, right, top: at, bottom: at + 4}), labels = svg("g");
  for (const value of ticks(...range, 12)) {
    labels.append(svg("path", {class: "t", d: `M${axis.px(value).toFixed(1)} ${at + 4}v4`}),
                  svg("text", {x: axis.px(value).toFixed(1), y: at + 19}, String(value)));
  }
  labels.append(svg("path", {class: "t", d: `M${left} ${at + 4}H${right}`}),
                svg("text", {x: (left + right) / 2, y: at + 33}, "observed wavelength, vacuum (Å)"));
  const picture = canvas(width, at + 38, "whole spectrum", ...body, labels);
  zoomable(picture, frame, dossier, spectrum);
  return picture;
}

function attention(dossier, frame) {
  if (!dossier.heat) return null;
  const value = bytes(dossier.heat.values), [start, step] = dossier.heat.grid;
  const wave = Float64Array.from(value, (_, i) => 10 ** (start + step * i));
  const strip = new Frame(frame.x, [0, 255], {...frame, top: frame.bottom - 16});
  const inside = Array.from(value, (v, i) => wave[i] >= frame.x[0] && wave[i] <= frame.x[1] ? v : NaN);
  return strip.band(wave, inside.map(v => v * 0), inside, "heat");
}

// Ticks at an identity's lines, labelled where there is room; its rules through the spectrum show under the pointer.
function strip(identity, frame, at) {
  const group = svg("g", {class: `strip of-${identity.kind}`}), base = at + 13;
  const name = svg("text", {class: "e", x: frame.left - 6, y: base - 2}, identity.label);
  if (identity.note) name.append(svg("tspan", {class: "m"}, ` ${identity.note}`));
  group.append(svg("rect", {class: "hover", x: 0, y: at, width: frame.right, height: 17}), name,
               svg("path", {class: "g", d: `M${frame.left} ${base + 2.5}H${frame.right}`}));
  const lines = identity.lines.filter(line => line.wave > frame.x[0] && line.wave < frame.x[1]);
  const labels = svg("g");
  let free = -Infinity;
  for (const line of lines) {
    const x = frame.px(line.wave), strong = line.snr >= 2.5 ? " strong" : "";
    const text = line.snr == null ? line.name : `${line.name} ${line.snr.toFixed(1)}σ`;
    const d = `M${x.toFixed(1)} ${at + 3}V${base + 2}`;
    const tick = svg("path", {class: `tick${line.self ? " self" : strong}`, d});
    tick.append(svg("title", {}, `${text}, ${line.wave.toFixed(1)} Å`));
    group.append(tick);
    if (line.self || x < free || x + 6 * text.length > frame.right + 8) continue;
    labels.append(svg("text", {class: `s tiny halo${strong}`, x: (x + 3).toFixed(1), y: base - 1.5}, text));
    free = x + 6 + 5.6 * text.length;
  }
  group.append(labels, frame.rules(lines.map(line => line.wave), "rules") || "");
  return group;
}

// Dragging over the spectrum shows that range, a double click all of it.
function zoomable(picture, frame, dossier, spectrum) {
  const replace = range => picture.replaceWith(overview(dossier, spectrum, range));
  const place = event => {
    const box = picture.getBoundingClientRect(), x = (event.clientX - box.left) / box.width * 1240;
    const share = (Math.min(Math.max(x, frame.left), frame.right) - frame.left) / (frame.right - frame.left);
    return frame.x[0] + share * (frame.x[1] - frame.x[0]);
  };
  let from = null;
  const mark = svg("rect", {class: "drag", y: frame.top, height: frame.bottom - frame.top, width: 0});
  picture.append(mark);
  picture.addEventListener("pointerdown", event => { from = place(event); });
  picture.addEventListener("pointermove", event => {
    if (from == null) return;
    const ends = [frame.px(from), frame.px(place(event))].sort((a, b) => a - b);
    mark.setAttribute("x", ends[0]);
    mark.setAttribute("width", ends[1] - ends[0]);
  });
  picture.addEventListener("pointerleave", () => { from = null; mark.setAttribute("width", 0); });
  picture.addEventListener("pointerup", event => {
    if (from == null) return;
    const range = [from, place(event)].sort((a, b) => a - b);
    from = null;
    mark.setAttribute("width", 0);
    if (Math.log10(range[1] / range[0]) > 10e-4) replace(range);
  });
  picture.addEventListener("dblclick", () => replace(whole(spectrum)));
}
const whole = spectrum => [spectrum.wave[0], spectrum.wave[spectrum.wave.length - 1]];

const PANEL = {width: 330, height: 214, box: {left: 36, top: 8, right: 324, bottom: 180}};

function zoom(dossier, spectrum) {
  const part = cut(spectrum, around(dossier.line, PAGE.zoom_px));
  if (part.wave.length < 3) return null;
  const low = minus(part.flux, part.sigma), high = plus(part.flux, part.sigma);
  const frame = new Frame(whole(part), limits(low, high, part.model), PANEL.box);
  return panel(`The line, ± ${PAGE.zoom_px} px`, canvas(PANEL.width, PANEL.height, "zoom on the line",
    frame.bad(part.wave, part.flux), frame.axes({x: "wavelength (Å)", nx: 4}), frame.rules(PAGE.sky, "sky"),
    frame.rules(dossier.lens, "lens"), frame.rules([dossier.line], "hit"), frame.band(part.wave, low, high, "band"),
    frame.steps(part.wave, part.flux, "flux"), frame.line(part.wave, part.model, "model")));
}

// The skew normal and its rivals on the galaxy-subtracted line; below, what the skew normal leaves in units of sigma.
const FITS = [["double", "double peak"], ["oii", "[O II] doublet"], ["gauss", "Gaussian"], ["skew", "skew normal"]];
function fit(dossier) {
  if (!dossier.fit) return null;
  const curves = Object.fromEntries(Object.entries(dossier.fit.curves).map(([name, text]) => [name, halves(text)]));
  const [start, step] = dossier.fit.grid, {residual, sigma} = curves;
  const wave = Float64Array.from(residual, (_, i) => 10 ** (start + step * i));
  const low = minus(residual, sigma), high = plus(residual, sigma);
  const given = FITS.filter(([name]) => curves[name]);
  const x = whole({wave}), frame = new Frame(x, limits(low, high, curves.skew), {...PANEL.box, bottom: 128});
  const pull = Float64Array.from(residual, (value, i) => (value - curves.skew[i]) / sigma[i]);
  const size = Math.max(3.5, ...Array.from(pull).filter(Number.isFinite).map(Math.abs));
  const below = new Frame(x, [-size, size], {...PANEL.box, top: 136});
  const picture = canvas(PANEL.width, PANEL.height, "line fit", frame.bad(wave, residual), frame.axes({labels: false}),
    frame.band(wave, low, high, "band"), frame.steps(wave, residual, "flux"),
    ...given.map(([name]) => frame.line(wave, curves[name], `fit ${name}`)), below.bad(wave, residual),
    below.axes({x: "wavelength (Å)", nx: 4, ny: 2}), below.steps(wave, pull, "flux"),
    svg("text", {class: "s tiny halo", x: 40, y: 145}, "(data − skew normal) / σ"));
  const legend = html("figcaption", {}, ...given.reverse().map(([name, label]) => {
    const worse = dossier.fit.dchi2[name];
    const key = svg("svg", {class: "key", viewBox: "0 0 20 8"}, svg("path", {class: `fit ${name}`, d: "M0 4H20"}));
    return html("span", {}, key, worse == null ? label : `${label}, Δχ² ${worse.toFixed(1)}`);
  }));
  const found = panel("Line fit (galaxy subtracted)", picture);
  found.append(legend);
  return found;
}

// The spectrum at the lines that an identity implies, side by side on one scale.
function companions(dossier, spectrum) {
  const able = dossier.identities.filter(identity => expected(identity, spectrum).length);
  if (!able.length) return null;
  const holder = html("div"), choice = html("select", {"aria-label": "identity"});
  able.forEach((identity, i) => choice.append(html("option", {value: i}, `${identity.label} ${identity.note}`)));
  const rival = able.findIndex(identity => identity.id === "oii");
  choice.value = String(Math.max(rival, 0));
  const show = () => holder.replaceChildren(sidebyside(able[+choice.value], dossier, spectrum));
  choice.addEventListener("change", show);
  show();
  return panel(html("label", {}, "Lines expected if ", choice), holder);
}

const expected = (identity, spectrum) => {
  const [low, high] = whole(spectrum);
  const inside = line => line.wave > low * 1.003 && line.wave < high / 1.003;
  return identity.lines.filter(line => line.panel && !line.self && inside(line));
};

function sidebyside(identity, dossier, spectrum) {
  const lines = expected(identity, spectrum).slice(0, 4), {left, right, top, bottom} = PANEL.box;
  const parts = lines.map(line => cut(spectrum, around(line.wave, 20)));
  for (const part of parts) {  // without a model, the median stands for the continuum
    const base = part.model.some(Number.isFinite) ? part.model : part.flux.map(() => quantile(part.flux, 0.5));
    part.flux = minus(part.flux, base);
  }
  const all = parts.flatMap(part => [minus(part.flux, part.sigma), plus(part.flux, part.sigma)]);
  const values = all.flatMap(curve => Array.from(curve));
  const y = limits([0, quantile(values, 0.005), quantile(values, 0.995)]);
  const wide = (right - left + 8) / lines.length;
  const body = lines.flatMap((line, k) => {
    const part = parts[k], box = {left: left + k * wide, right: left + (k + 1) * wide - 8, top: top + 14, bottom};
    const frame = new Frame(around(line.wave, 20), y, box);
    const axes = frame.axes({nx: 2});
    if (k) axes.querySelectorAll("text.e").forEach(text => text.remove());
    return [frame.bad(part.wave, part.flux), axes, frame.rules([line.wave], "hit"),
            frame.band(part.wave, minus(part.flux, part.sigma), plus(part.flux, part.sigma), "band"),
            frame.steps(part.wave, part.flux, "flux"),
            svg("text", {x: (box.left + box.right) / 2, y: 16, class: line.snr >= 2.5 ? "strong" : null},
                line.snr == null ? line.name : `${line.name} ${line.snr.toFixed(1)}σ`)];
  });
  return canvas(PANEL.width, PANEL.height, `lines expected if ${identity.label}`, ...body,
                svg("text", {x: (left + right) / 2, y: bottom + 29}, "wavelength (Å), ± 20 px; continuum subtracted"));
}

// Other fibres or nights at the same wavelength, one below the other.
function others(dossier) {
  if (!dossier.others || !dossier.others.length) return null;
  const {left, right, top} = PANEL.box, rows = dossier.others, body = [];
  const tall = Math.max((PANEL.box.bottom - top) / rows.length, 30), bottom = top + tall * rows.length;
  rows.forEach((other, k) => {
    const part = cut(unpack(other), around(dossier.line, PAGE.zoom_px));
    const low = minus(part.flux, part.sigma), high = plus(part.flux, part.sigma);
    const frame = new Frame(around(dossier.line, PAGE.zoom_px), limits(low, high),
                            {left, right, top: top + k * tall + 6, bottom: top + (k + 1) * tall});
    body.push(frame.bad(part.wave, part.flux), frame.axes({nx: 4, ny: 2, labels: k === rows.length - 1}),
              frame.rules([dossier.line], "hit"), frame.band(part.wave, low, high, "band"),
              frame.steps(part.wave, part.flux, `flux ${other.kind}`),
              svg("text", {class: "s tiny halo", x: left + 4, y: frame.top + 8}, other.label));
  });
  return panel("Neighbour fibres and repeats", canvas(PANEL.width, bottom + 34, "other spectra", ...body,
    svg("text", {x: (left + right) / 2, y: bottom + 29}, "wavelength (Å)")));
}

const panel = (title, ...content) => html("figure", {}, html("h4", {}, title), ...content);

function numbers(dossier) {
  const groups = new Map();
  dossier.texts.forEach((text, i) => {
    if (text == null) return;
    const {group, label, unit, title} = PAGE.fields[i];
    if (!groups.has(group)) groups.set(group, html("dl", {}, html("div", {class: "group"}, group)));
    const value = /^[°″]/.test(unit) ? text + unit : `${text} ${unit}`.trim();
    groups.get(group).append(html("div", {title}, html("dt", {}, label), " ", html("dd", {}, value)));
  });
  return html("div", {class: "numbers"}, ...groups.values());
}

function verdicts(dossier) {
  const list = html("ul", {class: "verdicts", "aria-label": "cuts"});
  dossier.verdicts.forEach(([passed, value], i) => {
    const text = value == null ? PAGE.cuts[i] : `${PAGE.cuts[i]}: ${value}`;
    list.append(html("li", {class: passed ? "pass" : "fail"}, `${passed ? "✓" : "✗"} ${text}`));
  });
  return list;
}

// Everything below an article's header. `dossier` is its parsed JSON.
function build(dossier) {
  const parts = [];
  if (dossier.spectrum) {
    const spectrum = unpack(dossier.spectrum);
    parts.push(html("div", {class: "overview"}, overview(dossier, spectrum, whole(spectrum))));
    const panels = [zoom(dossier, spectrum), fit(dossier), companions(dossier, spectrum), others(dossier)];
    parts.push(html("div", {class: "panels"}, ...panels));
  } else {
    parts.push(html("p", {class: "note"}, "No usable spectrum at hand; the numbers are from the ledger."));
  }
  parts.push(numbers(dossier), verdicts(dossier));
  return parts;
}
