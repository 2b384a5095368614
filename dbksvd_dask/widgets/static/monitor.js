// The convergence monitor: draws the traits of ConvergenceMonitor, as plain SVG.

const STATES = {
  starting: "Starting …",
  running: "Running",
  pausing: "Pausing after this iteration …",
  paused: "Paused",
  stopping: "Stopping after this iteration …",
  finished: "Finished",
  failed: "Failed",
};
const ANSWERS = { stop: STATES.stopping, pause: STATES.pausing, resume: "Resuming …" }; // until the kernel answers

const ERROR_LOG = {
  to: (v) => (v > 0 ? Math.log10(v) : NaN),
  ticks: (low, high) => named(logTicks(10 ** low, 10 ** high), Math.log10),
};
const VARIANCE_LOG = {
  to: (v) => (v < 1 ? -Math.log10(1 - v) : NaN), // what is left to explain, downwards
  ticks: (low, high) => named(logTicks(10 ** -high, 10 ** -low).map((u) => 1 - u), VARIANCE_LOG.to),
};
const HINT =
  "Training: of the batch, with the atoms that the iteration began with. Validation: with those that it ended with.";
const UNUSED = "Atoms that no sample of the batch used.";
const STAGES = "Of tasks, summed over threads and workers; wait: for rows that were not read in time.";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}
const element = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes, ...children) =>
  fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

// Numbers as people read them.
function short(value) {
  if (!Number.isFinite(value)) return "–";
  const [unit, letter] = [[1e9, "G"], [1e6, "M"], [1e3, "k"]].find(([size]) => value >= size) ?? [1, ""];
  if (unit === 1 && (value >= 100 || Number.isInteger(value))) return value.toFixed(0);
  return (value / unit).toPrecision(3) + letter;
}
const digits = (value) => (Number.isFinite(value) ? value.toFixed(4) : "–");
const seconds = (v) => (v < 0.0995 ? (1000 * v).toFixed(0) + " ms" : v.toFixed(v < 9.95 ? 2 : 1) + " s");
function clock(value) {
  const [s, pad] = [Math.round(value), (part) => String(Math.floor(part)).padStart(2, "0")];
  return s < 3600 ? `${Math.floor(s / 60)}:${pad(s % 60)}` : `${Math.floor(s / 3600)}:${pad((s / 60) % 60)}:${pad(s % 60)}`;
}

// About `count` round numbers between low and high, with their texts.
function ticks(low, high, count, whole) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = Math.max([1, 2, 5, 10].find((factor) => factor * power >= 0.7 * rough) * power, whole ? 1 : 0);
  const decimals = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  const first = Math.ceil(low / step - 1e-9);
  return Array.from({ length: Math.floor(high / step + 1e-9) - first + 1 }, (_, i) => {
    const tick = (first + i) * step;
    if (tick < 1000) return [tick, tick.toFixed(decimals)];
    return [tick, tick < 1e6 ? +(tick / 1e3).toPrecision(6) + "k" : +(tick / 1e6).toPrecision(6) + "M"];
  });
}

// Round numbers between low and high, both positive, that spread evenly on a logarithmic axis.
function logTicks(low, high) {
  for (const factors of [[1], [1, 3], [1, 2, 5], [1, 1.5, 2, 3, 5, 7]]) {
    const all = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) {
      all.push(...factors.map((factor) => +(factor * 10 ** power).toPrecision(3)));
    }
    const inside = all.filter((value) => low <= value && value <= high);
    if (inside.length >= 3) return inside;
  }
  return ticks(low, high, 4).map(([tick]) => +tick.toPrecision(6));
}

// The ticks at these values, with equally many decimals.
function named(values, to) {
  const decimals = Math.max(...values.map((v) => (String(+v.toPrecision(6)).split(".")[1] ?? "").length));
  return values.map((v) => [to(v), v.toFixed(decimals)]);
}

// The figures of `points` by column, and the samples a second between one point and the next.
function columnsOf(model) {
  const names = model.get("columns");
  const { buffer, byteOffset, byteLength } = model.get("points");
  const rows = new Float32Array(buffer.slice(byteOffset, byteOffset + byteLength));
  const length = rows.length / names.length;
  const column = (j) => Float32Array.from({ length }, (_, i) => rows[i * names.length + j]);
  const columns = Object.fromEntries(names.map((name, j) => [name, column(j)]));
  const { elapsed, n_samples_seen: seen } = columns;
  columns.rate = elapsed.map((time, i) => (seen[i] - (seen[i - 1] ?? 0)) / (time - (elapsed[i - 1] ?? 0)));
  return columns;
}

// Training: solid, circles. Validation: dashed, squares.
function mark(kind, x, y, r = 2.5) {
  const attributes = { class: `dbksvd-mark dbksvd-${kind}` };
  if (kind !== "validation") return svg("circle", { ...attributes, cx: x, cy: y, r });
  return svg("rect", { ...attributes, x: x - r, y: y - r, width: 2 * r, height: 2 * r });
}
const label = (text, x, y, anchor) => svg("text", { x, y, "text-anchor": anchor }, text);

function card(size, title, hint, values, body) {
  const header = element("header", {}, element("h4", {}, title), ...values);
  return element("section", { class: `dbksvd-card dbksvd-${size}`, title: hint }, header, body);
}

// A drawing with places (iterations, bins) of which one is chosen, by pointing at it or by arrow keys.
function explorable(title, { count, at, nearest, move }) {
  const attributes = { class: "dbksvd-svg", tabindex: 0, role: "slider", "aria-label": title, "aria-valuemin": 0 };
  const node = svg("svg", { ...attributes, "data-lm-suppress-shortcuts": "true" }); // the arrow keys of JupyterLab
  node.addEventListener("keydown", (event) => {
    const last = count() - 1;
    const step = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, Home: -last, End: last }[event.key];
    if (event.key === "Escape") move(null);
    else if (step !== undefined && last >= 0) move(Math.min(Math.max((at() ?? last) + step, 0), last));
    else return;
    event.preventDefault();
  });
  node.addEventListener("pointermove", (event) => move(nearest(event.clientX - node.getBoundingClientRect().left)));
  for (const event of ["pointerleave", "blur"]) node.addEventListener(event, () => move(null));
  node.tell = (text) => {
    const values = { "aria-valuemax": Math.max(count() - 1, 0), "aria-valuenow": at() ?? Math.max(count() - 1, 0) };
    fill(node, { ...values, "aria-valuetext": text }, []);
  };
  return node;
}

// Lines over the iterations, with the crosshair that all charts share.
class LineChart {
  constructor(crosshair, { title, hint, series, format, log, latest, small = false, whole = false }) {
    Object.assign(this, { series, format, log, latest, small, whole });
    const nearest = (pixel) => (this.place ? crosshair.nearest(this.place.iteration(pixel)) : null);
    this.svg = explorable(title, { ...crosshair, nearest });
    this.values = series.map(() => element("b"));
    this.legends = series.map(({ kind }, i) => {
      const sample = svg("svg", { class: "dbksvd-sample", width: small ? 8 : 20, height: 10, "aria-hidden": "true" });
      if (small) sample.append(mark(kind, 4, 5, 3));
      else sample.append(svg("path", { class: `dbksvd-line dbksvd-${kind}`, d: "M0 5H20" }), mark(kind, 10, 5));
      const named = kind === "neutral" ? [] : small ? [sample] : [sample, kind];
      return element("span", { class: "dbksvd-legend" }, ...named, this.values[i]);
    });
    this.node = card(small ? "small" : "large", title, hint, this.legends, this.svg);
  }

  draw(columns, isLogarithmic) {
    const [width, height] = this.size;
    const [left, right, top, bottom] = this.small ? [30, 6, 8, 8] : [36, 10, 10, 20];
    const linear = { to: (v) => v, ticks: (low, high) => ticks(low, high, this.small ? 2 : 5, this.whole) };
    const scale = (isLogarithmic && this.log) || linear;
    const xs = columns.iteration;
    this.columns = this.series.map(({ column }) => columns[column]);
    const heights = this.columns.map((values) => values.map(scale.to));
    let [low, high] = range(heights);
    this.place = null;
    this.svg.replaceChildren();
    if (low > high && !this.small) this.svg.append(label("no iteration yet", width / 2, height / 2, "middle"));
    if (low > high || width < 60) return;
    const isFlat = high - low < 1e-6 * Math.max(1, Math.abs(high));
    if (isFlat) [low, high] = this.whole ? [low, high + 1] : [low - 0.5, high + 0.5];
    const margin = 0.05 * (high - low);
    [low, high] = [this.whole ? Math.min(low, 0) : low - margin, high + margin];
    const [first, last] = [xs[0], Math.max(xs[xs.length - 1], xs[0] + 1)];
    const unit = (width - left - right) / (last - first);
    const x = (iteration) => left + (iteration - first) * unit;
    const y = (value) => height - bottom - ((value - low) / (high - low)) * (height - top - bottom);
    this.place = { x, y: (value) => y(scale.to(value)), iteration: (pixel) => first + (pixel - left) / unit, top, bottom };
    for (const [tick, text] of scale.ticks(low, high)) {
      const at = y(tick);
      this.svg.append(svg("line", { class: "dbksvd-grid", x1: left, x2: width - right, y1: at, y2: at }));
      this.svg.append(label(text, left - 6, at + 3.5, "end"));
    }
    for (const [tick, text] of this.small ? [] : ticks(first, last, Math.max(2, width / 90), true)) {
      this.svg.append(label(text, x(tick), height - 5, "middle"));
    }
    const end = xs.length - 1;
    const every = this.small ? Infinity : 2 ** Math.max(0, Math.ceil(Math.log2(xs.length / 10)));
    this.series.forEach(({ kind }, i) => {
      let [line, pen] = ["", "M"];
      const marks = [];
      heights[i].forEach((value, j) => {
        if (!Number.isFinite(value)) return void (pen = "M");
        const [px, py] = [Math.round(10 * x(xs[j])) / 10, Math.round(10 * y(value)) / 10];
        line += pen + px + " " + py;
        pen = "L";
        if (j === end || j % every === 0) marks.push(mark(kind, px, py));
      });
      this.svg.append(svg("path", { class: `dbksvd-line dbksvd-${kind}`, d: line }), ...marks);
    });
    this.crosshair = svg("g", { class: "dbksvd-crosshair" });
    this.svg.append(this.crosshair);
  }

  // The values at the crosshair, or the last ones where there is none.
  hover(columns, at) {
    const here = at ?? columns.iteration.length - 1;
    const iteration = `iteration ${columns.iteration[here]}`;
    const latest = at === null ? this.latest?.() : null;
    const figures = this.columns.map((values) => this.format(latest ?? values[here] ?? NaN));
    this.values.forEach((node, i) => (node.textContent = figures[i]));
    this.legends.forEach((node, i) => (node.hidden = i > 0 && this.columns[i].every(Number.isNaN)));
    const named = this.series.map(({ kind }, i) => (kind === "neutral" ? "" : kind + " ") + figures[i]).join(", ");
    this.svg.tell(here < 0 ? "no iteration yet" : `${iteration}: ${named}`);
    if (!this.place) return;
    this.crosshair.replaceChildren();
    if (at === null) return;
    const { top, bottom, ...place } = this.place;
    const [x, [width, height]] = [place.x(columns.iteration[at]), this.size];
    this.crosshair.append(svg("line", { x1: x, x2: x, y1: top, y2: height - bottom }));
    this.series.forEach(({ kind }, i) => {
      const y = place.y(this.columns[i][at]);
      if (Number.isFinite(y)) this.crosshair.append(mark(kind, x, y, this.small ? 3 : 4));
    });
    if (this.small) return;
    const half = 6 + 2.8 * iteration.length;
    const middle = Math.min(Math.max(x, half), width - half);
    this.crosshair.append(svg("rect", { x: middle - half, y: height - 17, width: 2 * half, height: 16, rx: 3 }));
    this.crosshair.append(label(iteration, middle, height - 5.5, "middle"));
  }
}

// The least and the largest of the numbers; NaN is none.
function range(lists) {
  let [low, high] = [Infinity, -Infinity];
  for (const values of lists) {
    for (const value of values) {
      if (value < low) low = value;
      if (value > high) high = value;
    }
  }
  return [low, high];
}

// How many atoms have how large a coherence.
class Histogram {
  constructor(model, schedule) {
    Object.assign(this, { model, at: null, value: element("span", { class: "dbksvd-legend" }) });
    const count = () => model.get("histogram").length;
    const nearest = (x) => {
      const bin = Math.floor(((x - 6) / (this.size[0] - 12)) * count());
      return Math.min(Math.max(bin, 0), count() - 1);
    };
    const move = (at) => {
      this.at = at;
      schedule();
    };
    this.svg = explorable("Coherence of atoms", { count, at: () => this.at, nearest, move });
    const hint = "How many atoms have how large a |cos| with the atom nearest to them.";
    this.node = card("histogram", "Coherence of atoms", hint, [this.value], this.svg);
  }

  draw() {
    const { at } = this;
    const counts = this.model.get("histogram");
    const n = counts.length;
    const [width, height] = [this.size[0] - 12, this.size[1] - 18];
    const [bar, unit] = [width / n, (height - 4) / Math.max(...counts, 1)];
    const bars = counts.map((count, i) => {
      const size = count && Math.max(1, count * unit);
      return `M${(6.5 + i * bar).toFixed(1)} ${height}v${-size.toFixed(1)}h${(bar - 1).toFixed(1)}v${size.toFixed(1)}z`;
    });
    this.svg.replaceChildren(
      svg("path", { class: "dbksvd-bars", d: bars.join("") }),
      svg("line", { class: "dbksvd-axis", x1: 6, x2: width + 6, y1: height, y2: height }),
      ...[0, 0.25, 0.5, 0.75, 1].map((tick) => label(tick, 6 + tick * width, height + 13, "middle")),
    );
    const bins = `${((at ?? 0) / n).toFixed(3)} to ${(((at ?? 0) + 1) / n).toFixed(3)}`;
    const text = at === null ? medianOf(counts) : `${bins}: ${counts[at]} atoms`;
    if (at !== null) this.svg.append(svg("rect", { class: "dbksvd-chosen", x: 6 + at * bar, y: 0, width: bar, height }));
    this.value.textContent = text;
    this.svg.tell(text);
  }
}

// As if the atoms of a bin were spread evenly over it.
function medianOf(counts) {
  const half = counts.reduce((sum, count) => sum + count, 0) / 2;
  let below = 0;
  const bin = counts.findIndex((count) => (below += count) >= half);
  return half ? `median ${((bin + 1 - (below - half) / counts[bin]) / counts.length).toFixed(2)}` : "";
}

// A bar for each stage of the iteration at the crosshair, or of the last one.
class Stages {
  constructor(columns) {
    this.value = element("span", { class: "dbksvd-legend" });
    this.rows = columns.map((column) => {
      const [bar, value] = [element("i"), element("b")];
      const name = element("span", {}, column.replace("stage ", ""));
      return { column, bar, value, node: element("li", {}, name, element("div", {}, bar), value) };
    });
    const list = element("ul", {}, ...this.rows.map(({ node }) => node));
    this.node = card("stages", "Seconds by stage", STAGES, [this.value], list);
  }

  hover(columns, at) {
    this.value.textContent = at < 0 ? "" : `wall time ${seconds(columns.seconds[at])}`;
    const longest = Math.max(...this.rows.map(({ column }) => columns[column][at] ?? 0));
    for (const { column, bar, value } of this.rows) {
      bar.style.width = at < 0 || !longest ? 0 : `${(100 * columns[column][at]) / longest}%`;
      value.textContent = at < 0 ? "" : seconds(columns[column][at]);
    }
  }
}

function render({ model, el }) {
  let columns = columnsOf(model);
  let isStale = true; // whether the lines are to be drawn anew
  let isLogarithmic = false;
  let frame = 0;
  let pressed = null; // the button pressed last, until the fit answers
  let chosen = null; // the iteration at the crosshair: by its number, since points are dropped
  const nearest = (iteration) => {
    const after = columns.iteration.findIndex((other) => other >= iteration);
    if (after <= 0) return after ? columns.iteration.length - 1 : 0;
    return columns.iteration[after] - iteration < iteration - columns.iteration[after - 1] ? after : after - 1;
  };
  const crosshair = {
    count: () => columns.iteration.length,
    at: () => (chosen === null || !crosshair.count() ? null : nearest(chosen)),
    nearest,
    move(at) {
      chosen = at === null ? null : columns.iteration[at];
      schedule();
    },
  };

  const both = (name) => [
    { kind: "training", column: "train_" + name },
    { kind: "validation", column: "validation_" + name },
  ];
  const one = (column) => [{ kind: "neutral", column }];
  const [small, whole] = [true, true];
  const latest = () => model.get("status").samples_per_second;
  const charts = [
    { title: "Relative error", hint: HINT, series: both("relative_error"), format: digits, log: ERROR_LOG },
    { title: "Variance explained", hint: HINT, series: both("variance_explained"), format: digits, log: VARIANCE_LOG },
    { title: "Samples/s", hint: "", series: one("rate"), format: short, latest, small, whole },
    { title: "Unused atoms", hint: UNUSED, series: one("n_unused_atoms"), format: short, small, whole },
    { title: "L0", hint: "Mean number of atoms that a sample uses.", series: both("l0"), format: short, small },
  ].map((options) => new LineChart(crosshair, options));
  const histogram = new Histogram(model, schedule);
  const stages = new Stages(model.get("columns").filter((name) => name.startsWith("stage ")));

  const button = (name, text, press) => {
    const attributes = { type: "button", class: `dbksvd-button dbksvd-${name}`, "data-lm-suppress-shortcuts": "true" };
    const node = element("button", attributes, text);
    node.addEventListener("click", press);
    return node;
  };
  const command = (name) => {
    pressed = { name, state: model.get("status").state };
    model.send({ command: name });
    drawStatus();
  };
  const isHeld = () => ["pausing", "paused"].includes(model.get("status").state);
  const pause = button("pause", "Pause", () => command(isHeld() ? "resume" : "pause"));
  const stop = button("stop", "Stop", () => command("stop"));
  const log = button("log", "log scale", () => {
    isLogarithmic = !isLogarithmic;
    redraw();
  });
  const dashboard = element("a", { class: "dbksvd-dashboard", target: "_blank", rel: "noopener" }, "Dask dashboard");
  const status = element("span", { class: "dbksvd-status", role: "status", "aria-live": "polite" });
  const progress = element("span");
  const filled = element("i");
  const bar = element("div", { class: "dbksvd-bar", role: "progressbar", "aria-label": "iterations" }, filled);
  const root = element(
    "div",
    { class: "dbksvd-monitor", role: "group", "aria-label": "Convergence of the fit" },
    element("div", { class: "dbksvd-top" }, status, log, dashboard, pause, stop),
    element("div", { class: "dbksvd-progress" }, bar, progress),
    element("div", { class: "dbksvd-cards" }, ...charts.map(({ node }) => node), histogram.node, stages.node),
  );
  el.append(root);

  function drawStatus() {
    const { state, message, n_iterations: n, n_done: done, elapsed, remaining } = model.get("status");
    const isStatic = model.get("static");
    const hasEnded = state === "finished" || state === "failed";
    if (pressed?.state !== state) pressed = null;
    let [title, more] = [STATES[state], message && ": " + message];
    if (pressed) [title, more] = [ANSWERS[pressed.name], ""];
    if (isStatic && !hasEnded) [title, more] = ["Saved while " + state, ""];
    // Only what is new: a screen reader would read it again.
    if (status.textContent !== title + more) status.replaceChildren(element("b", {}, title), more);
    const left = remaining === null || isStatic ? "" : `about ${clock(remaining)} left`;
    const parts = [n && `${done} of ${n} iterations`, elapsed && clock(elapsed), left];
    progress.textContent = parts.filter(Boolean).join(" · ");
    filled.style.width = n ? `${(100 * done) / n}%` : 0;
    fill(bar, { "aria-valuemax": n, "aria-valuenow": done }, []);
    Object.assign(root.dataset, { state, points: columns.iteration.length });
    pause.hidden = stop.hidden = hasEnded || isStatic;
    pause.textContent = isHeld() ? "Resume" : "Pause";
    pause.disabled = pressed !== null || state === "stopping";
    stop.disabled = pressed?.name === "stop" || state === "stopping";
    log.setAttribute("aria-pressed", isLogarithmic);
    dashboard.hidden = isStatic || !/^https?:\/\//i.test(model.get("dashboard"));
    if (!dashboard.hidden) dashboard.href = model.get("dashboard");
  }

  function draw() {
    frame = 0;
    drawStatus();
    if (!root.clientWidth) return; // without a size, as while a theme is changed: with one, it is drawn anew
    if (isStale) {
      // All sizes first: to ask for one after a change makes the browser lay out everything.
      for (const it of [...charts, histogram]) it.size = [it.svg.clientWidth, it.svg.clientHeight];
      for (const chart of charts) chart.draw(columns, isLogarithmic);
      isStale = false;
    }
    for (const chart of charts) chart.hover(columns, crosshair.at());
    histogram.draw();
    stages.hover(columns, crosshair.at() ?? columns.iteration.length - 1);
  }
  function schedule() {
    frame ||= requestAnimationFrame(draw);
  }
  function redraw() {
    isStale = true;
    schedule();
  }
  function update() {
    columns = columnsOf(model);
    redraw();
  }

  const resized = new ResizeObserver(redraw);
  for (const { svg } of [...charts, histogram]) resized.observe(svg);
  const handlers = { points: update, histogram: schedule, status: schedule, dashboard: schedule };
  for (const [name, handler] of Object.entries(handlers)) model.on("change:" + name, handler);
  drawStatus();
  return () => {
    for (const [name, handler] of Object.entries(handlers)) model.off("change:" + name, handler);
    resized.disconnect();
    cancelAnimationFrame(frame);
  };
}

export default { render };
