// The atom explorer: a table of all atoms and what the chosen one means, drawn from the traits of AtomExplorer.
// Tokens and labels are arbitrary text: they become text of the page, never markup.

const ROW_HEIGHT = 24;
const COLUMNS = {
  atom: { title: "Atom", ascending: true, width: "3.7em", write: String },
  label: { title: "Label", ascending: true, width: "minmax(4em, 1fr)", write: (text) => visible(text ?? "") },
  share: { title: "Share", width: "4.4em", write: percent, hint: "Share of its strongest samples that are the token" },
  usage: { title: "Usage", width: "4.6em", write: whole, hint: "Samples that use the atom" },
  coherence: { title: "Coherence", width: "6.7em", write: cosine, hint: "Largest |cosine| with another atom" },
  mean_abs: { title: "Mean |c|", width: "5.5em", write: figure, hint: "Mean |coefficient| where the atom is used" },
  group: { title: "Group", ascending: true, width: "4.4em", write: String, hint: "Matryoshka group" },
};

export default {
  render({ model, el }) {
    const choose = (atom) => save(model, "chosen", atom);
    const left = element("div.dbksvd-atoms");
    const right = element("section.dbksvd-detail", { "aria-label": "The chosen atom" });
    const endings = [searchBox(model, left), atomTable(model, left, choose), atomDetail(model, right, choose)];
    const root = element("div.dbksvd-explorer", { role: "group", "aria-label": "Atoms of the dictionary" },
      element("div.dbksvd-halves", left, right));
    root.addEventListener("keydown", (event) => {
      if (!event.ctrlKey && !event.metaKey && !event.altKey) event.stopPropagation(); // no commands to the notebook
    });
    el.append(root);
    return () => endings.forEach((end) => end());
  },
};

function searchBox(model, parent) {
  const input = textField("dbksvd-search", "Search atoms by token", { role: "searchbox" });
  const clear = button("dbksvd-clear", "Clear the search", "×", () => {
    input.value = "";
    ask();
    input.focus();
  });
  const note = element("div.dbksvd-note", { role: "status" });
  let timer;
  const ask = () => {
    clearTimeout(timer);
    const query = input.value.trim();
    save(model, "query", query);
    if (model.get("static")) model.set("found", searchDetails(model.get("details"), query));
  };
  const show = () => {
    const query = model.get("query");
    const { note: told, atoms } = model.get("found");
    if (!input.matches(":focus")) input.value = query;
    clear.hidden = !input.value;
    const answer = () => told || `Atoms with it among their strongest samples: ${whole(atoms.length)}`;
    note.textContent = !query ? "" : isAnswered(model) ? answer() : "Searching …";
  };
  input.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(ask, 300);
    clear.hidden = !input.value;
  });
  input.addEventListener("keydown", (event) => {
    if (event.key === "Enter") ask();
    if (event.key === "Escape" && input.value) clear.click();
  });
  parent.append(element("div.dbksvd-searching", { role: "search" }, input, clear), note);
  show();
  return listen(model, { query: show, found: show });
}

function atomTable(model, parent, choose) {
  const name = "dbksvd-" + Math.random().toString(36).slice(2); // of the rows of this view
  const header = element("div.dbksvd-titles", { role: "row" });
  const body = element("div.dbksvd-rows", { role: "rowgroup" });
  const head = element("div.dbksvd-head", { role: "rowgroup" }, header);
  const sheet = element("div.dbksvd-sheet", { role: "presentation" }, head, body);
  const grid = element("div.dbksvd-table", { role: "grid", tabindex: 0, "aria-label": "Atoms" }, sheet);
  parent.append(grid);
  let sort = { key: "usage", descending: true };
  let before = sort; // while a search is shown
  let found = null; // the search that is shown
  let [columns, shown, order, cursor, frame, timer, height] = [];
  const rows = [];

  const load = () => {
    columns = columnsOf(model);
    arrange();
  };
  const search = () => {
    const answer = model.get("query") ? (isAnswered(model) ? model.get("found") : found) : null;
    if (answer === found) return;
    if (!found) before = sort;
    sort = answer ? { key: "share", descending: true } : before;
    found = answer;
    arrange();
  };
  const arrange = () => {
    const { group } = model.get("atoms");
    columns.label = model.get("labels");
    columns.share = Object.fromEntries(found?.atoms.map((atom, i) => [atom, found.share[i]]) ?? []);
    shown = Object.keys(COLUMNS).filter((key) => (key !== "group" || group) && (key !== "share" || found));
    order = [...(found?.atoms ?? columns.atom)].sort(comparison(columns[sort.key], sort.descending));
    cursor = Math.max(0, order.indexOf(model.get("chosen")));
    header.replaceChildren(...shown.map(title));
    grid.style.setProperty("--columns", shown.map((key) => COLUMNS[key].width).join(" "));
    grid.setAttribute("aria-rowcount", order.length + 1);
    body.style.height = `${order.length * ROW_HEIGHT}px`;
    rows.splice(0).forEach((row) => row.remove());
    grid.scrollTop = 0;
    draw();
  };
  const title = (key) => {
    const { title, hint, ascending } = COLUMNS[key];
    const direction = sort.key !== key ? "none" : sort.descending ? "descending" : "ascending";
    const sorter = element("button.dbksvd-sorter", { type: "button", title: hint ?? title }, title);
    sorter.addEventListener("click", () => {
      sort = { key, descending: sort.key === key ? !sort.descending : !ascending };
      arrange();
      header.children[shown.indexOf(key)].firstChild.focus();
    });
    return element(`div.dbksvd-cell dbksvd-in-${key}`, { role: "columnheader", "aria-sort": direction }, sorter);
  };
  // Only rows in view are elements, and they stay while scrolling gives them other atoms.
  const draw = () => {
    const first = Math.max(0, Math.floor(grid.scrollTop / ROW_HEIGHT) - 4);
    const count = Math.min(order.length - first, Math.ceil(grid.clientHeight / ROW_HEIGHT) + 8);
    const chosen = model.get("chosen");
    const details = model.get("static") && model.get("details");
    columns.label = model.get("labels");
    while (rows.length > count) rows.pop().remove();
    while (rows.length < count) {
      const cells = shown.map((key) => element(`div.dbksvd-cell dbksvd-in-${key}`, { role: "gridcell" }));
      rows.push(element("div.dbksvd-row", { role: "row" }, ...cells));
      body.append(rows.at(-1));
    }
    rows.forEach((row, i) => {
      const atom = order[first + i];
      row.id = `${name}-${atom}`;
      row.dataset.atom = atom;
      row.title = visible(columns.label[atom] ?? "");
      row.style.top = `${(first + i) * ROW_HEIGHT}px`;
      row.setAttribute("aria-rowindex", first + i + 2);
      row.setAttribute("aria-selected", atom === chosen);
      row.classList.toggle("dbksvd-cursor", first + i === cursor);
      row.classList.toggle("dbksvd-bare", details && !(atom in details));
      shown.forEach((key, j) => (row.children[j].textContent = COLUMNS[key].write(columns[key][atom])));
    });
    grid.setAttribute("aria-activedescendant", `${name}-${order[cursor]}`);
  };
  const reveal = () => {
    const top = cursor * ROW_HEIGHT;
    const bottom = top + ROW_HEIGHT + header.offsetHeight - grid.clientHeight;
    grid.scrollTop = Math.min(top, Math.max(bottom, grid.scrollTop));
    draw();
  };
  const follow = () => {
    clearTimeout(timer);
    const place = order.indexOf(model.get("chosen"));
    if (place < 0) return draw();
    cursor = place;
    reveal();
  };
  grid.addEventListener("scroll", () => {
    cancelAnimationFrame(frame);
    frame = requestAnimationFrame(draw);
  });
  grid.addEventListener("click", (event) => {
    const row = event.target.closest(".dbksvd-row");
    if (row) choose(Number(row.dataset.atom));
  });
  grid.addEventListener("keydown", (event) => {
    if (event.target !== grid || !order.length || event.ctrlKey || event.metaKey || event.altKey) return;
    const page = Math.max(1, Math.floor(grid.clientHeight / ROW_HEIGHT) - 2);
    const all = order.length;
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -all, End: all };
    const step = steps[event.key];
    if (!step && event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    clearTimeout(timer);
    if (!step) return choose(order[cursor]);
    cursor = Math.min(order.length - 1, Math.max(0, cursor + step));
    timer = setTimeout(() => choose(order[cursor]), 200); // once the keys rest
    reveal();
  });
  load();
  search();
  new ResizeObserver(() => {
    const appears = !height;
    height = grid.clientHeight;
    if (appears) reveal();
    else draw();
  }).observe(grid);
  return listen(model, { table: load, query: search, found: search, labels: draw, chosen: follow });
}

function atomDetail(model, parent, choose) {
  const still = model.get("static");
  const trail = []; // of the atoms chosen
  let place = -1;
  const step = (by) => choose(trail[(place += by)]);
  const back = button("dbksvd-step", "Back to the atom before", "‹", () => step(-1));
  const forward = button("dbksvd-step", "Forward to the next atom", "›", () => step(1));
  const heading = element("h3", { tabindex: -1 });
  const field = () => textField("dbksvd-naming", "Label this atom", { maxlength: 200, dir: "auto" });
  const label = still ? element("span.dbksvd-name") : field();
  const content = element("div.dbksvd-content");
  parent.append(element("div.dbksvd-heading", back, forward, heading, label), content);

  const keep = () => {
    const atom = parent.dataset.atom;
    const labels = { ...model.get("labels") };
    const text = label.value?.trim();
    if (still || atom === undefined || text === (labels[atom] ?? "")) return;
    if (text) labels[atom] = text;
    else delete labels[atom];
    save(model, "labels", labels);
  };
  // In place: a label is saved when the mouse goes down on something else, which must live to be clicked.
  const name = () => {
    const labels = model.get("labels");
    const text = labels[parent.dataset.atom] ?? "";
    if (still) label.textContent = visible(text);
    else if (!label.matches(":focus")) label.value = text;
    content.querySelectorAll(".dbksvd-chip").forEach(({ children, dataset }) => {
      children[1].textContent = visible(labels[dataset.atom] ?? "");
    });
  };
  const current = () => {
    const chosen = model.get("chosen");
    if (!still) return model.get("detail");
    if (chosen < 0) return {};
    const row = Object.entries(columnsOf(model)).map(([key, column]) => [key, column[chosen]]);
    return model.get("details")[chosen] ?? Object.fromEntries(row);
  };
  const show = () => {
    const detail = current();
    const known = detail.atom !== undefined;
    const focused = content.matches(":focus-within");
    if (String(detail.atom) !== parent.dataset.atom) {
      keep(); // what is being written belongs to the atom before
      if (!still) label.value = model.get("labels")[detail.atom] ?? "";
    }
    if (known) parent.dataset.atom = detail.atom;
    else delete parent.dataset.atom;
    heading.textContent = known ? `Atom ${detail.atom}` : "";
    label.hidden = !known;
    const nothing = hint("Choose an atom to see what it stands for.");
    content.replaceChildren(...(known ? describe(detail, model, choose) : [nothing]));
    content.scrollTop = 0;
    if (focused) heading.focus();
    name();
    wait();
  };
  const wait = () => {
    const waiting = !still && model.get("chosen") >= 0 && model.get("chosen") !== model.get("detail").atom;
    parent.classList.toggle("dbksvd-waiting", waiting);
    parent.setAttribute("aria-busy", waiting);
  };
  const follow = () => {
    const chosen = model.get("chosen");
    if (chosen >= 0 && chosen !== trail[place]) trail.splice(++place, Infinity, chosen);
    back.disabled = place <= 0;
    forward.disabled = place >= trail.length - 1;
    if (still) show();
    else wait();
  };
  label.addEventListener("blur", keep);
  label.addEventListener("keydown", (event) => {
    if (event.key === "Enter") keep();
    if (event.key === "Escape") label.value = model.get("labels")[parent.dataset.atom] ?? "";
  });
  follow();
  show();
  return listen(model, { detail: show, chosen: follow, labels: name });
}

function describe(detail, model, choose) {
  const { usage, positive, negative, nearest, together, n_sampled } = detail;
  const { n_samples, group } = model.get("atoms");
  const figures = [["used by", `${whole(usage)} samples, ${percent(usage / n_samples)}`],
    ["mean |coefficient|", figure(detail.mean_abs)], ["coherence", cosine(detail.coherence)]];
  if (group) figures.push(["group", String(detail.group)]);
  const list = element("dl", ...figures.flatMap(([term, text]) => [element("dt", term), element("dd", text)]));
  if (!positive) return [list, hint("This page has no examples of this atom.")];
  if (!usage) return [list, hint("No sample uses this atom.")];

  const limit = Math.max(...[...positive, ...negative].flatMap(({ values }) => values.map(Math.abs)));
  const column = (sign, title, examples) => element(`section.dbksvd-${sign}`, { "aria-label": title },
    element("h4", title),
    examples.length ? element("ol", ...examples.map((example) => exampleOf(example, limit))) : element("p", "None"));
  const chips = (title, told, atoms) => element("section.dbksvd-chips", { "aria-label": told },
    element("h4", { title: told }, title),
    element("div", ...(atoms.length ? atoms.map((entry) => chipOf(...entry, choose)) : ["None"])));
  const near = nearest.map(({ atom, cos }) => [atom, signed(cos, 2), `cosine ${signed(cos)}`]);
  const company = together.map(({ atom, share, lift }) => [
    atom,
    `${percent(share)} ×${figure(lift, lift < 9.95 ? 1 : 0)}`,
    `used by ${percent(share)} of this atom's samples, ${figure(lift)} times as often as by all`,
  ]);
  const counted = n_sampled < usage ? `, counted on ${whole(n_sampled)} of them` : "";
  return [
    element("div.dbksvd-summary", list, histogramOf(detail.histogram)),
    chips("Nearest", "Nearest atoms, by |cosine|", near),
    chips("Together", `Atoms that fire together with this one: the same samples use them${counted}`, company),
    element("div.dbksvd-examples", column("positive", "Strongest positive", positive),
      column("negative", "Strongest negative", negative)),
  ];
}

function chipOf(atom, text, told, choose) {
  const chip = button("dbksvd-chip", `Atom ${atom}: ${told}`, "", () => choose(atom));
  chip.dataset.atom = atom;
  chip.append(element("b", atom), element("span.dbksvd-name"), element("small", text));
  return chip;
}

function exampleOf({ value, tokens, values, at, where }, limit) {
  const context = element("p", { dir: "auto" });
  // Some tokenizers mark where a word begins, WordPiece where one goes on.
  const begins = /^[Ġ▁]/;
  const marked = tokens.some((token) => begins.test(token));
  tokens.forEach((token, i) => {
    const joined = marked ? !begins.test(token) : /^##./.test(token);
    const text = visible(token.replace(marked ? /^[Ġ▁](?=.)/ : /^##(?=.)/, ""));
    const title = `${text}  ${values[i] ? signed(values[i]) : 0}`;
    const sign = values[i] > 0 ? "dbksvd-plus" : values[i] < 0 ? "dbksvd-minus" : "";
    const span = element(`span.dbksvd-token ${sign} ${i === at ? "dbksvd-at" : ""}`, { title }, text);
    span.style.setProperty("--strength", Math.abs(values[i]) / limit);
    context.append(i && !joined ? " " : "", span);
  });
  const told = element("div", context, element("small", visible(where)));
  return element("li.dbksvd-example", element("b", signed(value)), told);
}

function histogramOf({ counts, low, high }) {
  const n = counts.length;
  const edge = (i) => low + ((high - low) * i) / n;
  const readout = element("div", { role: "status" });
  const bars = counts.map((count, i) => {
    const height = count && Math.max(2, (100 * count) / Math.max(...counts));
    const sign = edge(i + 0.5) < 0 ? "dbksvd-minus" : "dbksvd-plus";
    return element("rect", { class: sign, x: i + 0.06, width: 0.88, y: 100 - height, height });
  });
  const told = `Histogram of the coefficients, from ${figure(low)} to ${figure(high)}; arrow keys read it`;
  const drawing = element("svg", { viewBox: `0 0 ${n} 100`, preserveAspectRatio: "none", tabindex: 0, role: "img",
    "aria-label": told }, ...bars);
  const zero = (-low / (high - low)) * n;
  if (zero > 0 && zero < n) drawing.append(element("line", { x1: zero, x2: zero, y1: 0, y2: 100 }));
  let at = -1;
  const read = (i) => {
    at = Math.min(i, n - 1);
    bars.forEach((bar, j) => bar.classList.toggle("dbksvd-read", j === at));
    const range = `${figure(edge(at))} to ${figure(edge(at + 1))}`;
    readout.textContent = at < 0 ? "Coefficients" : `${range}: ${whole(counts[at])}`;
  };
  drawing.addEventListener("pointermove", ({ clientX }) => {
    const { left, width } = drawing.getBoundingClientRect();
    read(Math.max(0, Math.floor((n * (clientX - left)) / width)));
  });
  for (const event of ["pointerleave", "blur"]) drawing.addEventListener(event, () => read(-1));
  drawing.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    read(Math.max(0, at + step));
    event.preventDefault();
  });
  read(-1);
  const ends = element("div", element("span", figure(low)), element("span", figure(high)));
  return element("div.dbksvd-coefficients", readout, drawing, ends);
}

function isAnswered(model) {
  return model.get("found").query === model.get("query");
}

// As AtomExplorer.search, of the examples in a page.
function searchDetails(details, query) {
  const plain = (token) => (token.trim().replace(/^##(?=.)/, "").replace(/^[Ġ▁]+(?=.)/, "") || token).toLowerCase();
  const hits = (matches) => Object.entries(details).map(([atom, { positive, negative }]) => {
    const examples = [...positive, ...negative];
    return [Number(atom), examples.filter(({ tokens, at }) => matches(plain(tokens[at]))).length / examples.length];
  }).filter(([, share]) => share > 0).sort((a, b) => b[1] - a[1]);
  const text = plain(query);
  const exact = hits((token) => token === text);
  const all = exact.length ? exact : hits((token) => token.includes(text));
  const what = exact.length || !all.length ? "it" : "tokens that contain it";
  const note = `Atoms with ${what} among their examples in this page: ${all.length} of ${Object.keys(details).length}`;
  return { query, note, atoms: all.map(([atom]) => atom), share: all.map(([, share]) => share) };
}

function columnsOf(model) {
  const { buffer, byteOffset, byteLength } = model.get("table");
  const bytes = buffer.slice(byteOffset, byteOffset + byteLength); // where they are aligned
  const m = byteLength / 16;
  const column = (Type, i) => new Type(bytes, 4 * m * i, m);
  const [usage, coherence, mean_abs, group] = [Uint32Array, Float32Array, Float32Array, Uint32Array].map(column);
  return { atom: Array.from({ length: m }, (_, atom) => atom), usage, coherence, mean_abs, group };
}

// What is missing comes last in either direction; what is equal stays in order.
function comparison(column, descending) {
  const { compare } = new Intl.Collator();
  const missing = (value) => value === undefined || Number.isNaN(value);
  return (a, b) => {
    const [x, y] = [column[a], column[b]];
    if (missing(x) || missing(y)) return missing(x) - missing(y);
    return (typeof x === "string" ? compare(x, y) : x - y) * (descending ? -1 : 1);
  };
}

// Line ends, control characters, and those that turn the direction of text, as something to see.
function visible(text) {
  const seen = text.trim() ? text : text.replaceAll(" ", "␣");
  return seen.replace(/[\p{Cc}\u2028\u2029\u202a-\u202e\u2066-\u2069]/gu, (c) => {
    const code = c.charCodeAt(0);
    if (c === "\n") return "⏎";
    return code < 32 ? String.fromCharCode(0x2400 + code) : `⟨${code.toString(16).toUpperCase()}⟩`;
  });
}

function figure(value, decimals) {
  if (!Number.isFinite(value)) return "–";
  const text = decimals === undefined ? value.toPrecision(Math.abs(value) < 1000 ? 3 : 4) : value.toFixed(decimals);
  return text.replaceAll("-", "−");
}

function cosine(value) {
  return figure(value, 3);
}

function signed(value, decimals) {
  return (value > 0 ? "+" : "") + figure(value, decimals);
}

function whole(value) {
  return value.toLocaleString("en-US");
}

function percent(share) {
  return `${(100 * share).toFixed(share > 0 && share < 0.0995 ? 1 : 0)} %`;
}

function save(model, trait, value) {
  if (model.get(trait) === value) return;
  model.set(trait, value);
  model.save_changes();
}

function listen(model, handlers) {
  const each = (turn) => {
    for (const [trait, handler] of Object.entries(handlers)) model[turn](`change:${trait}`, handler);
  };
  each("on");
  return () => each("off");
}

// element("div.dbksvd-row", { role: "row" }, ...children), with or without attributes.
function element(description, ...children) {
  const [tag, kind] = description.split(".");
  const space = ["svg", "rect", "line"].includes(tag) ? "2000/svg" : "1999/xhtml";
  const node = document.createElementNS(`http://www.w3.org/${space}`, tag);
  const attributes = children[0]?.constructor === Object ? children.shift() : {};
  if (kind) node.setAttribute("class", kind);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function textField(kind, name, attributes) {
  const plain = { type: "text", autocomplete: "off", spellcheck: false, "aria-label": name, placeholder: name };
  return element(`input.${kind}`, { ...plain, ...attributes });
}

function button(kind, hint, text, press) {
  const node = element(`button.${kind}`, { type: "button", title: hint, "aria-label": hint }, text);
  node.addEventListener("click", press);
  return node;
}

function hint(text) {
  return element("p.dbksvd-hint", text);
}
