"use strict";
// The page of `minibert lens`: reads the data that lens.py put beside it, and draws.
// Text reaches the page only as text (createTextNode, fillText), never as HTML.

const data = JSON.parse(document.getElementById("data").textContent);
const L = data.model.layers, A = data.model.heads, H = data.model.width;
const $ = (id) => document.getElementById(id);

// What the page shows. Layers and heads count from 1, as people do; states from 0.
const view = { text: 0, token: 0, pinned: false, layer: Math.ceil(L / 2), head: 1, unit: "tokens", filter: "",
  least: 0, bare: false, state: L, word: "", ticked: [] };

// ---- Elements, numbers, colours

function element(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}
function shape(tag, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}
function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}
const name = (text, tag = "bdi") => element(tag, { dir: "auto" }, text === "" ? "␣" : text);
// In a sentence, where no element goes: Unicode's marks keep the direction of a token to itself.
const quoted = (text) => `\u2068${text}\u2069`;

function floats(base64) {
  const bytes = atob(base64), buffer = new Uint8Array(bytes.length);
  for (let i = 0; i < bytes.length; i++) buffer[i] = bytes.charCodeAt(i);
  return new Float32Array(buffer.buffer);
}

// The shortest decimal that is this float32 and no other; of a float64, what String gives.
function exact(value) {
  if (value !== Math.fround(value)) return String(value);
  for (let digits = 1; digits < 9; digits++) {
    const decimal = Number(value.toPrecision(digits));
    if (Math.fround(decimal) === value) return String(decimal);
  }
  return String(Number(value.toPrecision(9)));
}
const rounded = (value, digits = 3) => value.toFixed(digits).replace("-", "−");
const percent = (value) => `${Number((100 * value).toPrecision(2))}%`;

const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const channels = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));

// From 0 to 1 to a colour; the square root, since most weights are small.
function scale() {
  const stops = ["--low", "--middle", "--high"].map((stop) => channels(color(stop)));
  return (share) => {
    const place = 2 * Math.sqrt(Math.min(1, Math.max(0, share))), from = place < 1 ? 0 : 1;
    return stops[from].map((c, i) => Math.round(c + (stops[from + 1][i] - c) * (place - from)));
  };
}
// Okabe and Ito's colours, darker where they would not be seen on both papers; then again with dashes.
const HUES = ["#0b78c0", "#d0620a", "#009e73", "#b5649a", "#8a8a00"];
const hue = (n) => ({ stroke: HUES[n % HUES.length], "stroke-dasharray": ["none", "6 3", "2 3"][Math.floor(n / HUES.length) % 3] });

// ---- What the data says

const cached = new Map();
function once(key, compute) {
  if (!cached.has(key)) cached.set(key, compute());
  return cached.get(key);
}
const text = (n = view.text) => data.texts[n];
const states = (n = view.text) => once(`states ${n}`, () => floats(text(n).states));
const heads = (layer) => once(`heads ${view.text} ${layer}`, () => floats(text().attentions[layer - 1]));
const vector = (n, state, token) => {
  const start = (state * text(n).tokens.length + token) * H;
  return states(n).subarray(start, start + H);
};
function dot(a, b) {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += a[i] * b[i];
  return sum;
}
const length = (a) => Math.sqrt(dot(a, a));
const cosine = (a, b) => dot(a, b) / (length(a) * length(b));

// The tokens of each row and column that the head shows: one each, or those of a word.
const groups = () => view.unit === "words" ? text().words : text().tokens.map((label, n) =>
  ({ label, first: n, last: n, added: text().added[n] }));

// Of one head, (groups, groups). To a word it is summed, from a word averaged (Clark et al. 2019).
function weights() {
  const T = text().tokens.length, all = heads(view.layer), start = (view.head - 1) * T * T;
  if (view.unit === "tokens") return all.subarray(start, start + T * T);
  const words = groups(), result = new Float64Array(words.length ** 2);
  words.forEach((to, i) => words.forEach((from, j) => {
    let sum = 0;
    for (let t = to.first; t <= to.last; t++)
      for (let s = from.first; s <= from.last; s++) sum += all[start + t * T + s];
    result[i * words.length + j] = sum / (to.last - to.first + 1);
  }));
  return result;
}

// Which groups are shown, which of them the filter names, and which one has the chosen token.
function shownGroups() {
  const labels = groups(), asked = view.filter.trim().toLowerCase();
  const shown = labels.map((_, n) => n).filter((n) => !(view.bare && labels[n].added));
  const named = new Set(shown.filter((n) => labels[n].label.toLowerCase().includes(asked)));
  const chosen = labels.findIndex(({ first, last }) => first <= view.token && view.token <= last);
  return { labels, shown, named, chosen };
}
const isDrawn = (weight, i, j, { named, chosen }) => weight >= view.least && (named.has(i) || named.has(j)) &&
  (!view.pinned || i === chosen || j === chosen);

// ---- Reading a number exactly, and copying it

const START = $("shown").textContent;
let shown = null;
function show(value, label) {
  shown = value;
  $("shown").replaceChildren(`${label}: `, element("b", {}, value));
}
async function copy(words, told) {
  try {
    await navigator.clipboard.writeText(words);
    $("shown").replaceChildren(`Copied: ${told}`);
  } catch {
    $("shown").replaceChildren("The browser does not let a page copy; mark this yourself: ", element("b", {}, words));
  }
}
function copyShown() {
  if (shown === null) $("shown").textContent = "Nothing is shown yet: point at a number first.";
  else copy(shown, shown);
}
function valueAt(event) {
  const at = event.target.closest?.("[data-value]");
  if (at) show(at.dataset.value, at.dataset.label);
  return at;
}
document.addEventListener("mouseover", valueAt);
document.addEventListener("focusin", valueAt);
document.addEventListener("click", (event) => valueAt(event) && copyShown());
$("copy").addEventListener("click", copyShown);
document.addEventListener("keydown", (event) => {
  if (event.target.matches("input, select") || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "c") copyShown();
  if (event.key === "Escape" && view.pinned) change({ pinned: false });
  if (event.key === "Enter" && event.target.matches("td[data-value], svg [data-value]")) copyShown();
});
for (const button of document.querySelectorAll("[data-copies]"))
  button.addEventListener("click", () => {
    const rows = [...$(button.dataset.copies).rows].map((row) => [...row.cells]
      .filter((cell) => !cell.hasAttribute("data-picture"))
      .map((cell) => cell.dataset.copy ?? cell.dataset.value ?? cell.textContent).join("\t"));
    copy(rows.join("\n"), `${rows.length} rows, with tabs between the columns`);
  });
const cell = (value, label, shownAs = rounded(value)) => element("td",
  { "data-value": exact(value), "data-label": label, "aria-label": exact(value) }, shownAs);

// Buttons in a row, the numbers of a table or the dots of a chart are one stop of the Tab key; arrows go through them.
const STOPS = "button, td[data-value], circle[role]";
function rove(container, columns = () => 1) {
  container.addEventListener("keydown", (event) => {
    const all = [...container.querySelectorAll(STOPS)], at = all.indexOf(document.activeElement);
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns(), ArrowUp: -columns(), Home: -at, End: all.length - 1 - at }[event.key];
    if (at < 0 || step === undefined) return;
    event.preventDefault();
    const next = all[at + step];
    if (next) focusOn(container, next);
  });
}
function focusOn(container, stop) {
  oneStop(container, stop);
  stop.focus();
}
function oneStop(container, stop = container.querySelector(STOPS)) {
  for (const other of container.querySelectorAll(STOPS)) other.setAttribute("tabindex", other === stop ? 0 : -1);
}

// ---- Tokens

const place = (token) => `${quoted(text().tokens[token])} (${token})`;
const wasCut = ({ tokens, whole }) => tokens.length < whole ? `Cut to ${tokens.length} of its ${whole} tokens: the model read no more.` : "";
function drawStrip() {
  $("cut").hidden = wasCut(text()) === "";
  $("cut").textContent = wasCut(text());
  $("strip").replaceChildren(...text().tokens.map((token, n) => element("button", {
    type: "button", class: `${text().added[n] ? "added" : ""} ${text().segments[n] ? "second" : ""}`,
    "aria-label": `${token}, token ${n}`, onclick: () => choose(n),
    onmouseover: () => tell(n), onfocus: () => tell(n), onmouseleave: () => tell(view.token),
  }, name(token), element("small", {}, String(n)))));
}
function choose(token) {
  const again = view.pinned && token === view.token;
  change({ token, pinned: !again });
}
// Where a token comes from: in words below the strip, and marked in the text.
function tell(n) {
  const { tokens, ids, word_ids, words, offsets, segments, added, parts } = text();
  const [start, end] = offsets[n], from = [...parts[segments[n]]].slice(start, end).join("");
  const rows = [["piece", quoted(tokens[n])], ["id", ids[n]], ["token", `${n} of 0 to ${tokens.length - 1}`], ["segment", `${segments[n]}${segments[n] ? ", the second text (dashed)" : ""}`],
    ["word", added[n] ? "none: added by the tokenizer" : `${quoted(words.find(({ last }) => n <= last).label)} (word ${word_ids[n]})`],
    ["characters", added[n] ? "none" : `${start} to ${end}`], ["made of", added[n] ? "nothing" : quoted(from)]];
  $("origin").replaceChildren(...rows.map(([key, value]) =>
    element("div", {}, element("dt", {}, key), element("dd", {}, String(value)))));
  drawTitle(added[n] ? null : { part: segments[n], start, end });
}
const orEmpty = (part) => part.trim() === "" ? "(an empty text)" : part;
function drawTitle(span) {
  $("title").replaceChildren(...text().parts.flatMap((part, n) => {
    const all = [...orEmpty(part)], cut = span?.part === n ? [span.start, span.end] : [0, 0];
    const line = element("bdi", { dir: "auto" }, all.slice(0, cut[0]).join(""));
    if (cut[1] > cut[0]) line.append(element("mark", {}, all.slice(...cut).join("")));
    line.append(all.slice(cut[1]).join(""));
    return n ? [" ", element("br"), line] : [line];
  }));
  $("title").classList.toggle("long", text().parts.join("").length > 160);
}
function markChosen() {
  const buttons = $("strip").querySelectorAll("button");
  buttons.forEach((button, n) => {
    button.classList.toggle("chosen", n === view.token);
    button.setAttribute("aria-pressed", String(n === view.token && view.pinned));
    button.setAttribute("aria-current", String(n === view.token));
  });
  oneStop($("strip"), buttons[view.token]);
  tell(view.token);
}

// ---- Attention

const headName = (layer = view.layer, head = view.head) => `${layer}-${head}`;
function measures(layer, head) {
  const T = text().tokens.length, all = heads(layer).subarray((head - 1) * T * T, head * T * T);
  let entropy = 0, distance = 0, most = 0;
  for (let i = 0; i < all.length; i++) {
    if (all[i] > 0) entropy -= all[i] * Math.log(all[i]);
    distance += all[i] * Math.abs(Math.floor(i / T) - i % T);
    most = Math.max(most, all[i]);
  }
  return { entropy: entropy / T, distance: distance / T, most, all };
}
const measured = (layer, head) => once(`measures ${view.text} ${layer} ${head}`, () => {
  const { entropy, distance, most } = measures(layer, head);
  return { entropy, distance, most };
});

function drawOverview() {
  const grid = $("overview"), T = text().tokens.length, paint = scale();
  grid.style.gridTemplateColumns = `1.3rem repeat(${A}, minmax(0, 3.4rem))`;
  const cells = [element("span")];
  for (let head = 1; head <= A; head++) cells.push(element("span", { "aria-hidden": "true" }, String(head)));
  for (let layer = 1; layer <= L; layer++) {
    cells.push(element("span", { "aria-hidden": "true" }, String(layer)));
    for (let head = 1; head <= A; head++) {
      const { entropy, distance, most } = measured(layer, head);
      const told = `head ${headName(layer, head)}, mean entropy ${rounded(entropy)} nats, mean distance ${rounded(distance, 2)} tokens`;
      const thumbnail = element("canvas", { "aria-hidden": "true" });
      paintSmall(thumbnail, heads(layer).subarray((head - 1) * T * T, head * T * T), T, most, paint);
      const point = () => show(`${entropy} nats, ${distance} tokens`, `head ${headName(layer, head)}, mean entropy and distance`);
      cells.push(element("button", { type: "button", "aria-label": told, onmouseover: point, onfocus: point,
        onclick: () => change({ layer, head }) }, thumbnail));
    }
  }
  grid.replaceChildren(...cells);
}
// A picture of at most 48 x 48: of the weights that share a point the largest.
function paintSmall(canvas, all, T, most, paint) {
  const size = Math.min(T, 48), peaks = new Float32Array(size * size);
  for (let t = 0; t < T; t++)
    for (let s = 0; s < T; s++) {
      const at = Math.floor(t * size / T) * size + Math.floor(s * size / T);
      peaks[at] = Math.max(peaks[at], all[t * T + s]);
    }
  canvas.width = canvas.height = size;
  const context = canvas.getContext("2d"), image = context.createImageData(size, size);
  peaks.forEach((peak, n) => image.data.set([...paint(peak / most), 255], 4 * n));
  context.putImageData(image, 0, 0);
}
function markHead() {
  const buttons = [...$("overview").querySelectorAll("button")], here = (view.layer - 1) * A + view.head - 1;
  buttons.forEach((button, n) => button.setAttribute("aria-pressed", String(n === here)));
  oneStop($("overview"), buttons[here]);
  const { entropy, distance } = measured(view.layer, view.head);
  $("head-title").textContent = `Head ${headName()}`;
  $("head-note").replaceChildren("In code, which counts from 0: ", element("code", {}, `states.attentions[${view.layer - 1}, ${view.head - 1}]`),
    `. On average a token’s reading has an entropy of ${rounded(entropy, 2)} nats (0: one token only; ${rounded(Math.log(text().tokens.length), 2)}: all alike) and goes ${rounded(distance, 1)} tokens far.`);
}

const ROW = 1.6; // rem: the height of a token among the lines, as in lens.css
const MOST_LINES = 2500; // more would be one area: those of 50 tokens
function drawHead() {
  const all = weights(), part = shownGroups(), most = all.reduce((a, b) => Math.max(a, b), 0);
  drawLines(all, most, part);
  drawMatrix(all, most, part);
  drawRowTable(all, part);
}
function weightLabel(labels, i, j) {
  return `head ${headName()}, ${quoted(labels[i].label)} (${i}) reads from ${quoted(labels[j].label)} (${j})`;
}
function drawLines(all, most, part) {
  const { labels, shown, named, chosen } = part, N = labels.length, LEVELS = 12;
  const paths = Array.from({ length: LEVELS }, () => []), ends = [[], []], found = [];
  shown.forEach((i, row) => shown.forEach((j, column) => {
    const weight = all[i * N + j];
    if (isDrawn(weight, i, j, part)) found.push([row, column, i, j, weight]);
  }));
  const drawn = found.length > MOST_LINES ? found.sort((a, b) => b[4] - a[4]).slice(0, MOST_LINES) : found;
  for (const [row, column, i, , weight] of drawn) {
    const line = `M0 ${((row + .5) * ROW).toFixed(2)}L100 ${((column + .5) * ROW).toFixed(2)}`;
    // With a token chosen: blue is what it reads, orange what reads it.
    if (view.pinned) ends[i === chosen ? 0 : 1].push([weight, line]);
    else paths[Math.min(LEVELS - 1, Math.floor(weight / most * LEVELS))].push(line);
  }
  const height = shown.length * ROW;
  const svg = shape("svg", { viewBox: `0 0 100 ${height}`, preserveAspectRatio: "none", "aria-hidden": "true" });
  svg.style.height = `${height}rem`;
  const stroke = (d, weight, ink) => svg.append(shape("path", { d, fill: "none", stroke: ink, "vector-effect": "non-scaling-stroke",
    "stroke-width": (.6 + 4 * weight).toFixed(2), "stroke-opacity": (.02 + .98 * weight ** .75).toFixed(3) }));
  paths.forEach((lines, level) => lines.length && stroke(lines.join(""), (level + .5) / LEVELS, color("--blue")));
  ends.forEach((lines, way) => {
    const top = Math.max(...lines.map(([weight]) => weight)), ink = color(way ? "--orange" : "--blue");
    lines.forEach(([weight, line]) => stroke(line, weight / (top || 1), ink));
  });
  pointAtLines(svg, drawn, all, labels);
  const side = (isReader) => element("div", { class: isReader ? "readers" : "read", role: "toolbar",
    "aria-label": isReader ? "Tokens that read" : "Tokens that are read" }, ...shown.map((n) => {
    const button = element("button", { type: "button", onclick: () => choose(labels[n].first),
      class: `${n === chosen ? "chosen" : ""} ${named.has(n) ? "" : "out"}`, "aria-pressed": String(view.pinned && n === chosen) }, name(labels[n].label));
    if (view.pinned) {
      const [i, j] = isReader ? [n, chosen] : [chosen, n], weight = all[i * N + j];
      button.append(element("small", {}, rounded(weight)));
      const point = () => show(exact(weight), weightLabel(labels, i, j));
      button.addEventListener("mouseover", point);
      button.addEventListener("focus", point);
    }
    return button;
  }));
  const sides = [side(true), side(false)], focused = focusIn($("lines"));
  $("lines").replaceChildren(sides[0], svg, sides[1]);
  $("lines").style.setProperty("--to-a-page", Math.min(1, 30 / shown.length).toFixed(3)); // in print
  sides.forEach((one) => { rove(one); oneStop(one, one.children[Math.max(0, shown.indexOf(chosen))]); });
  if (focused) sides[focused.side].children[focused.row]?.focus();
  const who = view.pinned ? ` Of ${quoted(labels[chosen].label)} (${chosen}): blue is what it reads, orange what reads it; each has its own scale.` : "";
  const count = found.length > MOST_LINES ? `The ${MOST_LINES} strongest of ${found.length}` : `${drawn.length} of ${N * N}`;
  $("drawn").textContent = `${count} weights are shown${found.length > MOST_LINES ? " as lines; choose a token to see all of its" : ""}.${who}${view.bare ? " Without [CLS] and [SEP] a row adds up to less than 1." : ""}`;
}
// The line nearest to the pointer, of those that are drawn.
function pointAtLines(svg, drawn, all, labels) {
  const found = svg.appendChild(shape("path", { fill: "none", stroke: color("--ink"), "stroke-width": 2, "vector-effect": "non-scaling-stroke" }));
  const point = (event) => {
    const box = svg.getBoundingClientRect(), rows = box.height / ROW / parseFloat(getComputedStyle(document.documentElement).fontSize);
    const x = (event.clientX - box.left) / box.width, y = (event.clientY - box.top) / box.height * rows - .5;
    const far = ([row, column]) => Math.abs(row + (column - row) * x - y);
    const nearest = drawn.reduce((best, line) => far(line) < far(best) ? line : best, drawn[0]);
    if (!nearest || far(nearest) > .4) return false;
    const [row, column, i, j] = nearest;
    found.setAttribute("d", `M0 ${(row + .5) * ROW}L100 ${(column + .5) * ROW}`);
    show(exact(all[i * labels.length + j]), weightLabel(labels, i, j));
    return true;
  };
  svg.addEventListener("mousemove", point);
  svg.addEventListener("click", (event) => point(event) && copyShown());
}
function focusIn(container) {
  const at = document.activeElement, side = at?.closest(".readers, .read");
  return side && container.contains(side) ? { side: side.matches(".read") ? 1 : 0, row: [...side.children].indexOf(at) } : null;
}

let matrix = null; // how the canvas was drawn, to find the cell below the pointer
const cursor = { row: 0, column: 0 };
function drawMatrix(all, most, part) {
  const { labels, shown, chosen } = part, N = labels.length;
  const canvas = $("matrix"), room = canvas.parentElement.clientWidth, count = Math.max(1, shown.length);
  const edge = Math.min(90, Math.max(48, room * .24));
  const size = Math.max(4, Math.min(28, Math.floor((room - edge - 2) / count)));
  const side = edge + size * count + 2, ratio = Math.min(window.devicePixelRatio, 4000 / side); // what all browsers draw
  canvas.width = canvas.height = Math.round(side * ratio);
  canvas.style.width = canvas.style.height = `${side}px`;
  canvas.setAttribute("aria-label", `Matrix of head ${headName()}, ${count} rows and columns. Arrow keys move, Enter copies the number.`);
  const context = canvas.getContext("2d", { willReadFrequently: true }), paint = scale();
  context.scale(ratio, ratio);
  const small = element("canvas", { width: count, height: count }), image = context.createImageData(count, count);
  shown.forEach((i, row) => shown.forEach((j, column) => {
    const weight = all[i * N + j];
    image.data.set([...paint(weight / most), isDrawn(weight, i, j, part) ? 255 : 31], 4 * (row * count + column));
  }));
  small.getContext("2d").putImageData(image, 0, 0);
  context.imageSmoothingEnabled = false;
  context.drawImage(small, edge, edge, size * count, size * count);
  context.strokeStyle = color("--line");
  context.strokeRect(edge - .5, edge - .5, size * count + 1, size * count + 1);
  // Where a name has no room, those of every second or n-th token, and of the chosen one.
  const step = Math.ceil(11 / size), here = shown.indexOf(chosen);
  shown.forEach((n, row) => {
    const isNear = here >= 0 && Math.abs(row - here) < step;
    if (isNear ? row === here : row % step === 0) drawMatrixLabels(context, labels[n].label, row, { edge, size, isChosen: n === chosen });
  });
  matrix = { all, labels, shown, edge, size, N, picture: context.getImageData(0, 0, canvas.width, canvas.height) };
  $("matrix-scale").textContent = `Colour goes with the root of the weight, from 0 to ${exact(most)}, the largest.`;
}
function drawMatrixLabels(context, label, row, { edge, size, isChosen }) {
  context.font = `${isChosen ? "600 " : ""}${Math.min(13, Math.max(10, size))}px ${color("--mono")}`;
  context.fillStyle = color(isChosen ? "--blue" : "--ink");
  context.textBaseline = "middle";
  let fits = label === "" ? "␣" : label;
  while (fits.length > 1 && context.measureText(fits).width > edge - 8) fits = `${[...fits.replace("…", "")].slice(0, -1).join("")}…`;
  context.textAlign = "right";
  context.fillText(fits, edge - 6, edge + (row + .5) * size);
  context.save();
  context.translate(edge + (row + .5) * size, edge - 6);
  context.rotate(-Math.PI / 2);
  context.textAlign = "left";
  context.fillText(fits, 0, 0);
  context.restore();
}
function pointAtCell(row, column) {
  const { all, labels, shown, edge, size, N, picture } = matrix, last = shown.length - 1;
  if (last < 0) return;
  cursor.row = Math.max(0, Math.min(last, row));
  cursor.column = Math.max(0, Math.min(last, column));
  const [i, j] = [shown[cursor.row], shown[cursor.column]], context = $("matrix").getContext("2d");
  context.putImageData(picture, 0, 0);
  context.strokeStyle = color("--orange");
  context.lineWidth = 2;
  context.strokeRect(edge + cursor.column * size, edge + cursor.row * size, size, size);
  show(exact(all[i * N + j]), weightLabel(labels, i, j));
}
// Scroll the matrix so that the cell of the cursor is in it, with one more on each side.
function showCursor() {
  const { edge, size } = matrix, box = $("matrix").parentElement;
  const within = (place, from, room) => Math.max(Math.min(from, edge + (place - 1) * size), edge + (place + 2) * size - room);
  box.scrollTo(within(cursor.column, box.scrollLeft, box.clientWidth), within(cursor.row, box.scrollTop, box.clientHeight));
}
function cellBelow(event) {
  const box = $("matrix").getBoundingClientRect(), { edge, size, shown } = matrix;
  const row = Math.floor((event.clientY - box.top - edge) / size), column = Math.floor((event.clientX - box.left - edge) / size);
  return row >= 0 && column >= 0 && row < shown.length && column < shown.length ? [row, column] : null;
}
$("matrix").addEventListener("mousemove", (event) => { const at = cellBelow(event); if (at) pointAtCell(...at); });
$("matrix").addEventListener("click", (event) => { const at = cellBelow(event); if (at) { pointAtCell(...at); copyShown(); } });
$("matrix").addEventListener("focus", () => pointAtCell(cursor.row, cursor.column));
$("matrix").addEventListener("keydown", (event) => {
  const step = { ArrowDown: [1, 0], ArrowUp: [-1, 0], ArrowRight: [0, 1], ArrowLeft: [0, -1] }[event.key];
  if (step) { event.preventDefault(); pointAtCell(cursor.row + step[0], cursor.column + step[1]); showCursor(); }
  if (event.key === "Enter") copyShown();
});
$("copy-matrix").addEventListener("click", () => {
  const { all, labels, shown, N } = matrix;
  const rows = shown.map((i) => [labels[i].label, ...shown.map((j) => exact(all[i * N + j]))].join("\t"));
  copy([["", ...shown.map((j) => labels[j].label)].join("\t"), ...rows].join("\n"), `head ${headName()}, ${shown.length} rows and columns`);
});
function drawRowTable(all, { labels, shown, chosen }) {
  const N = labels.length, own = labels[chosen].label, quote = quoted(own);
  fillTable("row-table", `Head ${headName()}; ${quote} (${chosen})`, [[""], ["place"], [`${quote} reads from it`, `${own} reads from it`],
    [`it reads from ${quote}`, `it reads from ${own}`]], shown.map((n) => [
    header(labels[n].label), element("td", {}, String(n)),
    cell(all[chosen * N + n], weightLabel(labels, chosen, n)), cell(all[n * N + chosen], weightLabel(labels, n, chosen))]));
}
const header = (label) => element("th", { scope: "row" }, name(label));
function fillTable(id, caption, columns, rows) {
  $(id).replaceChildren(element("caption", {}, caption),
    element("thead", {}, element("tr", {}, ...columns.map(([shown, copied = shown]) => element("th", { scope: "col", "data-copy": copied }, shown)))),
    element("tbody", {}, ...rows.map((cells) => element("tr", {}, ...cells))));
  oneStop($(id));
}

// ---- Hidden states

const stateName = (state) => state === 0 ? "embedding output" : `written by layer ${state}`;
function drawSimilarity() {
  const own = vector(view.text, view.state, view.token);
  $("similarity-title").textContent = `Cosine of ${place(view.token)} with every token, in state ${view.state}`;
  const rows = data.texts.flatMap(({ tokens }, n) => tokens.map((token, t) => {
    const similarity = cosine(own, vector(n, view.state, t)), where = data.texts.length > 1 ? `, text ${n + 1}` : "";
    const label = `state ${view.state}, cosine of ${place(view.token)} with ${quoted(token)} (${t}${where})`;
    return [header(token), element("td", {}, `${t}${where}`), cell(similarity, label), element("td", { "data-picture": "" }, bar(similarity))];
  }));
  fillTable("similarity", `State ${view.state}, ${stateName(view.state)}`, [["token"], ["place"], ["cosine"]], rows);
  $("similarity").tHead.rows[0].append(element("th", { "data-picture": "", "aria-hidden": "true" },
    element("span", { class: "ends" }, ...["−1", "0", "1"].map((end) => element("span", {}, end)))));
  const here = data.texts.slice(0, view.text).reduce((sum, { tokens }) => sum + tokens.length, view.token);
  $("similarity").tBodies[0].rows[here].className = "here";
}
function bar(value) {
  const half = Math.abs(value) * 50;
  return element("span", { class: "bar", "aria-hidden": "true" }, shape("svg", { viewBox: "0 0 100 10", preserveAspectRatio: "none" },
    shape("rect", { x: value < 0 ? 50 - half : 50, y: 1, width: half, height: 8, fill: color(value < 0 ? "--orange" : "--blue") }),
    shape("path", { d: "M50 0V10", stroke: color("--soft"), "vector-effect": "non-scaling-stroke" })));
}

// Round numbers between two, about as many as asked for.
function ticks(low, high, count) {
  const rough = (high - low) / count || 1, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((times) => times * power >= rough), found = [];
  for (let at = Math.ceil(low / step); at * step <= high + step * 1e-9; at++) found.push(Number((at * step).toPrecision(12)));
  return found;
}
// An empty chart with labelled axes, and where the numbers go in it.
function frame(id, { x, y, height, equal = false, title }) {
  const width = Math.max(240, $(id).clientWidth), left = 56, right = width - 14, top = 12, bottom = height - 46;
  if (equal) { // one unit is as long on both axes
    const unit = Math.max((x.high - x.low) / (right - left), (y.high - y.low) / (bottom - top));
    for (const [axis, room] of [[x, right - left], [y, bottom - top]]) {
      const middle = (axis.low + axis.high) / 2;
      [axis.low, axis.high] = [middle - unit * room / 2, middle + unit * room / 2];
    }
  }
  const across = (value) => left + (value - x.low) / (x.high - x.low) * (right - left);
  const up = (value) => bottom - (value - y.low) / (y.high - y.low) * (bottom - top);
  const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "group", "aria-label": title });
  const grid = { stroke: color("--line"), "stroke-width": 1 };
  for (const value of y.ticks ?? ticks(y.low, y.high, 5))
    svg.append(shape("path", { d: `M${left} ${up(value)}H${right}`, ...grid }),
      shape("text", { x: left - 8, y: up(value) + 4, "text-anchor": "end" }, String(value).replace("-", "−")));
  for (const value of x.ticks ?? ticks(x.low, x.high, width / 90))
    svg.append(shape("text", { x: across(value), y: bottom + 17, "text-anchor": "middle" }, String(value).replace("-", "−")));
  svg.append(shape("text", { x: (left + right) / 2, y: height - 8, "text-anchor": "middle" }, x.title),
    shape("text", { transform: `translate(13 ${(top + bottom) / 2}) rotate(-90)`, "text-anchor": "middle" }, y.title));
  $(id).replaceChildren(svg);
  return { svg, across, up };
}
const everyState = Array.from({ length: L + 1 }, (_, state) => state);
const stateAxis = () => ({ low: 0, high: L, title: "state", ticks: everyState.filter((state) => state % Math.ceil(L / 12) === 0) });
const dot2 = (x, y, value, label, attributes) => shape("circle", { cx: x, cy: y, r: 4, "data-value": value, "data-label": label,
  role: "img", "aria-label": `${label}: ${value}`, ...attributes });

function drawPath() {
  const T = text().tokens.length, points = once(`points ${view.text}`, () => floats(text().points));
  const at = (state, token) => [points[2 * (state * T + token)], points[2 * (state * T + token) + 1]];
  const [first, second] = data.projection.map(percent);
  $("path-title").textContent = `The way of ${place(view.token)} from state 0 to ${L}; grey are the other tokens in state ${view.state}. ` +
    `The axes are the first two principal components of all states of all tokens on this page; one unit is as long on both.`;
  const box = (axis) => {
    let low = Infinity, high = -Infinity;
    for (let n = axis; n < points.length; n += 2) { low = Math.min(low, points[n]); high = Math.max(high, points[n]); }
    const edge = (high - low) * .06 || 1;
    return { low: low - edge, high: high + edge };
  };
  const { svg, across, up } = frame("path", { height: 360, equal: true, title: `The way of ${place(view.token)}`,
    x: { ...box(0), title: `component 1, ${first} of the variance` }, y: { ...box(1), title: `component 2, ${second} of the variance` } });
  const point = (state, token, attributes) => {
    const [x, y] = at(state, token);
    return dot2(across(x), up(y), `${exact(x)}, ${exact(y)}`, `state ${state} of ${place(token)}, components 1 and 2`, attributes);
  };
  for (let token = 0; token < T; token++)
    if (token !== view.token) svg.append(point(view.state, token, { fill: color("--soft"), opacity: .45, role: null, "aria-hidden": "true" }));
  const way = everyState.map((state) => at(state, view.token).map((value, n) => (n ? up(value) : across(value)).toFixed(1)).join(" "));
  svg.append(shape("path", { d: `M${way.join("L")}`, fill: "none", stroke: color("--blue"), "stroke-width": 2 }));
  const taken = everyState.map((state) => at(state, view.token)).map(([x, y]) => [across(x), up(y)]);
  for (const state of everyState) {
    const isHere = state === view.state, [x, y] = freePlace(taken[state], taken);
    taken.push([x, y]);
    svg.append(point(state, view.token, { fill: color(isHere ? "--orange" : "--blue"), r: isHere ? 7 : 4 }),
      shape("text", { x, y: y + 4, "text-anchor": "middle", class: isHere ? "strong" : "" }, String(state)));
  }
  oneStop($("path"));
}
// Of twelve places around a point the one that is farthest from all that is taken.
function freePlace([x, y], taken) {
  const around = Array.from({ length: 12 }, (_, n) => [x + 15 * Math.cos(n * Math.PI / 6), y - 15 * Math.sin(n * Math.PI / 6)]);
  const room = ([a, b]) => Math.min(...taken.map(([c, d]) => Math.hypot(a - c, b - d)));
  return around.reduce((best, next) => room(next) > room(best) + 1e-9 ? next : best);
}
function drawNorm() {
  const T = text().tokens.length, norms = once(`norms ${view.text}`, () =>
    everyState.map((state) => Array.from({ length: T }, (_, token) => length(vector(view.text, state, token)))));
  $("norm-title").textContent = `The length of its vector, and in grey of the others’`;
  const high = 1.08 * norms.flat().reduce((a, b) => Math.max(a, b), 0);
  const { svg, across, up } = frame("norm", { height: 240, title: "Length of the vector", x: stateAxis(), y: { low: 0, high, title: "Euclidean length" } });
  const line = (token) => `M${norms.map((row, state) => `${across(state).toFixed(1)} ${up(row[token]).toFixed(1)}`).join("L")}`;
  svg.append(shape("path", { d: Array.from({ length: T }, (_, token) => line(token)).join(""), fill: "none", stroke: color("--soft"), opacity: .25 }),
    shape("path", { d: line(view.token), fill: "none", stroke: color("--blue"), "stroke-width": 2 }));
  norms.forEach((row, state) => svg.append(dot2(across(state), up(row[view.token]), exact(row[view.token]),
    `length of ${place(view.token)} in state ${state}`, { fill: color(state === view.state ? "--orange" : "--blue"), r: state === view.state ? 6 : 4 })));
  oneStop($("norm"));
  const points = floats(text().points);
  fillTable("path-table", place(view.token), [["state"], ["length"], ["component 1"], ["component 2"]], everyState.map((state) => {
    const told = `state ${state} of ${place(view.token)}`, at = 2 * (state * T + view.token);
    return [header(String(state)), cell(norms[state][view.token], `${told}, length`), cell(points[at], `${told}, component 1`), cell(points[at + 1], `${told}, component 2`)];
  }));
}

// ---- Senses

// Words that stand on this page more than once: [[word, its places], ...], long words first.
const repeated = once("repeated", () => {
  const found = new Map();
  data.texts.forEach(({ words }, n) => words.forEach((word) => {
    const key = word.label.toLowerCase();
    if (!word.added && /[\p{L}\p{N}]/u.test(key)) found.set(key, [...found.get(key) ?? [], { n, word }]);
  }));
  return [...found].filter(([, places]) => places.length > 1).sort((a, b) => b[0].length - a[0].length);
});
const MOST = 6; // occurrences that are ticked at first
function drawSenses() {
  $("senses-body").hidden = repeated.length === 0;
  $("senses-note").textContent = repeated.length === 0
    ? "No word stands on this page more than once. Give a text in which one does, to see how alike its occurrences are."
    : "A word has one vector for each place where it stands. A static embedding, such as word2vec, would have one for all of one spelling, and a cosine of 1.";
  if (repeated.length === 0) return;
  const places = new Map(repeated).get(view.word);
  $("occurrences").replaceChildren(...places.map(({ n, word }, number) => {
    const box = element("input", { type: "checkbox", onchange: () => change({ ticked: view.ticked.map((on, i) => i === number ? box.checked : on) }) });
    box.checked = view.ticked[number];
    const part = [...data.texts[n].parts[word.segment]], cut = (from, to) => part.slice(Math.max(0, from), to).join("");
    return element("label", {}, box, `${number + 1} `, element("bdi", { dir: "auto" }, word.start > 40 ? "…" : "", cut(word.start - 40, word.start),
      element("mark", {}, cut(word.start, word.end)), cut(word.end, word.end + 40), word.end + 40 < part.length ? "…" : ""));
  }));
  const ticked = places.map((_, n) => n).filter((n) => view.ticked[n]), pairs = ticked.flatMap((b) => ticked.filter((a) => a < b).map((a) => [a, b]));
  const cosines = everyState.map((state) => {
    const means = new Map(ticked.map((n) => [n, meanVector(places[n], state)]));
    return pairs.map(([a, b]) => cosine(means.get(a), means.get(b)));
  });
  drawSenseChart(pairs, cosines);
  fillTable("senses-table", `Cosines of ${quoted(view.word)}, by state`, [["state"], ...pairs.map(([a, b]) => [`${a + 1} and ${b + 1}`])], cosines.map((row, state) =>
    [header(String(state)), ...row.map((value, n) => cell(value, senseLabel(state, pairs[n])))]));
}
const senseLabel = (state, [a, b]) => `state ${state}, cosine of ${quoted(view.word)} ${a + 1} with ${quoted(view.word)} ${b + 1}`;
function meanVector({ n, word }, state) {
  return once(`mean ${n} ${word.first} ${state}`, () => {
    const sum = new Float64Array(H), count = word.last - word.first + 1;
    for (let t = word.first; t <= word.last; t++) vector(n, state, t).forEach((value, h) => { sum[h] += value / count; });
    return sum;
  });
}
function drawSenseChart(pairs, cosines) {
  const all = cosines.flat(), low = Math.min(1, ...all), high = Math.max(low, ...all), edge = Math.max(.01, (high - low) * .05);
  const { svg, across, up } = frame("senses", { height: 300, title: `Cosines of ${quoted(view.word)}`, x: stateAxis(), y: { low: low - edge, high: high + edge, title: "cosine" } });
  pairs.forEach((pair, n) => {
    svg.append(shape("path", { d: `M${cosines.map((row, state) => `${across(state).toFixed(1)} ${up(row[n]).toFixed(1)}`).join("L")}`, fill: "none", "stroke-width": 2, ...hue(n) }));
    cosines.forEach((row, state) => svg.append(dot2(across(state), up(row[n]), exact(row[n]), senseLabel(state, pair), { fill: hue(n).stroke })));
  });
  oneStop($("senses"));
  $("senses").append(element("p", { class: "legend" }, ...pairs.map(([a, b], n) => element("span", {},
    shape("svg", { viewBox: "0 0 28 8", width: 28, height: 8, "aria-hidden": "true" }, shape("path", { d: "M0 4H28", "stroke-width": 3, ...hue(n) })), ` ${a + 1} and ${b + 1}`))));
}

// ---- [MASK]

function drawMask() {
  const guesses = text().guesses;
  $("mask-body").hidden = guesses === null;
  if (guesses === null) {
    $("mask-note").textContent = "The model was loaded without a masked-LM head, so it has no say in this. Where its file has one, minibert lens --head masked-lm reads it.";
    return;
  }
  const masks = text().tokens.map((token, n) => [token, n]).filter(([token]) => token === "[MASK]");
  $("mask-note").textContent = `The masked-LM head reads each state as if it were the last (the “logit lens”): its ${guesses.count} likeliest pieces at ` +
    `${place(view.token)}, with their probability. ${text().tokens[view.token] === "[MASK]" ? "" : "This token is not hidden from the model: it sees what it is asked for."}`;
  $("mask-choice").replaceChildren(...masks.map(([, n]) => element("button", { type: "button", onclick: () => change({ token: n }), "aria-pressed": String(n === view.token) }, `[MASK] (${n})`)));
  const ids = guesses.ids, chances = once(`chances ${view.text}`, () => floats(guesses.probabilities)), T = text().tokens.length;
  fillTable("mask-table", `At ${place(view.token)}`, [["state"], ...Array.from({ length: guesses.count }, (_, n) => [String(n + 1), `${n + 1}\tprobability`])], everyState.map((state) => [
    header(String(state)), ...Array.from({ length: guesses.count }, (_, n) => {
      const at = (state * T + view.token) * guesses.count + n, piece = data.pieces[ids[at]];
      return fill(cell(chances[at], `state ${state} at ${place(view.token)}, probability of ${quoted(piece)}`, ""),
        { "data-copy": `${piece}\t${exact(chances[at])}`, "aria-label": `${piece}, ${exact(chances[at])}` }, [name(piece), element("small", {}, percent(chances[at]))]);
    })]));
}

// ---- The whole page

// What is drawn anew when something changes: each part with what it shows.
const PARTS = [
  [drawStrip, ["text"]], [drawOverview, ["text", "theme"]],
  [markChosen, ["text", "token", "pinned"]], [markHead, ["text", "layer", "head", "theme"]],
  [drawHead, ["text", "token", "pinned", "layer", "head", "unit", "filter", "least", "bare", "theme", "size"]],
  [drawSimilarity, ["text", "token", "state", "theme"]], [drawPath, ["text", "token", "state", "theme", "size"]],
  [drawNorm, ["text", "token", "state", "theme", "size"]], [drawSenses, ["word", "ticked", "theme", "size"]],
  [drawMask, ["text", "token"]],
];
function change(changes) {
  Object.assign(view, changes);
  if ("word" in changes) view.ticked = (new Map(repeated).get(view.word) ?? []).map((_, n) => n < MOST);
  for (const [id, value] of [["text", view.text], ["layer", view.layer], ["head", view.head], ["unit", view.unit], ["least", view.least], ["state", view.state], ["word", view.word]])
    $(id).value = String(value);
  $("bare").checked = view.bare;
  $("unpin").disabled = !view.pinned;
  $("least-value").textContent = rounded(view.least, 2);
  $("state-value").replaceChildren(`${view.state} of ${L}, ${stateName(view.state)}: `, element("code", {}, `states.hidden_states[${view.state}]`));
  for (const [draw, shows] of PARTS) if (shows.some((key) => key in changes)) draw();
}
// The token to begin with: a [MASK], else a word that stands here more than once, else the first.
function firstToken() {
  const { tokens, added, words } = text(), again = new Set(repeated.slice(0, 1).map(([word]) => word));
  const candidates = [tokens.indexOf("[MASK]"), words.find((word) => again.has(word.label.toLowerCase()))?.first ?? -1, added.indexOf(0), 0];
  return candidates.find((token) => token >= 0);
}
function control(id, event, read) {
  $(id).addEventListener(event, () => change(read($(id))));
}
function options(id, choices) {
  $(id).replaceChildren(...choices.map(([value, label]) => element("option", { value }, label)));
}
function about() {
  const { name: model, commit, sha256, head, head_sha256: headHash } = data.model, { minibert, torch, python } = data.versions;
  const rows = [["model", model ?? "not from a file"], ["commit", commit || "none: not from the Hub"], ["encoder and tokenizer", `sha256 ${sha256}`],
    ["its sizes", `${L} layers, ${A} heads, ${H} numbers a vector`], ["head", head === null ? "none" : `${head}, sha256 ${headHash}`],
    ...data.texts.flatMap((one, n) => [[data.texts.length > 1 ? `text ${n + 1}` : "text", one.parts.join(" ||| ")], ...(wasCut(one) ? [["cut", wasCut(one)]] : [])]),
    ["shares of the variance", data.projection.map((share, n) => `component ${n + 1}: ${share}`).join(", ")],
    ["made by", `minibert ${minibert}, torch ${torch}, Python ${python}`],
    ["numbers", "float32, as Bert.states gives them with attentions=True; cosines, lengths, sums over words and means are computed from them in float64"]];
  $("about").replaceChildren(...rows.flatMap(([key, value]) => [element("dt", {}, key), element("dd", {}, name(value))]));
}
const isDark = matchMedia("(prefers-color-scheme: dark)");
function paintTheme(isPrinting = false) {
  const wanted = $("theme").value, theme = isPrinting ? "light" : wanted === "auto" ? (isDark.matches ? "dark" : "light") : wanted;
  document.documentElement.dataset.theme = theme;
  change({ theme: true });
}
function start() {
  document.documentElement.dataset.theme = isDark.matches ? "dark" : "light";
  const short = (parts) => { const whole = parts.map(orEmpty).join(" ||| "); return whole.length > 60 ? `${whole.slice(0, 60)}…` : whole; };
  options("text", data.texts.map(({ parts }, n) => [n, `${n + 1}. ${quoted(short(parts))}`]));
  options("layer", everyState.slice(1).map((layer) => [layer, layer]));
  options("head", Array.from({ length: A }, (_, n) => [n + 1, n + 1]));
  options("word", repeated.map(([word, places]) => [word, `${quoted(word)} (${places.length} times)`]));
  $("text-choice").hidden = data.texts.length === 1;
  $("state").max = L;
  $("under-title").textContent = `read by ${data.model.name ?? "a BERT"}: ${L} layers of ${A} heads`;
  document.title = `${short(text().parts)} – minibert lens`;
  control("text", "change", ({ value }) => { view.text = Number(value); return { text: view.text, token: firstToken(), pinned: false }; });
  for (const id of ["layer", "head"]) control(id, "change", ({ value }) => ({ [id]: Number(value) }));
  for (const id of ["unit", "word"]) control(id, "change", ({ value }) => ({ [id]: value }));
  for (const id of ["least", "state"]) control(id, "input", ({ value }) => ({ [id]: Number(value) }));
  control("filter", "input", ({ value }) => ({ filter: value }));
  control("bare", "change", ({ checked }) => ({ bare: checked }));
  $("unpin").addEventListener("click", () => change({ pinned: false }));
  $("theme").addEventListener("change", () => paintTheme());
  isDark.addEventListener("change", () => paintTheme());
  window.addEventListener("beforeprint", () => paintTheme(true));
  window.addEventListener("afterprint", () => paintTheme());
  let width = window.innerWidth;
  window.addEventListener("resize", () => { if (width !== window.innerWidth) { width = window.innerWidth; change({ size: true }); } });
  rove($("strip"));
  rove($("overview"), () => A);
  for (const table of document.querySelectorAll("table")) rove(table, () => table.querySelectorAll("tbody tr:first-child [data-value]").length);
  for (const chart of document.querySelectorAll(".chart")) rove(chart, () => chart.id === "senses" ? L + 1 : 1);
  about();
  change({ ...view, token: firstToken(), word: repeated[0]?.[0] ?? "" });
}
start();
