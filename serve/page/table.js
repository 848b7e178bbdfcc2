// The table of a cohort's cases: rows are kept and changed in place, so that the focus stays where it is.

import { chip, h, setChip, setText } from "./dom.js";
import { amount, share, volumes, words } from "./format.js";

export class CaseTable {
  constructor(cohort, changed) {
    this.cohort = cohort;
    this.changed = changed;
    this.order = { column: "agreement", down: false };
    this.rows = new Map();
    this.columns = "";
    this.head = h("tr");
    this.body = h("tbody");
    this.empty = h("p", { class: "empty", hidden: true }, "No case is in that state.");
    this.note = h("p", { class: "note" });
    this.element = h("div", {}, this.note, h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Table of the cases" }, h("table", { class: "cases" },
      h("caption", { class: "unseen" }, "Cases of this cohort"), h("thead", {}, this.head), this.body)), this.empty);
  }

  show(rows, sortable, unsorted) {
    const structures = [];
    for (const row of rows) {
      for (const { name, unit: of } of volumes(row.numbers)) {
        if (!structures.some((one) => one.name === name)) structures.push({ name, unit: of });
      }
    }
    this.showHead(structures, sortable);
    const scales = new Map(structures.map(({ name }) => [name, scale(rows, name)]));
    const shown = rows.map((row) => this.line(row, structures, scales));
    const kept = new Set(shown);
    for (const [name, line] of this.rows) if (!kept.has(line)) this.rows.delete(name);
    for (const old of [...this.body.children]) if (!shown.some((line) => line.element === old)) old.remove();
    shown.forEach((line, k) => {
      if (this.body.children[k] !== line.element) this.place(line.element, k);
    });
    this.empty.hidden = rows.length > 0;
    const first = this.order.column === "agreement" && !this.order.down;
    const note = unsorted ? "There are too many cases to sort them here; they stand as they were posted."
      : first ? "Cases whose samples agree least come first: look at these first." : "";
    setText(this.note, note);
    this.note.hidden = !note;
  }

  /** Move a row; moving what has the focus would lose it. */
  place(element, position) {
    const focused = element.contains(document.activeElement) ? document.activeElement : null;
    this.body.insertBefore(element, this.body.children[position] ?? null);
    focused?.focus({ preventScroll: true });
  }

  showHead(structures, sortable) {
    const columns = [["name", "Case"], ["state", "State"], ["agreement", "Agreement"]];
    for (const { name, unit: of } of structures) columns.push([`${name}_volume_${of === "mm²" ? "mm2" : of}_p50`, `${words(name)}, ${of}`]);
    columns.push(["familiarity", "Familiar"]);
    const wanted = JSON.stringify([columns, sortable]);
    if (wanted !== this.columns) {
      this.columns = wanted;
      this.head.replaceChildren(...columns.map(([column, title]) => this.heading(column, title, sortable)));
    }
    for (const cell of this.head.children) {
      const active = cell.dataset.column === this.order.column;
      if (cell.dataset.sortable) cell.setAttribute("aria-sort", active ? (this.order.down ? "descending" : "ascending") : "none");
    }
  }

  heading(column, title, sortable) {
    const can = sortable || column === "agreement";
    const content = can ? h("button", { type: "button", onclick: () => this.sort(column, sortable) }, title, h("span", { class: "arrow", "aria-hidden": "true" })) : title;
    const number = !["name", "state"].includes(column);
    return h("th", { scope: "col", class: number && "number", "data-column": column, "data-sortable": can && "yes" }, content);
  }

  sort(column, sortable) {
    const again = this.order.column === column;
    if (!sortable) this.order = again ? { column: "posted", down: false } : { column, down: false };
    else this.order = { column, down: again && !this.order.down };
    this.changed();
  }

  line(row, structures, scales) {
    const known = this.rows.get(row.name);
    const line = known && known.columns === this.columns ? known : this.newLine(row, structures);
    this.rows.set(row.name, line);
    line.update(row, scales);
    return line;
  }

  newLine(row, structures) {
    const state = chip(row.state);
    const href = `#/cohorts/${encodeURIComponent(this.cohort)}/cases/${encodeURIComponent(row.name)}`;
    const agreement = h("td", { class: "number" });
    const sizes = structures.map(({ name }) => ({ name, cell: h("td", { class: "number size" }) }));
    const familiar = h("td", { class: "number" });
    const error = h("td", { class: "error", colspan: structures.length + 2 });
    const element = h("tr", {}, h("th", { scope: "row" }, h("a", { href }, row.name)), h("td", {}, state));
    const line = { element, columns: this.columns, shown: "", update };
    function update(next, scales) {
      const now = JSON.stringify([next.state, next.error, next.numbers, [...scales]]);
      if (now === line.shown) return;
      line.shown = now;
      setChip(state, next.state);
      const wanted = next.error ? [error] : [agreement, ...sizes.map(({ cell }) => cell), familiar];
      if (element.children[2] !== wanted[0]) {
        while (element.children.length > 2) element.lastElementChild.remove();
        element.append(...wanted);
      }
      setText(error, next.error ?? "");
      setText(agreement, next.numbers ? share(next.numbers.agreement) : "");
      const found = volumes(next.numbers);
      for (const { name, cell } of sizes) cell.replaceChildren(...size(found.find((one) => one.name === name), scales.get(name)));
      familiar.replaceChildren(...familiarity(next.numbers));
    }
    return line;
  }
}

function familiarity(numbers) {
  if (!numbers || numbers.unfamiliar === undefined) return [];
  if (numbers.unfamiliar) return [h("span", { class: "flag", title: "unlike the cases that the model was trained on: don't trust it without a look" }, "unfamiliar")];
  return [h("span", { class: "faint" }, "yes")];
}

/** From the smallest to the largest bound that is shown in a column. */
function scale(rows, name) {
  const found = rows.flatMap((row) => volumes(row.numbers).filter((one) => one.name === name));
  const bounds = found.flatMap((one) => [one.low, one.high, one.from, one.to]).filter(Number.isFinite);
  return bounds.length ? [Math.min(...bounds), Math.max(...bounds)] : [0, 1];
}

function size(volume, [least, most]) {
  if (!volume) return [];
  const wide = Number.isFinite(volume.from);
  const [low, high] = wide ? [volume.from, volume.to] : [volume.low, volume.high];
  const said = wide ? "calibrated interval of the true volume" : "5th to 95th percentile of the samples";
  const title = `${words(volume.name)}: median ${amount(volume.middle)} ${volume.unit}; samples ${amount(volume.low)} to ${amount(volume.high)}${wide ? `; calibrated ${amount(volume.from)} to ${amount(volume.to)}` : ""}`;
  return [
    h("span", { title }, amount(volume.middle), h("span", { class: "interval" }, h("span", { class: "unseen" }, ` ${said}: `), ` ${amount(low)}–${amount(high)}`)),
    interval(volume, least, most),
  ];
}

/** A volume's percentiles and calibrated bounds as a small picture; its numbers stand beside it. */
export function interval(volume, least, most) {
  const at = (value) => (most > least ? (100 * (value - least)) / (most - least) : 50);
  const span = (name, from, to) => {
    const part = h("span", { class: name });
    part.style.left = `${at(from)}%`;
    part.style.width = `${Math.max(0, at(to) - at(from))}%`;
    return part;
  };
  const middle = h("span", { class: "middle" });
  middle.style.left = `${at(volume.middle)}%`;
  return h("span", { class: "whisker", "aria-hidden": "true" },
    Number.isFinite(volume.from) && span("promised", volume.from, volume.to), span("drawn", volume.low, volume.high), middle);
}
