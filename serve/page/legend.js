// Which colour is which structure, and what the colours of a map mean.

import { h } from "./dom.js";
import { words } from "./format.js";
import { title } from "./overlays.js";

const DOUBT = [["0", "sure"], ["0.35", "some doubt"], ["0.69", "even doubt"]];  // ln 2 nats
const SPREAD = [["0", "all samples alike"], ["0.25", ""], ["0.5", "half against half"]];
const SHARE = [["0", "in no sample"], ["0.5", "in half"], ["1", "in every sample"]];

/** Returns the element, and what shows the scale of a map ("" for none); `lines` as the server draws contours. */
export function legend(info, { lines = false } = {}) {
  const scale = h("div", { class: "scale", hidden: true });
  const element = h("div", { class: "legend" },
    h("ul", { "aria-label": "Structures" }, info.structures.map(({ name, colour }, k) => {
      const mark = h("span", { class: lines ? `stroke stroke-${k % 3}` : "dot", "aria-hidden": "true" });
      mark.style.color = colour;
      return h("li", {}, mark, words(name));
    })), scale);
  function show(key) {
    const structure = info.structures.find(({ name }) => [`prob-${name}`, `cautious-${name}`].includes(key));
    scale.hidden = !key || key === "none" || key === "label" || key.startsWith("sample");
    if (scale.hidden) return;
    const ramp = h("span", { class: "ramp", "aria-hidden": "true" });
    const colours = structure ? ["#0a0c10", structure.colour] : info.heat.colours;
    ramp.style.background = `linear-gradient(90deg, ${colours.join(", ")})`;
    const ticks = structure ? SHARE : key === "variance" ? SPREAD : DOUBT;
    const unit = structure || key === "variance" ? "" : ", in nats";
    scale.replaceChildren(h("p", {}, `${title(key)}${unit}`), ramp,
      h("ol", { class: "ticks" }, ticks.map(([value, word]) => h("li", {}, h("span", {}, value), word && h("small", {}, word)))));
  }
  return { element, show };
}
