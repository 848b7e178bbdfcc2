// What may lie over an image, from the keys of a case's files.

import { words } from "./format.js";

const NAMES = {
  label: "segmentation", entropy: "doubt (entropy)", variance: "variance of the samples",
  total: "total doubt", epistemic: "epistemic doubt", aleatoric: "aleatoric doubt",
};

export function samplesOf(info) {
  return Object.keys(info.overlays).filter((key) => /^sample-\d+$/.test(key))
    .sort((one, other) => Number(one.slice(7)) - Number(other.slice(7)));
}

export function mapsOf(info) {
  return Object.keys(info.overlays).filter((key) => key !== "label" && !key.startsWith("sample-")).sort(rank);
}

function rank(one, other) {
  const place = (key) => ["entropy", "total", "epistemic", "aleatoric", "prob", "variance", "cautious"].findIndex((start) => key.startsWith(start));
  return (place(one) + 8) % 8 - (place(other) + 8) % 8 || one.localeCompare(other);
}

/** The map of doubt that is shown at first; "none" where there is none. */
export function doubtOf(info) {
  return mapsOf(info).find((key) => ["entropy", "total"].includes(key)) ?? "none";
}

export function title(key) {
  if (key.startsWith("prob-")) return `probability of ${words(key.slice(5))}`;
  if (key.startsWith("cautious-")) return `cautious mask of ${words(key.slice(9))}`;
  if (key.startsWith("sample-")) return `sample ${Number(key.slice(7)) + 1}`;
  return NAMES[key] ?? words(key);
}
