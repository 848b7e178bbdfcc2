// How far a cohort is: one bar with a part for each state, and the same in words.

import { h, setText } from "./dom.js";
import { count } from "./format.js";

const PARTS = ["done", "failed", "cancelled", "running"];

export function progress() {
  const parts = PARTS.map((state) => h("span", { class: state }));
  const bar = h("div", { class: "progress", role: "progressbar", "aria-label": "cases that have ended", "aria-valuemin": 0 }, parts);
  const text = h("span", { class: "counts" });
  const element = h("div", { class: "progress-line" }, bar, text);
  function update(counts, total) {
    PARTS.forEach((state, k) => {
      parts[k].style.width = `${total ? (100 * (counts[state] ?? 0)) / total : 0}%`;
    });
    const ended = (counts.done ?? 0) + (counts.failed ?? 0) + (counts.cancelled ?? 0);
    bar.setAttribute("aria-valuemax", total);
    bar.setAttribute("aria-valuenow", ended);
    const said = inWords(counts, total);
    bar.setAttribute("aria-valuetext", said);
    setText(text, said);
  }
  return { element, update };
}

export function inWords(counts, total) {
  const rest = [["failed", "failed"], ["cancelled", "cancelled"], ["running", "running"]]
    .filter(([state]) => counts[state])
    .map(([state, word]) => `${count(counts[state])} ${word}`);
  return [`${count(counts.done ?? 0)} of ${count(total)} done`, ...rest].join(", ");
}
