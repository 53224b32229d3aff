// The list of faces and the one that is looked at. Names and reasons come from anyone's files: they
// are only ever set as text.

import { Viewer } from "./viewer.js";

const byId = (id) => document.getElementById(id);
const FILTERS = ["order", "outcome", "decision_reason", "fallback", "source", "verdict", "person", "key", "low", "high"];
const VERDICTS = { accept: "accept restored", keep: "keep original", reject: "leave out" };
const MARKS = { accept: "✓ accept", keep: "= keep", reject: "✕ out" };

const state = { rows: [], page: 0, pages: 1, face: null, busy: false, next: null };
const form = byId("filters");
const viewer = new Viewer(byId("stages"), (scale) => {
  byId("zoom").textContent = scale === 1 ? "fit" : `${scale < 10 ? scale.toFixed(1) : Math.round(scale)} ×`;
});

// ------------------------------------------------------------------------------ asking

async function ask(address, body) {
  const options = body && {
    method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" },
  };
  let answer;
  try {
    answer = await fetch(address, options);
  } catch {
    throw new Error("the server does not answer: is `vsp review` still running?");
  }
  const value = await answer.json();
  if (!answer.ok) throw Object.assign(new Error(value.error), { status: answer.status });
  return value;
}

let silence;
function tell(text, isBad = false) {
  const told = byId("told");
  clearTimeout(silence);
  told.classList.toggle("is-bad", isBad);
  told.textContent = text;
  silence = setTimeout(() => { told.textContent = ""; }, isBad ? 6000 : 2500);
}

// One thing at a time: a verdict given while a face is on its way would be about one not yet seen,
// so it is dropped. What only leads somewhere waits; of several the last counts.
async function alone(work, waits = true) {
  if (state.busy) {
    if (waits) state.next = work;
    return;
  }
  state.busy = true;
  try {
    await work();
  } catch (error) {
    tell(error.message, true);
  }
  state.busy = false;
  const { next } = state;
  state.next = null;
  if (next) await alone(next);
}

// ------------------------------------------------------------------------------ address

function remember() {
  const words = new URLSearchParams();
  for (const name of FILTERS) {
    const value = form.elements[name].value;
    if (value && !(name === "order" && value === "doubt")) words.set(name, value);
  }
  if (state.page) words.set("page", state.page);
  if (state.face) words.set("row", state.face.row);
  history.replaceState(null, "", `#${words}`);
}

function recall() {
  const words = new URLSearchParams(location.hash.slice(1));
  for (const name of FILTERS) {
    if (words.has(name)) form.elements[name].value = words.get(name);
  }
  return { page: Number(words.get("page")) || 0, row: words.has("row") ? Number(words.get("row")) : null };
}

// ------------------------------------------------------------------------------ list

function make(name, kind, text) {
  const element = document.createElement(name);
  if (kind) element.className = kind;
  if (text !== undefined) element.textContent = text;
  return element;
}

const number = (value, digits = 2) => (value === null ? "–" : value.toFixed(digits));

function thumb(face, side, isThere) {
  if (!isThere) return make("span", "thumb");
  const image = make("img", "thumb");
  Object.assign(image, { loading: "lazy", alt: "", width: 48, height: 48, src: `/picture/${face.row}/${side}?size=small` });
  image.addEventListener("error", () => image.replaceWith(make("span", "thumb")));
  return image;
}

function item(face) {
  const button = make("button", "item");
  Object.assign(button, { type: "button", tabIndex: -1 });
  button.dataset.row = face.row;
  const text = make("span", "text");
  text.append(make("bdi", "name", face.key || "–"), make("span", "why", `${face.told}: ${face.why}`));
  const side = make("span", "side");
  const doubt = make("meter", "doubt");
  Object.assign(doubt, { min: 0, max: 1, value: face.doubt });
  doubt.setAttribute("aria-label", `doubt ${number(face.doubt)}`);
  doubt.title = `doubt ${number(face.doubt)}`;
  const after = face.after === null ? "" : ` → ${number(face.after)}`;
  side.append(make("b"), `${number(face.quality)}${after}`, doubt);
  button.append(thumb(face, "before", face.before), thumb(face, "after", face.restored), text, side);
  button.addEventListener("click", () => alone(() => show(face.row)));
  const entry = make("li");
  entry.append(button);
  mark(button, face.verdict);
  return entry;
}

function mark(button, verdict) {
  const told = button.querySelector("b");
  told.className = verdict ? `verdict-${verdict}` : "";
  told.textContent = MARKS[verdict] ?? "";
}

const buttonOf = (row) => byId("list").querySelector(`[data-row="${row}"]`);

async function list(page) {
  const words = new URLSearchParams(FILTERS.map((name) => [name, form.elements[name].value]));
  words.set("page", page);
  const found = await ask(`/api/rows?${words}`);
  Object.assign(state, { rows: found.rows, page: found.page, pages: found.pages });
  const entries = found.rows.map(item);
  if (!entries.length) entries.push(make("li", "empty", "No face is like that. Clear the filters to see all."));
  byId("list").replaceChildren(...entries);
  byId("list").scrollTop = 0;
  const faces = found.total === 1 ? "face" : "faces";
  byId("count").textContent = `${found.total.toLocaleString("en")} ${faces}`;
  byId("page").textContent = `${found.page + 1} of ${found.pages.toLocaleString("en")}`;
  byId("page-back").disabled = found.page === 0;
  byId("page-on").disabled = found.page + 1 >= found.pages;
  countDecided(found.decided);
}

function countDecided(count) {
  byId("decided").textContent = `${count.toLocaleString("en")} ${count === 1 ? "verdict" : "verdicts"}`;
}

// ------------------------------------------------------------------------------ one face

async function picture(row, side, alt) {
  const image = make("img");
  Object.assign(image, { alt, draggable: false, src: `/picture/${row}/${side}` });
  await image.decode();
  return image;
}

async function pictures(face) {
  const { before, after } = face.pictures;
  const shown = { before: { why: before, label: label(face, "before") }, after: { why: after && absence(face, after), label: label(face, "after") } };
  const load = (row, side, why) => (why ? [] : [picture(row, side, `${side}: ${face.key}`)]);
  const [own, other, right] = await Promise.all([
    Promise.all(load(face.row, "before", before)),
    Promise.all(before ? [] : load(face.row, "after", after)),
    Promise.all(load(face.row, "after", after)),
  ]);
  shown.before.images = [...own, ...other];
  shown.after.images = right;
  if (face.copy) shown.copy = await copied(face.copy);
  return shown;
}

async function copied({ row, key }) {
  const kept = await ask(`/api/row/${row}`);
  const side = kept.outcome === "restored" ? "after" : "before";
  const why = kept.pictures[side];
  const images = why ? [] : [await picture(row, side, `the copy that stays: ${key}`)];
  return { images, why, label: `the copy that stays: ${kept.key}` };
}

function absence(face, why) {
  if (face.outcome === "kept") return "kept as it is: byte for byte the picture before";
  if (face.outcome === "rejected") return "left out";
  return why;
}

function label(face, side) {
  const quality = side === "before" ? face.quality : face.after;
  const told = side === "after" && face.outcome === "fallback" ? "restored, not accepted" : side;
  return quality === null ? told : `${told}, quality ${number(quality)}`;
}

async function show(row) {
  const face = await ask(`/api/row/${row}`);
  const shown = await pictures(face).catch(() => ({
    before: { why: "the picture cannot be shown" }, after: { why: "the picture cannot be shown" },
  }));
  state.face = face;
  byId("key").firstElementChild.textContent = face.key || "–";
  byId("sentence").textContent = face.sentence;
  byId("brief").replaceChildren(...face.brief.map(([name, value]) => {
    const entry = make("li", "", `${name} `);
    entry.append(make("b", "", value));
    return entry;
  }));
  viewer.flicker(false);
  viewer.show(shown);
  values(face);
  verdicts(face);
  current(row);
  remember();
}

function current(row) {
  for (const button of byId("list").querySelectorAll(".item")) {
    const isCurrent = Number(button.dataset.row) === row;
    button.tabIndex = isCurrent ? 0 : -1;
    if (isCurrent) button.setAttribute("aria-current", "true");
    else button.removeAttribute("aria-current");
  }
  const button = buttonOf(row);
  if (button && matchMedia("(min-width: 62rem)").matches) button.scrollIntoView({ block: "nearest" });
  if (button && document.activeElement?.classList.contains("item")) button.focus({ preventScroll: true });
}

function values(face) {
  const sections = face.sections.map(({ title, lines }) => {
    const section = make("section");
    const table = make("table");
    table.append(...lines.map(line));
    section.append(make("h3", "", title), table);
    return section;
  });
  byId("values").replaceChildren(...sections);
}

function line({ label: name, before, after, hint }) {
  const row = make("tr");
  const head = make("th", "", name);
  head.scope = "row";
  const cell = make("td");
  cell.append(make("bdi", "", before));
  if (after) cell.append(make("span", "arrow", "→"), make("bdi", "", after));
  if (hint) cell.append(make("small", "", hint));
  row.append(head, cell);
  return row;
}

// ------------------------------------------------------------------------------ verdicts

function verdicts(face) {
  for (const button of document.querySelectorAll("[data-verdict]")) {
    const { told, can } = face.effects[button.dataset.verdict];
    button.setAttribute("aria-pressed", String(face.verdict === button.dataset.verdict));
    button.disabled = !can;
    button.title = can ? `next run ${told}` : told;
    button.querySelector("small").textContent = button.title;
  }
  byId("undo").disabled = verdictsGiven().length === 0;
}

// This tab's verdicts, so that the last can be taken back after a reload too.
const verdictsGiven = () => JSON.parse(sessionStorage.getItem("verdicts") ?? "[]");
const keep = (past) => sessionStorage.setItem("verdicts", JSON.stringify(past.slice(-500)));

async function write(row, verdict, seen) {
  try {
    const now = await ask("/api/verdict", { row, verdict, seen });
    countDecided(now.decided);
    const button = buttonOf(row);
    if (button) mark(button, now.verdict);
  } catch (error) {
    if (error.status === 409) await show(row).catch(() => {});
    throw error;
  }
}

async function decide(verdict) {
  const { face } = state;
  if (!face) return;
  const { told, can } = face.effects[verdict];
  if (!can) throw new Error(`${VERDICTS[verdict]}: ${told}`);
  if (face.verdict !== verdict) {
    await write(face.row, verdict, face.verdict);
    keep([...verdictsGiven(), { row: face.row, before: face.verdict, after: verdict }]);
  }
  tell(`${face.key}: ${VERDICTS[verdict]}; written`);
  const isLast = !(byId("advance").checked && (await walk(1)));
  if (isLast) await show(face.row);
}

async function undo() {
  const past = verdictsGiven();
  const last = past.pop();
  if (!last) return tell("nothing to undo");
  keep(past);
  await write(last.row, last.before, last.after);
  await show(last.row);
  tell(`${state.face.key}: ${VERDICTS[last.before] ?? "no verdict"} again; written`);
}

// ------------------------------------------------------------------------------ walking

async function walk(step) {
  const at = state.rows.findIndex((face) => face.row === state.face?.row);
  const next = state.rows[at + step];
  if (next) {
    await show(next.row);
    return true;
  }
  return turn(step);
}

async function turn(step) {
  const page = state.page + step;
  if (page < 0 || page >= state.pages) return false;
  await list(page);
  const row = step > 0 ? state.rows[0] : state.rows.at(-1);
  if (row) await show(row.row);
  return Boolean(row);
}

async function open(page, row = null) {
  await list(page);
  const first = page === "undecided" ? state.rows.find((face) => !face.verdict) : state.rows[0];
  const wanted = row ?? first?.row;
  if (wanted === undefined) remember();
  else await show(wanted);
}

// ------------------------------------------------------------------------------ keys

const KEYS = {
  ArrowRight: () => walk(1), ArrowDown: () => walk(1), n: () => walk(1),
  ArrowLeft: () => walk(-1), ArrowUp: () => walk(-1), p: () => walk(-1),
  "]": () => turn(1), "[": () => turn(-1), o: () => open("undecided"),
};
const DECIDES = {
  a: () => decide("accept"), k: () => decide("keep"), x: () => decide("reject"), u: undo,
};
const STILL = {
  "?": () => byId("help").showModal(), v: toggleOne, "+": () => viewer.larger(), "=": () => viewer.larger(),
  "-": () => viewer.smaller(), 0: () => viewer.fit(),
};
const MOVES = { ArrowLeft: [0.1, 0], ArrowRight: [-0.1, 0], ArrowUp: [0, 0.1], ArrowDown: [0, -0.1] };

function toggleOne() {
  const isOn = byId("one").getAttribute("aria-pressed") !== "true";
  byId("one").setAttribute("aria-pressed", String(isOn));
  viewer.overlay(isOn);
}

addEventListener("keydown", (event) => {
  const isTyped = event.target.matches?.('select, input:not([type="checkbox"])');
  if (isTyped || byId("help").open || event.ctrlKey || event.altKey || event.metaKey) return;
  if (event.shiftKey && MOVES[event.key]) {
    viewer.pan(...MOVES[event.key]);
  } else if (event.key === "f") {
    viewer.flicker(true);
  } else if (STILL[event.key]) {
    STILL[event.key]();
  } else if (DECIDES[event.key]) {
    if (!event.repeat) alone(DECIDES[event.key], false);
  } else if (KEYS[event.key]) {
    alone(KEYS[event.key]);
  } else {
    return;
  }
  event.preventDefault();
});
addEventListener("keyup", (event) => { if (event.key === "f") viewer.flicker(false); });
addEventListener("blur", () => viewer.flicker(false));

for (const button of document.querySelectorAll("[data-verdict]")) {
  button.addEventListener("click", () => alone(() => decide(button.dataset.verdict), false));
}
const CLICKS = {
  undo: () => alone(undo, false), on: () => alone(() => walk(1)), back: () => alone(() => walk(-1)),
  "page-on": () => alone(() => turn(1)), "page-back": () => alone(() => turn(-1)),
  undecided: () => alone(() => open("undecided")), one: toggleOne,
  larger: () => viewer.larger(), smaller: () => viewer.smaller(),
  "open-help": () => byId("help").showModal(), "close-help": () => byId("help").close(),
  clear: () => { form.reset(); alone(() => open(0)); },
};
for (const [id, work] of Object.entries(CLICKS)) byId(id).addEventListener("click", work);
byId("flicker").addEventListener("pointerdown", () => viewer.flicker(true));
for (const name of ["pointerup", "pointerleave", "pointercancel"]) {
  byId("flicker").addEventListener(name, () => viewer.flicker(false));
}
form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("change", () => alone(() => open(0)));

// ------------------------------------------------------------------------------ beginning

function offer(choices) {
  for (const [name, found] of Object.entries(choices)) {
    const select = form.elements[name];
    if (found === null) {
      const input = Object.assign(make("input"), { name, type: "search", placeholder: "contains" });
      select.replaceWith(input);
      continue;
    }
    for (const [word, told, count] of found) {
      select.append(new Option(`${told} (${count.toLocaleString("en")})`, word));
    }
  }
}

byId("filter-fold").open = matchMedia("(min-width: 40.01rem)").matches;
alone(async () => {
  const about = await ask("/api/about");
  offer(about.choices);
  byId("command").textContent = about.command;
  const [done, planned] = about.shards;
  const { page, row } = recall();
  await open(page, row);
  if (done < planned) tell(`${done} of ${planned} shards are cleaned so far`);
});
