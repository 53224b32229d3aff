// The gallery: a grid that holds only the tiles in view, and a viewer that compares two images.
//
// Data come from scripts that call vsp.receive, since a page on a disk may not fetch. Every name is
// set as text or as a property, never as markup.
"use strict";
const vsp = (() => {
  const meta = {};
  const datasets = {}; // "d0" -> { ids, groups?, lq?, gt? }
  const methods = {}; // "d0-m0" -> { has, scores, restored?, lq?, gt? }
  const pictures = {}; // name -> data URI, where the page holds its pictures itself
  const stores = { meta, datasets, methods, pictures };
  const root = document.body.dataset.root ?? "";

  function receive(kind, key, value) {
    if (kind === "dataset") datasets[key] = value;
    else if (kind === "method") methods[key] = value;
    else Object.assign(stores[kind], value);
  }

  const one = (selector, within = document) => within.querySelector(selector);
  const element = (tag, properties = {}, ...children) => {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children);
    return made;
  };
  const option = (value, text) => element("option", { value, textContent: text });
  const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

  // ---------------------------------------------------------------------------------- data

  const datasetOf = (key) => key.split("-")[0];
  const methodName = (key) => meta.methods[key.split("-")[1]];
  const datasetName = (key) => meta.datasets[datasetOf(key)];

  // Loads a method's data when somebody looks at it; resolves at once where it is there.
  function load(key) {
    if (methods[key]) return Promise.resolve();
    return new Promise((done) => {
      const script = element("script", { src: `${root}data/${key}.js` });
      script.onload = script.onerror = done;
      document.head.append(script);
    });
  }

  function picture(key, role, index) {
    const name = (methods[key]?.[role] ?? datasets[datasetOf(key)][role])?.[index];
    if (!name) return { note: role === "restored" ? "not made by this method" : "not there" };
    if (name.startsWith("!")) return { note: name.slice(1) };
    if (root === "" && !pictures[name]) return { note: "not in this file" };
    return { src: pictures[name] ?? `${root}images/${name}` };
  }

  function score(key, metric, index) {
    const scores = methods[key]?.scores[metric];
    const value = scores?.values[index] ?? null;
    if (value !== null) return { value, status: "ok" };
    for (const [status, places] of Object.entries(scores?.troubles ?? {})) {
      if (places.includes(index)) return { value, status: meta.statuses[status] };
    }
    return { value, status: "" };
  }

  function printed({ value, status }, metric) {
    if (value === null) return status.replaceAll("_", " ") || "–";
    if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
    return value.toFixed(meta.metrics[metric].digits).replace("-", "−");
  }

  // Larger is worse, whatever the metric.
  const badness = (metric, value) =>
    ({ higher: -value, lower: value, zero: Math.abs(value) })[meta.metrics[metric].better];

  // Image -> set of its statuses other than "ok".
  function troubles(key) {
    const found = new Map();
    for (const scores of methods[key].scores) {
      for (const [status, places] of Object.entries(scores.troubles)) {
        for (const place of places) {
          if (!found.has(place)) found.set(place, new Set());
          found.get(place).add(meta.statuses[status]);
        }
      }
    }
    return found;
  }

  // ------------------------------------------------------------------------------- gallery

  const view = one("#gallery");
  const control = (name) => one(`[data-control="${name}"]`, view);
  const grid = one(".grid", view);
  const state = { key: "", shown: [], trouble: new Map(), tiles: new Map(), columns: 1 };
  const GAP = 12;

  const prefix = () => (root ? "" : `gallery-${state.key}/`);
  const address = (index) => `#${prefix()}${encodeURIComponent(ids()[index])}`;
  const ids = () => datasets[datasetOf(state.key)].ids;

  async function open(key) {
    await load(key);
    if (!methods[key]) return;
    state.key = key;
    state.trouble = troubles(key);
    view.hidden = false;
    one(".gallery-title", view).replaceChildren(
      element("bdi", { textContent: methodName(key) }), " on ",
      element("bdi", { textContent: datasetName(key) }),
    );
    control("gallery").value = key;
    control("metric").value = String(meta.galleries[key]);
    fillStatuses();
    fillGroups();
    arrange();
  }

  function fillStatuses() {
    const counts = new Map();
    for (const found of state.trouble.values()) {
      for (const status of found) counts.set(status, (counts.get(status) ?? 0) + 1);
    }
    const total = methods[state.key].has.filter(Boolean).length;
    const bad = state.trouble.size;
    const options = [option("", `all (${total})`)];
    if (bad) options.push(option("ok", `every score there (${total - bad})`), option("any", `some score missing (${bad})`));
    for (const [status, count] of counts) options.push(option(`=${status}`, `${status.replaceAll("_", " ")} (${count})`));
    control("status").replaceChildren(...options);
  }

  function fillGroups() {
    const groups = [...new Set(datasets[datasetOf(state.key)].groups ?? [])].sort();
    one('[data-for="groups"]', view).hidden = groups.length === 0;
    const options = groups.map((group) => option(`=${group}`, group || "(none)"));
    control("group").replaceChildren(option("", "all"), ...options);
  }

  function filter() {
    const status = control("status").value;
    const group = control("group").value;
    const word = control("find").value.toLowerCase();
    const { groups } = datasets[datasetOf(state.key)];
    const fits = {
      "": () => true,
      ok: (index) => !state.trouble.has(index),
      any: (index) => state.trouble.has(index),
    }[status] ?? ((index) => state.trouble.get(index)?.has(status.slice(1)) ?? false);
    const { has } = methods[state.key];
    return ids().map((_, index) => index).filter((index) =>
      has[index] && fits(index)
      && (!group || groups[index] === group.slice(1))
      && (!word || ids()[index].toLowerCase().includes(word)));
  }

  // Filters, sorts and draws anew. Images without a value come last in every order.
  function arrange() {
    const metric = Number(control("metric").value || 0);
    const order = control("order").value;
    const values = methods[state.key].scores[metric]?.values ?? [];
    const rank = {
      worst: (value) => -badness(metric, value),
      best: (value) => badness(metric, value),
      up: (value) => value,
      down: (value) => -value,
    }[order];
    const keyed = filter().map((index) => [values[index] == null ? null : rank(values[index]), index]);
    keyed.sort(([a, i], [b, j]) => (a === null) - (b === null) || (a === b ? i - j : a - b));
    state.shown = keyed.map(([, index]) => index);
    const total = methods[state.key].has.filter(Boolean).length;
    one(".count", view).textContent = `${state.shown.length.toLocaleString("en")} of ${total.toLocaleString("en")} images`;
    clear();
    draw();
  }

  function clear() {
    for (const tile of state.tiles.values()) tile.remove();
    state.tiles.clear();
  }

  const roles = () => (meta.images ? control("tiles").value.split(" ") : []);

  function layout() {
    const width = grid.clientWidth;
    const wanted = roles().length > 1 ? 132 * roles().length : meta.images ? 168 : 190;
    const columns = Math.max(1, Math.floor((width + GAP) / (Math.min(wanted, width) + GAP)));
    const tile = (width - GAP * (columns - 1)) / columns;
    const picture = roles().length ? tile / roles().length : 0;
    return { columns, tile, step: picture + 46 + GAP };
  }

  // Puts the tiles of the rows in view, and one more either way, into the grid; removes others.
  function draw() {
    if (view.hidden || !state.key) return;
    const { columns, tile, step } = layout();
    state.columns = columns;
    grid.style.height = `${Math.ceil(state.shown.length / columns) * step}px`;
    const top = grid.getBoundingClientRect().top;
    const first = Math.max(0, Math.floor(-top / step) - 1) * columns;
    const last = Math.min(state.shown.length, (Math.ceil((innerHeight - top) / step) + 1) * columns);
    for (const [place, made] of state.tiles) {
      if (place < first || place >= last) {
        made.remove();
        state.tiles.delete(place);
      }
    }
    for (let place = first; place < last; place += 1) {
      if (!state.tiles.has(place)) state.tiles.set(place, makeTile(place));
      const made = state.tiles.get(place);
      made.style.width = `${tile}px`;
      made.style.height = `${step - GAP}px`;
      made.style.transform = `translate(${(place % columns) * (tile + GAP)}px, ${Math.floor(place / columns) * step}px)`;
    }
  }

  function makeTile(place) {
    const index = state.shown[place];
    const metric = Number(control("metric").value || 0);
    const frame = element("span", { className: "frame" });
    for (const role of roles()) {
      const { src, note } = picture(state.key, role, index);
      frame.append(src
        ? element("img", { src, alt: `${SIDES[role]} of ${ids()[index]}`, loading: "lazy", decoding: "async" })
        : element("span", { className: "absent", textContent: note }));
    }
    const trouble = state.trouble.has(index) ? " has-trouble" : "";
    const value = meta.metrics.length ? printed(score(state.key, metric, index), metric) : "";
    const tile = element("a", { className: `tile${trouble}`, href: address(index) },
      frame, element("bdi", { className: "id", textContent: ids()[index] }),
      element("span", { className: "score", textContent: `${meta.metrics[metric]?.name ?? ""} ${value}` }));
    tile.addEventListener("click", (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      show(place);
    });
    tile.dataset.place = place;
    grid.append(tile);
    return tile;
  }

  function focusTile(place) {
    if (place < 0 || place >= state.shown.length) return;
    const { columns, step } = layout();
    const top = grid.getBoundingClientRect().top + Math.floor(place / columns) * step;
    if (top < 0 || top + step > innerHeight) scrollBy(0, top - innerHeight / 2 + step / 2);
    draw();
    state.tiles.get(place)?.focus({ preventScroll: true });
  }

  grid.addEventListener("keydown", (event) => {
    const place = Number(event.target.dataset?.place ?? NaN);
    const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: state.columns, ArrowUp: -state.columns };
    const target = { Home: 0, End: state.shown.length - 1 }[event.key] ?? place + steps[event.key];
    if (Number.isNaN(target)) return;
    event.preventDefault();
    focusTile(target);
  });

  // -------------------------------------------------------------------------------- viewer

  const SIDES = { restored: "restored", lq: "input", gt: "truth" };
  const viewer = one(".viewer", view);
  const stage = one(".stage", viewer);
  const layers = [...stage.querySelectorAll(".layer")];
  const range = one("input[type=range]", viewer);
  const sides = [...viewer.querySelectorAll("[data-side]")];
  const look = { place: 0, index: 0, zoom: 1, x: 0, y: 0 };

  const rivals = () => Object.keys(meta.galleries).filter((key) => datasetOf(key) === datasetOf(state.key));

  function fillSides() {
    const options = () => [
      option("lq", "input"), option("gt", "truth"),
      ...rivals().map((key) => option(key, methodName(key))),
    ];
    const kept = sides.map((side) => side.value);
    sides.forEach((side) => side.replaceChildren(...options()));
    const first = picture(state.key, "lq", look.index).src ? "lq" : "gt";
    const fits = (value) => ["lq", "gt", ...rivals()].includes(value);
    sides[0].value = fits(kept[0]) ? kept[0] : first;
    sides[1].value = viewer.open && fits(kept[1]) ? kept[1] : state.key;
  }

  function show(place) {
    look.place = place;
    look.index = state.shown[place];
    fillSides();
    history.replaceState(null, "", address(look.index));
    one("#viewer-title").replaceChildren(element("bdi", { textContent: ids()[look.index] }));
    one('[data-do="previous"]', viewer).disabled = place === 0;
    one('[data-do="next"]', viewer).disabled = place === state.shown.length - 1;
    refresh();
    if (!viewer.open) {
      zoomTo(1);
      viewer.showModal();
      range.focus();
    }
  }

  async function refresh() {
    const chosen = sides.map((side) => side.value);
    await Promise.all(chosen.filter((value) => value.includes("-")).map(load));
    layers.forEach((layer, side) => {
      const value = chosen[side];
      const isMethod = value.includes("-");
      const { src, note } = picture(isMethod ? value : state.key, isMethod ? "restored" : value, look.index);
      const image = one("img", layer);
      image.hidden = !src;
      if (src) image.src = src;
      image.alt = `${isMethod ? methodName(value) : SIDES[value]}: ${ids()[look.index]}`;
      one("p", layer).textContent = src ? "" : `${image.alt}: ${note}`;
    });
    const compared = [...new Set([state.key, ...chosen.filter((value) => value.includes("-"))])];
    one(".viewer-scores", viewer).replaceChildren(scoreTable(compared));
  }

  function scoreTable(keys) {
    const head = element("tr", {}, element("th", { scope: "col", textContent: "Metric" }));
    for (const key of keys) head.append(element("th", { scope: "col" }, element("bdi", { textContent: methodName(key) })));
    const arrows = { higher: "↑", lower: "↓", zero: "→0" };
    const rows = meta.metrics.map((info, metric) => {
      const found = keys.map((key) => score(key, metric, look.index));
      const bad = found.map(({ value }) => (value === null ? Infinity : badness(metric, value)));
      const least = Math.min(...bad);
      const row = element("tr", {}, element("th", { scope: "row", title: info.protocol },
        element("bdi", { textContent: info.name }), ` ${info.unit} ${arrows[info.better]}`.replace("  ", " ")));
      found.forEach((each, k) => row.append(element("td", {
        textContent: printed(each, metric),
        className: each.value === null ? "status" : keys.length > 1 && bad[k] === least ? "is-best" : "",
      })));
      return row;
    });
    return element("table", { className: "scores" }, element("thead", {}, head), element("tbody", {}, ...rows));
  }

  function split(percent) {
    range.value = percent;
    layers[1].style.clipPath = `inset(0 0 0 ${percent}%)`;
    one(".divider", stage).style.left = `${percent}%`;
  }

  // Both images are enlarged and moved alike; (x, y) is where the stage's corner went, in pixels.
  function place() {
    const { clientWidth: width, clientHeight: height } = stage;
    look.x = clamp(look.x, width * (1 - look.zoom), 0);
    look.y = clamp(look.y, height * (1 - look.zoom), 0);
    for (const layer of layers) {
      const image = one("img", layer);
      image.style.transform = `translate(${look.x}px, ${look.y}px) scale(${look.zoom})`;
      image.classList.toggle("is-enlarged", look.zoom >= 3);
    }
    one(".zoom", viewer).textContent = `${look.zoom.toFixed(1).replace(".0", "")}×`;
    stage.classList.toggle("is-zoomed", look.zoom > 1);
  }

  function zoomTo(zoom, centerX = stage.clientWidth / 2, centerY = stage.clientHeight / 2) {
    const next = clamp(zoom, 1, 16);
    look.x = centerX - ((centerX - look.x) * next) / look.zoom;
    look.y = centerY - ((centerY - look.y) * next) / look.zoom;
    look.zoom = next;
    place();
  }

  function pan(x, y) {
    look.x += x;
    look.y += y;
    place();
  }

  const pointers = new Map();
  let drags = "";
  const within = (event) => {
    const box = stage.getBoundingClientRect();
    return { x: event.clientX - box.left, y: event.clientY - box.top };
  };
  const atDivider = (x) => Math.abs(x - (range.value / 100) * stage.clientWidth) < 24;

  stage.addEventListener("pointerdown", (event) => {
    const at = within(event);
    pointers.set(event.pointerId, at);
    stage.setPointerCapture(event.pointerId);
    drags = look.zoom === 1 || atDivider(at.x) ? "divider" : "image";
    if (pointers.size === 1 && drags === "divider") split(clamp((at.x / stage.clientWidth) * 100, 0, 100));
  });
  stage.addEventListener("pointermove", (event) => {
    const before = pointers.get(event.pointerId);
    if (!before) return;
    const at = within(event);
    if (pointers.size === 2) pinch(event.pointerId, at);
    else if (drags === "divider") split(clamp((at.x / stage.clientWidth) * 100, 0, 100));
    else pan(at.x - before.x, at.y - before.y);
    pointers.set(event.pointerId, at);
  });
  for (const ended of ["pointerup", "pointercancel"]) {
    stage.addEventListener(ended, (event) => pointers.delete(event.pointerId));
  }
  function pinch(moved, at) {
    const [[, other]] = [...pointers].filter(([id]) => id !== moved);
    const before = pointers.get(moved);
    const distance = (a, b) => Math.hypot(a.x - b.x, a.y - b.y) || 1;
    const factor = distance(at, other) / distance(before, other);
    zoomTo(look.zoom * factor, (at.x + other.x) / 2, (at.y + other.y) / 2);
  }
  stage.addEventListener("wheel", (event) => {
    event.preventDefault();
    const at = within(event);
    zoomTo(look.zoom * Math.exp(-event.deltaY / 400), at.x, at.y);
  }, { passive: false });
  stage.addEventListener("dblclick", (event) => {
    const at = within(event);
    zoomTo(look.zoom > 1 ? 1 : 4, at.x, at.y);
  });
  range.addEventListener("input", () => split(Number(range.value)));

  const step = (by) => {
    const target = look.place + by;
    if (target >= 0 && target < state.shown.length) show(target);
  };
  const nextMethod = () => {
    const keys = rivals();
    sides[1].value = keys[(keys.indexOf(sides[1].value) + 1) % keys.length];
    refresh();
  };
  const ACTIONS = {
    previous: () => step(-1), next: () => step(1), close: () => viewer.close(),
    in: () => zoomTo(look.zoom * 1.5), out: () => zoomTo(look.zoom / 1.5), reset: () => zoomTo(1),
  };
  const KEYS = {
    n: ACTIONS.next, p: ACTIONS.previous, "+": ACTIONS.in, "=": ACTIONS.in, "-": ACTIONS.out,
    0: ACTIONS.reset, m: nextMethod, w: () => pan(0, 60), s: () => pan(0, -60), a: () => pan(60, 0),
    d: () => pan(-60, 0),
    ArrowLeft: () => split(clamp(Number(range.value) - 2, 0, 100)),
    ArrowRight: () => split(clamp(Number(range.value) + 2, 0, 100)),
  };
  viewer.addEventListener("click", (event) => ACTIONS[event.target.dataset?.do]?.());
  viewer.addEventListener("keydown", (event) => {
    const tag = event.target.tagName;
    // A list of choices and the slider have uses of their own for arrows and letters.
    if (tag === "SELECT" || event.ctrlKey || event.metaKey || event.altKey) return;
    if (tag === "INPUT" && event.key.startsWith("Arrow")) return;
    const act = KEYS[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  });
  viewer.addEventListener("close", () => {
    history.replaceState(null, "", root ? location.href.split("#")[0] : `#${prefix()}`);
    focusTile(look.place);
  });
  sides.forEach((side) => side.addEventListener("change", refresh));

  // --------------------------------------------------------------------------------- start

  async function follow() {
    let hash = location.hash.slice(1);
    if (!root) {
      const found = /^gallery-(d\d+-m\d+)\/(.*)$/.exec(hash);
      if (!found) return;
      if (found[1] !== state.key) await open(found[1]);
      hash = found[2];
      if (!hash) view.scrollIntoView();
    }
    let id = hash;
    try {
      id = decodeURIComponent(hash);
    } catch { /* not from us: taken as it is */ }
    const index = ids().indexOf(id);
    if (!hash || index < 0) return;
    if (!state.shown.includes(index)) {
      for (const name of ["status", "group", "find"]) control(name).value = "";
      arrange();
    }
    const found = state.shown.indexOf(index);
    if (found < 0) return;
    focusTile(found);
    show(found);
  }

  async function start() {
    const keys = Object.keys(meta.galleries ?? {});
    if (!keys.length) return;
    view.classList.toggle("no-images", !meta.images);
    one('[data-for="images"]', view).hidden = !meta.images;
    control("gallery").append(...keys.map((key) => option(key, `${methodName(key)} on ${datasetName(key)}`)));
    control("metric").append(...meta.metrics.map(({ name }, metric) => option(String(metric), name)));
    for (const name of ["metric", "order", "status", "group", "tiles"]) control(name).addEventListener("change", arrange);
    control("find").addEventListener("input", arrange);
    control("gallery").addEventListener("change", (event) => {
      if (root) location.href = `${event.target.value}.html`;
      else open(event.target.value);
    });
    let asked = false;
    const redraw = () => {
      if (asked) return;
      asked = true;
      requestAnimationFrame(() => { asked = false; draw(); });
    };
    addEventListener("scroll", redraw, { passive: true });
    addEventListener("resize", () => { redraw(); place(); });
    addEventListener("hashchange", follow);
    split(50);
    await open(document.body.dataset.gallery ?? keys[0]);
    follow();
  }

  addEventListener("DOMContentLoaded", start);
  return { receive };
})();
