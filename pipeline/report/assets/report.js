// Tables that sort by a click on a heading. They are complete without this.
"use strict";
(() => {
  const number = (cell) => {
    const value = cell?.dataset.value ?? "";
    return value === "" ? NaN : Number(value.replace("inf", "Infinity"));
  };
  const word = (cell) => cell?.dataset.value ?? cell?.textContent ?? "";

  function compare(order, direction) {
    if (order === "text") {
      const sign = direction === "desc" ? -1 : 1;
      return (a, b) => sign * word(a).localeCompare(word(b), "en", { numeric: true });
    }
    const size = direction.startsWith("size");
    const sign = direction === "desc" || direction === "size-desc" ? -1 : 1;
    return (a, b) => {
      const [x, y] = [number(a), number(b)];
      if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
      return sign * (size ? Math.abs(x) - Math.abs(y) : x - y);
    };
  }

  // Where zero is best ("size"), numbers are ordered by how far they are from it.
  const OPPOSITE = { asc: "desc", desc: "asc", size: "size-desc", "size-desc": "size" };
  const SPOKEN = { asc: "ascending", desc: "descending", size: "ascending", "size-desc": "descending" };

  function sort(heading) {
    const { order, first, direction } = heading.dataset;
    const chosen = direction ? OPPOSITE[direction] : first;
    for (const other of heading.parentElement.children) {
      delete other.dataset.direction;
      if (other.dataset.order) other.setAttribute("aria-sort", "none");
    }
    heading.dataset.direction = chosen;
    heading.setAttribute("aria-sort", SPOKEN[chosen]);
    const body = heading.closest("table").tBodies[0];
    const by = compare(order, chosen);
    const column = heading.cellIndex;
    body.append(...[...body.rows].sort((a, b) => by(a.cells[column], b.cells[column])));
  }

  document.addEventListener("click", (event) => {
    const heading = event.target.closest?.("table.sortable th[data-order]");
    if (heading) sort(heading);
  });
})();
