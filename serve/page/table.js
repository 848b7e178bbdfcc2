// The table of a cohort's cases: rows are kept and changed in place, so that the focus stays where it is.

import { chip, h, setChip, setText } from "./dom.js";
import { amount, share, volumes, words } from "./format.js";
import { REASONS, VERDICTS, standing } from "./words.js";

export class CaseTable {
  constructor(cohort, changed) {
    this.cohort = cohort;
    this.changed = changed;
    this.order = { column: "review", down: false };
    this.rows = new Map();
    this.columns = "";
    this.head = h("tr");
    this.body = h("tbody");
    this.empty = h("p", { class: "empty", hidden: true }, "No case is like that.");
    this.note = h("p", { class: "note" });
    this.element = h("div", {}, this.note, h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Table of the cases" }, h("table", { class: "cases" },
      h("caption", { class: "unseen" }, "Cases of this cohort"), h("thead", {}, this.head), this.body)), this.empty);
  }

  show(rows, sortable) {
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
    setText(this.note, "Cases that need review come first, each with its reason; then those whose samples agree least.");
    this.note.hidden = this.order.column !== "review" || this.order.down;
  }

  /** Move a row; moving what has the focus would lose it. */
  place(element, position) {
    const focused = element.contains(document.activeElement) ? document.activeElement : null;
    this.body.insertBefore(element, this.body.children[position] ?? null);
    focused?.focus({ preventScroll: true });
  }

  showHead(structures, sortable) {
    const columns = [["name", "Case"], ["state", "State"], ["review", "Needs review"]];
    for (const { name, unit: of } of structures) columns.push([`${name}_volume_${of === "mm²" ? "mm2" : of}_p50`, `${words(name)}, ${of}`]);
    columns.push(["agreement", "Agreement"], ["verdict", "Reviewed"]);
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
    const can = sortable || ["agreement", "review"].includes(column);
    const hint = column.endsWith("_p50") && h("small", {}, "interval (best guess)");
    const content = can ? h("button", { type: "button", onclick: () => this.sort(column, sortable) }, title, h("span", { class: "arrow", "aria-hidden": "true" })) : title;
    const number = !["name", "state", "review", "verdict"].includes(column);
    return h("th", { scope: "col", class: number && "number", "data-column": column, "data-sortable": can && "yes" }, content, hint);
  }

  sort(column, sortable) {
    const again = this.order.column === column;
    this.order = { column, down: sortable && again && !this.order.down };
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
    const why = h("td", { "data-label": "Needs review" });
    const agreement = h("td", { class: "number", "data-label": "Agreement" });
    const sizes = structures.map(({ name, unit: of }) => ({ name, cell: h("td", { class: "number size", "data-label": `${words(name)}, ${of}` }) }));
    const verdict = h("td", { class: "said-of", "data-label": "Reviewed" });
    const error = h("td", { class: "error", colspan: structures.length + 1 });
    const element = h("tr", {}, h("th", { scope: "row" }, h("a", { href }, row.name)), h("td", { "data-label": "State" }, state), why);
    const line = { element, columns: this.columns, shown: "", update };
    function update(next, scales) {
      const now = JSON.stringify([next.state, next.error, next.numbers, next.attention, next.review, [...scales]]);
      if (now === line.shown) return;
      line.shown = now;
      setChip(state, standing(next));
      why.replaceChildren(...(next.attention ?? []).map((reason) => flag(reason)));
      const wanted = next.error ? [error, verdict] : [...sizes.map(({ cell }) => cell), agreement, verdict];
      if (element.children[3] !== wanted[0]) {
        while (element.children.length > 3) element.lastElementChild.remove();
        element.append(...wanted);
      }
      setText(error, next.error ?? "");
      setText(agreement, next.numbers ? share(next.numbers.agreement) : "");
      const found = volumes(next.numbers);
      for (const { name, cell } of sizes) cell.replaceChildren(...size(found.find((one) => one.name === name), scales.get(name)));
      setText(verdict, VERDICTS[next.review?.verdict] ?? "");
      verdict.title = next.review?.note ?? "";
    }
    return line;
  }
}

function flag(reason) {
  const [word, meaning] = REASONS[reason] ?? [reason, ""];
  return h("span", { class: `flag ${reason}`, title: meaning }, word);
}

/** From the smallest to the largest bound that is shown in a column. */
function scale(rows, name) {
  const found = rows.flatMap((row) => volumes(row.numbers).filter((one) => one.name === name));
  const bounds = found.flatMap((one) => [one.low, one.high, one.from, one.to]).filter(Number.isFinite);
  return bounds.length ? [Math.min(...bounds), Math.max(...bounds)] : [0, 1];
}

function size(volume, [least, most]) {
  if (!volume) return [];
  const { kind, from, to } = promise(volume);
  const title = `${words(volume.name)}: ${kind} ${amount(from)} to ${amount(to)} ${volume.unit}; best guess ${amount(volume.middle)}; 5th to 95th percentile of the samples ${amount(volume.low)} to ${amount(volume.high)}`;
  return [
    h("span", { title, class: "measured" }, h("span", { class: kind === "not promised" ? "unpromised" : "unseen" }, `${kind} `), h("span", { class: kind === "calibrated" ? "" : "interval" }, `${amount(from)}–${amount(to)}`),
      h("span", { class: "interval" }, h("span", { class: "unseen" }, ", best guess"), ` (${amount(volume.middle)})`)),
    interval(volume, least, most),
  ];
}

/** The interval that counts most of a volume, and of what kind it is. */
export function promise(volume) {
  if (!Number.isFinite(volume.from)) return { kind: "samples", from: volume.low, to: volume.high };
  return { kind: volume.unfamiliar ? "not promised" : "calibrated", from: volume.from, to: volume.to };
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
    Number.isFinite(volume.from) && span(volume.unfamiliar ? "promised broken" : "promised", volume.from, volume.to), span("drawn", volume.low, volume.high), middle);
}
