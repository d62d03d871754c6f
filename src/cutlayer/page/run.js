// A run: pieces of it come with the page or, while it goes, one after the other; each is laid over what is there.
const find = (id) => document.getElementById(id);
const make = (name, words, kind) => {
  const element = document.createElement(name);
  if (words !== undefined) element.textContent = words;
  if (kind) element.className = kind;
  return element;
};
const drawn = (name, attributes) => {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
};
const columns = dataOf("columns"), kinds = dataOf("kinds"), axes = dataOf("axes");
const embedded = dataOf("run"), histories = dataOf("history"), live = dataOf("live");
const SERVER = 0, ROW = 34, NAME = 0, STATE = 1;

// ------------------------------------------------------------------ numbers as people read them

const figures = (value) => {
  const size = Math.abs(value);
  if (size >= 1e6 || (size > 0 && size < 1e-3)) return value.toExponential(2);
  if (size >= 1000) return Math.round(value).toLocaleString("en");
  return String(Number(value.toPrecision(size >= 100 ? 4 : 3)));
};
const bytes = (value) => {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let place = 0;
  while (value >= 1023.5 && place < units.length - 1) { value /= 1024; place += 1; }
  return place ? `${value < 99.95 ? value.toFixed(1) : Math.round(value)} ${units[place]}` : `${value} B`;
};
const rate = (value) => {
  const units = ["bit/s", "kbit/s", "Mbit/s", "Gbit/s", "Tbit/s"];
  let place = 0;
  while (value >= 999.5 && place < units.length - 1) { value /= 1000; place += 1; }
  return `${Number(value.toPrecision(3))} ${units[place]}`;
};
const seconds = (value) => {
  if (value === 0) return "0 s";
  if (value < 0.001) return `${Number((value * 1e6).toPrecision(3))} µs`;
  if (value < 1) return `${Number((value * 1e3).toPrecision(3))} ms`;
  if (value < 100) return `${Number(value.toPrecision(3))} s`;
  const whole = Math.round(value), two = (number) => String(number).padStart(2, "0");
  if (whole < 3600) return `${Math.floor(whole / 60)}m ${two(whole % 60)}s`;
  if (whole < 172800) return `${Math.floor(whole / 3600)}h ${two(Math.floor((whole % 3600) / 60))}m`;
  return `${Math.floor(whole / 86400)}d ${two(Math.floor((whole % 86400) / 3600))}h`;
};
const written = {
  text: (value) => value,
  cut: ([cut, blocks]) => (blocks ? `${cut} of ${blocks}` : String(cut)),
  step: ([step, of]) => `${step}/${of}`,
  number: figures,
  count: (value) => value.toLocaleString("en"),
  bytes,
  rate,
  ago: (value) => (value < 3 ? (live ? "now" : "at the end") : `${seconds(value)} ${live ? "ago" : "before"}`),
};
const cell = (row, place) => (row[place] === null ? "-" : written[columns[place][1]](row[place]));

// ------------------------------------------------------------------ what stands above all

function showTiles(tiles) {
  const list = find("tiles");
  tiles.forEach(([what, figure, than], place) => {
    let tile = list.children[place];
    if (!tile) {
      tile = make("li");
      tile.append(make("span", "", "what"), make("span", "", "figure"), make("span", "", "than"));
      list.append(tile);
    }
    [what, figure, than].forEach((words, index) => say(tile.children[index], words));
  });
  while (list.children.length > tiles.length) list.lastChild.remove();
}

function say(element, words) {
  if (element.textContent !== words) element.textContent = words;
}

// ------------------------------------------------------------------ charts

let numbers = [];

function tipOf(chart, series, index) {
  const place = [...chart.closest(".charts").querySelectorAll("svg.curves")].indexOf(chart);
  const { title, lines } = numbers[place] ?? {}, point = lines?.[series]?.points[index];
  if (!point) return "";
  const [round, time, sent, samples, mean, low, high] = point;
  const around = low === high ? "" : ` (${figures(low)} to ${figures(high)})`;
  return `${lines[series].name}, round ${round}\n${title} ${figures(mean)}${around}\n${seconds(time)}, ${bytes(sent)}, ${samples.toLocaleString("en")} samples`;
}

function showCharts(charts) {
  for (const holder of document.querySelectorAll(".charts[data-axis]")) {
    if (!charts) continue;
    holder.replaceChildren(
      ...charts[holder.dataset.axis].map((text) => {
        const figure = make("figure");
        figure.append(document.importNode(new DOMParser().parseFromString(text, "text/html").body.firstChild, true));
        return figure;
      }),
    );
    watchCharts(holder.querySelectorAll("svg.curves"), tipOf);
  }
}

function showNumbers() {
  find("no-round").hidden = numbers.some((one) => one.lines.some((line) => line.points.length));
  if (!find("numbers").open) return;
  const table = make("table"), head = make("tr"), body = make("tbody"), lines = numbers.flatMap((one) => one.lines.map((line) => ({ title: `${line.name} ${one.title}`, points: line.points })));
  const places = new Map();
  for (const [place, line] of lines.entries())
    for (const point of line.points) {
      if (!places.has(point[0])) places.set(point[0], { point, values: [] });
      places.get(point[0]).values[place] = point[4];
    }
  for (const title of ["round", "time", "sent", "samples", ...lines.map((line) => line.title)]) {
    const heading = make("th", title);
    heading.scope = "col";
    head.append(heading);
  }
  for (const [round, { point, values }] of [...places].sort(([a], [b]) => a - b)) {
    const row = make("tr"), name = make("th", String(round));
    name.scope = "row";
    row.append(name, make("td", seconds(point[1])), make("td", bytes(point[2])), make("td", point[3].toLocaleString("en")));
    lines.forEach((_, place) => row.append(make("td", values[place] === undefined ? "-" : figures(values[place]))));
    body.append(row);
  }
  const top = make("thead");
  top.append(head);
  table.append(top, body);
  find("numbers").querySelector(".scroll").replaceChildren(table);
}

find("numbers").addEventListener("toggle", showNumbers);
for (const choice of document.querySelectorAll('input[name="axis"]'))
  choice.addEventListener("change", () => {
    for (const holder of document.querySelectorAll(".charts[data-axis]"))
      holder.hidden = holder.dataset.axis !== document.querySelector('input[name="axis"]:checked').value;
  });

// ------------------------------------------------------------------ devices

let rows = [], shown = [], sorted = { place: null, down: false }, opened = null;
const box = find("rows"), body = box.querySelector("tbody"), headings = [...box.querySelectorAll("thead th")];

const rank = (value) => (Array.isArray(value) ? value[0] : value);
function compared(a, b) {
  const [x, y] = [rank(a[sorted.place]), rank(b[sorted.place])];
  if (x === null || y === null) return (x === null) - (y === null);
  const order = typeof x === "string" ? x.localeCompare(y, "en", { numeric: true }) : x - y;
  return sorted.down ? -order : order;
}

function choose() {
  const words = find("named").value.trim().toLowerCase(), state = find("state").value;
  shown = rows.filter((row) => row && row[NAME].toLowerCase().includes(words) && (!state || row[STATE] === state));
  if (sorted.place !== null) shown.sort(compared);
  const all = rows.length.toLocaleString("en"), some = shown.length.toLocaleString("en");
  say(find("count"), shown.length === rows.length ? `${all} devices` : `${some} of ${all} devices`);
  box.querySelector("table").setAttribute("aria-rowcount", shown.length + 1);
}

function showStates() {
  const select = find("state"), states = [...new Set(rows.map((row) => row[STATE]))].sort(), before = select.value;
  if (states.join() === [...select.options].slice(1).map((option) => option.value).join()) return;
  select.replaceChildren(new Option("all", ""), ...states.map((state) => new Option(state, state)));
  select.value = states.includes(before) ? before : "";
}

function rowOf(row, place) {
  const element = make("tr"), name = make("th"), button = make("button", row[NAME]);
  element.setAttribute("aria-rowindex", place + 2);
  name.scope = "row";
  button.type = "button";
  button.title = row[NAME];
  button.dataset.device = row[NAME];
  name.append(button);
  element.append(name);
  columns.forEach(([heading], index) => {
    if (index === NAME) return;
    const one = make("td", cell(row, index));
    if (index === STATE) one.replaceChildren(make("span", row[STATE], `state ${row[STATE].replace(/[^a-z]/g, "")}`));
    if (heading === "refused" && row[index]) one.className = "far";
    element.append(one);
  });
  return element;
}

function gap(height) {
  const element = make("tr", undefined, "gap"), one = make("td");
  element.setAttribute("aria-hidden", "true");
  one.colSpan = columns.length;
  one.style.height = `${height}px`;
  element.append(one);
  return element;
}

// Only rows that can be seen are in the page.
function showRows() {
  const focused = document.activeElement?.dataset?.device;
  const first = Math.max(0, Math.min(Math.floor(box.scrollTop / ROW) - 5, shown.length - 1));
  const last = Math.min(shown.length, first + Math.ceil(box.clientHeight / ROW) + 10);
  const visible = shown.slice(first, last).map((row, place) => rowOf(row, first + place));
  body.replaceChildren(gap(first * ROW), ...visible, gap((shown.length - last) * ROW));
  if (focused) body.querySelector(`[data-device="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
}

function sortBy(place) {
  const numeric = columns[place][1] !== "text";
  sorted = { place, down: sorted.place === place ? !sorted.down : numeric };
  headings.forEach((heading, index) => {
    if (index === place) heading.setAttribute("aria-sort", sorted.down ? "descending" : "ascending");
    else heading.removeAttribute("aria-sort");
  });
  soon();
}

headings.forEach((heading, place) => heading.querySelector("button").addEventListener("click", () => sortBy(place)));
for (const id of ["named", "state"])
  find(id).addEventListener("input", () => {
    box.scrollTop = find("lanes").scrollTop = 0;
    soon();
  });
document.querySelector(".filter").addEventListener("submit", (event) => event.preventDefault());
box.addEventListener("scroll", showRows);
body.addEventListener("click", (event) => {
  const button = event.target.closest("[data-device]");
  if (button) openDevice(button.dataset.device);
});
body.addEventListener("keydown", (event) => {
  const name = event.target.dataset?.device, step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!name || !step) return;
  const place = shown.findIndex((row) => row[NAME] === name) + step;
  if (!shown[place]) return;
  event.preventDefault();
  const top = place * ROW;
  if (top < box.scrollTop) box.scrollTop = top;
  if (top + 2 * ROW > box.scrollTop + box.clientHeight) box.scrollTop = top + 2 * ROW - box.clientHeight;
  showRows();
  body.querySelector(`[data-device="${CSS.escape(shown[place][NAME])}"]`)?.focus({ preventScroll: true });
});

// ------------------------------------------------------------------ one device

const LINES = { loss: "training loss", samples_per_second: "samples/s", norm: "contribution (norm)" };

async function openDevice(name) {
  opened = name;
  const history = histories ? histories[name] : await asked(name);
  if (opened !== name) return;
  find("device").hidden = false;
  say(find("device-name"), name);
  showFacts();
  find("device").querySelector(".charts").replaceChildren(...Object.entries(LINES).map(([key, title]) => spark(title, history?.[key] ?? [])));
  find("device").focus();
}

async function asked(name) {
  const answer = await fetch(`${live.history}?device=${encodeURIComponent(name)}`).catch(() => null);
  return answer?.ok ? answer.json() : null;
}

function showFacts() {
  const row = rows.find((one) => one[NAME] === opened);
  if (!row) return;
  find("device").querySelector("dl").replaceChildren(
    ...columns.flatMap(([heading], place) => (place === NAME ? [] : [make("dt", heading), make("dd", cell(row, place))])),
  );
}

function spark(title, points) {
  const figure = make("figure"), caption = make("figcaption", title), values = points.map((point) => point[1]);
  figure.append(caption);
  if (!points.length) {
    caption.append(make("span", "nothing yet"));
    return figure;
  }
  const [low, high] = [Math.min(...values), Math.max(...values)], [from, to] = [points[0][0], points.at(-1)[0]];
  const words = `${figures(values[0])} in round ${from}, ${figures(values.at(-1))} in round ${to}; ${figures(low)} to ${figures(high)}`;
  caption.append(make("span", words));
  const chart = drawn("svg", { class: "spark", viewBox: "0 0 300 76", preserveAspectRatio: "none", role: "img", "aria-label": `${title}: ${words}` });
  const at = ([round, value]) => `${(((round - from) / (to - from || 1)) * 300).toFixed(1)},${(72 - ((value - low) / (high - low || 1)) * 68).toFixed(1)}`;
  chart.append(drawn("polyline", { points: points.length > 1 ? points.map(at).join(" ") : `0,38 300,38` }));
  figure.append(chart);
  return figure;
}

find("close").addEventListener("click", () => {
  find("device").hidden = true;
  const name = opened;
  opened = null;
  (body.querySelector(`[data-device="${CSS.escape(name ?? "")}"]`) ?? box).focus();
});

// ------------------------------------------------------------------ timeline

const START = 2, END = 3, MOST_BARS = 48000, MOST_DRAWN = 1500;
let time = { names: [], cell: 1, end: 0, from: 0, strips: [], bars: [], count: 0 }, span = [0, 0];
let view = { from: 0, to: 0, follows: "all" }, pulled = null;
const lanes = find("lanes"), laneRows = find("lane-rows");

function takeTime(piece, whole) {
  if (whole || piece.cell !== time.cell) time.strips = [];
  if (whole) Object.assign(time, { bars: [], count: 0 });
  Object.assign(time, { names: piece.names, cell: piece.cell, end: piece.end, from: whole ? piece.from : Math.max(time.from, piece.from) });
  piece.strips.forEach((pair, machine) => {
    const before = time.strips[machine] ?? ["", ""];
    time.strips[machine] = pair.map((tail, lane) => before[lane].slice(0, piece.first).padEnd(tail ? piece.first : 0, "0") + tail);
  });
  for (const bar of piece.bars) {
    const own = (time.bars[bar[0]] ??= []);
    let place = own.length; // they come nearly in order
    while (place > 0 && own[place - 1][START] > bar[START]) place -= 1;
    own.splice(place, 0, bar);
    time.count += 1;
  }
  if (time.count > MOST_BARS) {
    time.bars = time.bars.map((own) => own.filter((bar) => bar[END] > time.from));
    time.count = time.bars.reduce((sum, own) => sum + own.length, 0);
  }
}

function machines() {
  const names = new Map(time.names.map((name, machine) => [name, machine]));
  return [SERVER, ...shown.map((row) => names.get(row[NAME])).filter((machine) => machine)];
}

function look(from, to, follows = "") {
  const whole = time.end || 1, least = Math.max(whole * 1e-9, 1e-9);
  const length = Math.min(Math.max(to - from, least), whole);
  from = Math.min(Math.max(0, from), whole - length);
  view = { from, to: from + length, follows };
  soon();
}

function moved(name, at) {
  const length = view.to - view.from, middle = at ?? (view.from + view.to) / 2, share = (middle - view.from) / length;
  if (name === "all") look(0, time.end, "all");
  else if (name === "last") look(span[0], span[1], "last");
  else if (name === "in") look(middle - (share * length) / 2, middle + ((1 - share) * length) / 2);
  else if (name === "out") look(middle - share * length * 2, middle + (1 - share) * length * 2);
  else look(view.from + (name === "left" ? -0.4 : 0.4) * length, view.to + (name === "left" ? -0.4 : 0.4) * length);
}

const paths = (parts) => Object.entries(parts).map(([kind, d]) => drawn("path", { class: kind, d }));

function stripPaths(machine, from, to, x, parts) {
  const top = [1, 19], height = [16, 8], kind = ["strip", "strip net"];
  (time.strips[machine] ?? []).forEach((strip, lane) => {
    const last = Math.min(strip.length - 1, Math.floor(to / time.cell));
    for (let place = Math.max(0, Math.floor(from / time.cell)); place <= last; place += 1) {
      const level = parseInt(strip[place], 36);
      if (!level) continue;
      const left = x(Math.max(from, place * time.cell)), right = x(Math.min(to, (place + 1) * time.cell));
      const key = `${kind[lane]} o${Math.ceil((level / 35) * 6)}`;
      parts[key] = (parts[key] ?? "") + `M${left.toFixed(1)} ${top[lane]}h${(right - left + 0.3).toFixed(1)}v${height[lane]}H${left.toFixed(1)}z`;
    }
  });
}

const transfers = (bar) => kinds[bar[1]] === "upload" || kinds[bar[1]] === "download";

function barPaths(bars, x, parts) {
  for (const bar of bars) {
    const left = x(Math.max(bar[START], view.from)), width = Math.max(x(Math.min(bar[END], view.to)) - left, 0.6), low = transfers(bar);
    parts[`k${bar[1]}`] = (parts[`k${bar[1]}`] ?? "") + `M${left.toFixed(1)} ${low ? 19 : 1}h${width.toFixed(1)}v${low ? 8 : 16}h-${width.toFixed(1)}z`;
  }
}

const barsIn = (machine) => (time.bars[machine] ?? []).filter((bar) => bar[END] >= view.from && bar[START] <= view.to && bar[END] >= time.from);

function shares(machine, bars) {
  const length = view.to - view.from || 1;
  let sums = [0, 0];
  if (view.from >= time.from)
    for (const bar of bars) sums[Number(transfers(bar))] += Math.min(bar[END], view.to) - Math.max(bar[START], view.from);
  else
    sums = (time.strips[machine] ?? ["", ""]).map((strip) => {
      let sum = 0;
      const last = Math.min(strip.length - 1, Math.floor(view.to / time.cell));
      for (let place = Math.floor(view.from / time.cell); place <= last; place += 1)
        sum += (parseInt(strip[place], 36) / 35) * (Math.min(view.to, (place + 1) * time.cell) - Math.max(view.from, place * time.cell));
      return sum;
    });
  return sums.map((sum) => `${Math.round(Math.min(1, sum / length) * 100)} %`);
}

function laneOf(machine, place, width) {
  const element = make("li", undefined, machine === SERVER ? "server" : ""), name = make("span", time.names[machine], "who");
  element.style.top = `${place * ROW}px`;
  element.dataset.machine = machine;
  name.title = time.names[machine];
  const chart = drawn("svg", { "aria-hidden": "true" }), parts = {}, bars = barsIn(machine);
  const x = (at) => ((at - view.from) / (view.to - view.from || 1)) * width;
  const many = bars.length > MOST_DRAWN, until = many ? view.to : Math.min(time.from, view.to);
  if (until > view.from) stripPaths(machine, view.from, until, x, parts);
  if (!many) barPaths(bars, x, parts);
  chart.append(...paths(parts));
  if (pulled && pulled.to !== pulled.from) {
    const [left, right] = [pulled.from, pulled.to].sort((a, b) => a - b).map(x);
    chart.append(drawn("rect", { class: "pulled", x: left, width: right - left, y: 0, height: 28 }));
  }
  const [work, net] = shares(machine, bars), share = make("span", `${work} · ${net}`, "share");
  share.setAttribute("aria-label", `computes ${work} of the time, transfers ${net}`);
  share.title = `computes ${work} of the time, transfers ${net}`;
  element.append(name, chart, share);
  return element;
}

function laneBox() {
  const chart = laneRows.querySelector("svg");
  return chart ? chart.getBoundingClientRect() : { left: 0, width: 600 };
}

function showLanes() {
  const all = machines(), first = Math.max(0, Math.floor(lanes.scrollTop / ROW) - 3);
  laneRows.style.height = `${all.length * ROW}px`;
  if (!laneRows.firstChild) laneRows.append(laneOf(SERVER, 0, 600));
  const place = laneBox(), last = Math.min(all.length, first + Math.ceil(lanes.clientHeight / ROW) + 6);
  laneRows.replaceChildren(...all.slice(first, last).map((machine, index) => laneOf(machine, first + index, place.width)));
  showScale(place);
  const rounds = roundsIn();
  say(find("view"), `${seconds(view.from)} to ${seconds(view.to)} of ${seconds(time.end)}${rounds}`);
}

function roundsIn() {
  const ends = numbers.flatMap((one) => one.lines).reduce((most, line) => (line.points.length > most.length ? line.points : most), []);
  const first = ends.findIndex((point) => point[1] > view.from);
  if (first < 0) return "";
  let last = first;
  while (last + 1 < ends.length && ends[last][1] < view.to) last += 1;
  const [low, high] = [(ends[first - 1]?.[0] ?? 0) + 1, ends[last][0]].map((round) => round.toLocaleString("en"));
  return low === high ? `, round ${low}` : `, rounds ${low} to ${high}`;
}

function showScale(place) {
  const scale = find("scale"), left = place.left - scale.getBoundingClientRect().left, length = view.to - view.from || 1;
  const [unit, size] = [["µs", 1e-6], ["ms", 1e-3], ["s", 1], ["min", 60], ["h", 3600], ["days", 86400]].filter(([, one]) => length >= 2 * one).at(-1) ?? ["µs", 1e-6];
  const rough = length / size / Math.max(2, place.width / 110), power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((one) => one >= rough) * size;
  const marks = [];
  for (let index = Math.ceil(view.from / step - 1e-9); index * step <= view.to * (1 + 1e-12); index += 1) {
    const x = left + ((index * step - view.from) / length) * place.width;
    const words = drawn("text", { x, y: 20 });
    words.textContent = `${Number(((index * step) / size).toPrecision(9))}${marks.length ? "" : ` ${unit}`}`;
    marks.push(drawn("line", { x1: x, x2: x, y1: 0, y2: 5 }), words);
  }
  scale.replaceChildren(...marks);
}

function timeAt(event) {
  const place = laneBox();
  return view.from + Math.min(1, Math.max(0, (event.clientX - place.left) / place.width)) * (view.to - view.from);
}

function barWords(bar) {
  const [, kind, from, to, round, step, peer, size] = bar, words = [`${time.names[bar[0]]}: ${kinds[kind]}`];
  if (peer >= 0) words.push(`with ${time.names[peer]}`);
  words.push(`round ${round + 1}`);
  if (step >= 0) words.push(`step ${step + 1}`);
  words.push(seconds(to - from));
  if (size) words.push(bytes(size));
  return words.join(", ");
}

function sayLane(event) {
  const lane = event.target.closest?.("li[data-machine]");
  if (!lane) return sayAt("");
  const at = timeAt(event), near = ((view.to - view.from) / laneBox().width) * 3, low = event.clientY - lane.getBoundingClientRect().top > 21;
  const found = barsIn(Number(lane.dataset.machine)).filter((bar) => transfers(bar) === low && bar[START] - near <= at && bar[END] + near >= at);
  const best = found.sort((a, b) => Math.abs(a[START] + a[END] - 2 * at) - Math.abs(b[START] + b[END] - 2 * at))[0];
  sayAt(best ? barWords(best) : "", event.clientX, event.clientY);
}

laneRows.addEventListener("pointerdown", (event) => {
  if (event.button === 0 && event.target.closest("svg")) pulled = { from: timeAt(event), to: timeAt(event) };
});
addEventListener("pointermove", (event) => {
  if (pulled) {
    pulled.to = timeAt(event);
    soon();
  } else if (laneRows.contains(event.target)) sayLane(event);
});
addEventListener("pointerup", () => {
  if (!pulled) return;
  const [from, to] = [pulled.from, pulled.to].sort((a, b) => a - b), wide = to - from > (view.to - view.from) / 100;
  pulled = null;
  if (wide) look(from, to);
  else soon();
});
addEventListener("pointercancel", () => { pulled = null; soon(); });
laneRows.addEventListener("pointerleave", () => sayAt(""));
lanes.addEventListener("scroll", showLanes);
lanes.addEventListener("wheel", (event) => {
  if (!event.ctrlKey) return;
  event.preventDefault();
  moved(event.deltaY < 0 ? "in" : "out", timeAt(event));
}, { passive: false });
lanes.addEventListener("keydown", (event) => {
  const name = { ArrowLeft: "left", ArrowRight: "right", "+": "in", "=": "in", "-": "out", 0: "all" }[event.key];
  if (!name || event.ctrlKey || event.metaKey) return;
  event.preventDefault();
  moved(name);
});
for (const button of document.querySelectorAll("[data-view]")) button.addEventListener("click", () => moved(button.dataset.view));
addEventListener("resize", () => soon());

// ------------------------------------------------------------------ pieces

let due = false;

function soon() {
  if (due) return;
  due = true;
  requestAnimationFrame(() => {
    due = false;
    choose();
    showRows();
    showLanes();
  });
}

// Names stand whole: their column is as wide as the longest, and in a narrow window they break into two lines.
let longest = 0;
function giveNamesRoom(changed) {
  const most = changed.reduce((most, [, row]) => Math.max(most, String(row[NAME]).length), longest);
  if (most === longest) return;
  longest = most;
  document.documentElement.style.setProperty("--name", `${longest}ch`);
}

function take(piece) {
  if (piece.tiles) showTiles(piece.tiles);
  if (piece.waiting !== undefined) say(find("waiting"), piece.waiting);
  find("waiting").classList.toggle("now", Boolean(piece.now));
  if (piece.status !== undefined) say(find("status"), piece.status);
  if (piece.span) span = piece.span;
  if (piece.whole) rows = [];
  for (const [place, row] of piece.rows ?? []) rows[place] = row;
  if (piece.rows) {
    giveNamesRoom(piece.rows);
    showStates();
    if (opened) showFacts();
  }
  if (piece.numbers) {
    numbers = piece.numbers;
    showNumbers();
  }
  if (piece.charts) showCharts(piece.charts);
  if (piece.time) takeTime(piece.time, piece.whole);
  if (view.follows === "all") view = { from: 0, to: time.end, follows: "all" };
  if (view.follows === "last") view = { from: span[0], to: span[1], follows: "last" };
  soon();
}

if (embedded) {
  watchCharts(document.querySelectorAll("svg.curves"), tipOf);
  take(embedded);
} else if (live) {
  const status = find("status"), source = new EventSource(live.events);
  status.classList.add("live");
  status.textContent = "Waiting for the server.";
  source.onmessage = (event) => {
    const piece = JSON.parse(event.data);
    status.classList.remove("lost");
    take(piece);
    if (!piece.over) return;
    source.close();
    status.classList.remove("live");
    status.classList.toggle("bad", Boolean(piece.failed));
  };
  source.onerror = () => {
    status.classList.add("lost");
    say(status, "The server does not answer; this page tries again.");
  };
}
