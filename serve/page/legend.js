// Which colour is which structure, and what the colours of an amount of doubt mean.

import { h } from "./dom.js";
import { words } from "./format.js";

export function legend(info) {
  return h("ul", { class: "legend", "aria-label": "Colours" },
    info.structures.map(({ name, colour }) => {
      const dot = h("span", { class: "dot", "aria-hidden": "true" });
      dot.style.background = colour;
      return h("li", {}, dot, words(name));
    }),
    h("li", {}, h("span", { class: "ramp", "aria-hidden": "true" }), "doubt: little to much (entropy 0 to ln 2 nats)"));
}
