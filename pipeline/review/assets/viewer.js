// The pictures of a face: side by side or one over another, at one zoom, never smoothed.

const STEP = 1.5;
const MOST = 24;

export class Viewer {
  #stages;
  #view = { scale: 1, x: 0, y: 0 }; // x, y: the shift as a share of the stage's side
  #drag = null;
  #onZoom;

  constructor(root, onZoom) {
    this.#stages = root;
    this.#onZoom = onZoom;
    for (const stage of root.querySelectorAll(".stage")) {
      stage.addEventListener("pointerdown", (event) => this.#grab(event, stage));
      stage.addEventListener("pointermove", (event) => this.#move(event, stage));
      stage.addEventListener("pointerup", () => { this.#drag = null; });
      stage.addEventListener("pointercancel", () => { this.#drag = null; });
      stage.addEventListener("wheel", (event) => this.#wheel(event, stage), { passive: false });
    }
  }

  // `shown`: side -> { images: [element, ...], why, label }; the first image is the stage's own,
  // a second one is what the flicker shows there.
  show(shown) {
    for (const figure of this.#stages.querySelectorAll("figure")) {
      const { images = [], why = "", label = "" } = shown[figure.dataset.side] ?? {};
      const stage = figure.querySelector(".stage");
      images.forEach((image, place) => { image.className = place ? "other" : "own"; });
      const told = document.createElement("p");
      told.className = "absent";
      told.textContent = why;
      stage.replaceChildren(...(why ? [told] : []), ...images);
      figure.querySelector("figcaption").textContent = label;
      figure.dataset.label = label;
    }
    const copy = this.#stages.querySelector('[data-side="copy"]');
    copy.hidden = !shown.copy;
    this.#stages.classList.toggle("has-copy", Boolean(shown.copy));
    this.#apply();
  }

  flicker(isOn) {
    const figure = this.#stages.querySelector('[data-side="before"]');
    const can = figure.querySelector(".other") !== null;
    this.#stages.classList.toggle("is-flicker", isOn && can);
    const label = isOn && can ? "after, in place of before" : figure.dataset.label;
    figure.querySelector("figcaption").textContent = label ?? "before";
  }

  overlay(isOn) {
    this.#stages.classList.toggle("is-one", isOn);
  }

  zoom(factor, at = { x: 0.5, y: 0.5 }) {
    const view = this.#view;
    const scale = Math.min(MOST, Math.max(1, factor ? view.scale * factor : 1));
    const ratio = scale / view.scale;
    this.#set({ scale, x: at.x - (at.x - view.x) * ratio, y: at.y - (at.y - view.y) * ratio });
  }

  larger() { this.zoom(STEP); }
  smaller() { this.zoom(1 / STEP); }
  fit() { this.zoom(0); }

  pan(x, y) {
    this.#set({ ...this.#view, x: this.#view.x + x, y: this.#view.y + y });
  }

  #set({ scale, x, y }) {
    const inside = (value) => Math.min(0, Math.max(1 - scale, value));
    this.#view = { scale, x: inside(x), y: inside(y) };
    this.#apply();
  }

  #apply() {
    const { scale, x, y } = this.#view;
    for (const stage of this.#stages.querySelectorAll(".stage")) {
      stage.classList.toggle("is-zoomed", scale > 1);
      for (const image of stage.querySelectorAll("img")) {
        image.style.transform = scale > 1 ? `translate(${x * 100}%, ${y * 100}%) scale(${scale})` : "";
      }
    }
    this.#onZoom(scale);
  }

  #place(event, stage) {
    const box = stage.getBoundingClientRect();
    return { x: (event.clientX - box.left) / box.width, y: (event.clientY - box.top) / box.height };
  }

  #grab(event, stage) {
    if (event.button) return;
    this.#drag = this.#place(event, stage);
    if (this.#view.scale === 1) this.zoom(STEP * STEP, this.#drag);
    stage.setPointerCapture(event.pointerId);
  }

  #move(event, stage) {
    if (!this.#drag) return;
    const at = this.#place(event, stage);
    this.pan(at.x - this.#drag.x, at.y - this.#drag.y);
    this.#drag = at;
  }

  #wheel(event, stage) {
    if (!event.ctrlKey && this.#view.scale === 1) return; // the page scrolls
    event.preventDefault();
    this.zoom(event.deltaY < 0 ? STEP : 1 / STEP, this.#place(event, stage));
  }
}
