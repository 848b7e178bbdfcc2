// Pictures of planes that the server draws: works without WebGL and without a build.

import { request } from "./api.js";
import { choice, h, setText, slider, tick } from "./dom.js";
import { percent } from "./format.js";
import { doubtOf, mapsOf, samplesOf, title } from "./overlays.js";
import { legend } from "./legend.js";

const KEEP = 60;  // pictures that are kept in memory for going back and forth

/** Show planes; returns `close`, `toggle` of what lies over them, and `view` of a plane by its name. */
export async function planeViewer(place, { base, info, signal }) {
  const picture = h("img", { class: "plane", alt: "", decoding: "async" });
  const caption = h("p", { class: "caption" });
  const kept = new Map();
  const samples = samplesOf(info);
  const overlays = [["none", "nothing"], info.overlays.label && ["label", title("label")],
    ...mapsOf(info).map((key) => [key, title(key)]), samples.length > 0 && ["sample", "one sample"]].filter(Boolean);
  const colours = legend(info, { lines: true });
  const axes = [...info.axes].reverse();  // axial first
  const chosen = { axis: axes[0], index: axes[0].start, overlay: doubtOf(info), contours: Boolean(info.overlays.label), sample: 0, opacity: 0.5, bare: false };
  let turn = 0;

  const frame = h("div", {
    class: "frame", tabindex: 0, role: "img", "aria-label": "Slice; the arrow keys go through the slices", onkeydown: keys,
    onwheel: (event) => {
      event.preventDefault();
      step(Math.sign(event.deltaY));
    },
  }, picture);
  const plane = choice("Plane", axes.map((axis) => [String(axis.axis), axis.name]), String(chosen.axis.axis), turnTo);
  function turnTo(value) {
    chosen.axis = axes.find((axis) => String(axis.axis) === value);
    chosen.index = chosen.axis.start;
    plane.select.value = value;
    position.input.max = chosen.axis.count - 1;
    position.set(chosen.index);
    draw();
  }
  const position = slider("Slice", { min: 0, max: chosen.axis.count - 1, value: chosen.index, say: (n) => `${n + 1} of ${chosen.axis.count}` }, (n) => {
    chosen.index = n;
    draw();
  });
  const over = choice("Over it", overlays, chosen.overlay, (value) => {
    chosen.overlay = value;
    pick.element.hidden = value !== "sample";
    colours.show(value);
    draw();
  });
  const pick = slider("Sample", { min: 0, max: Math.max(0, samples.length - 1), value: 0, say: (n) => `${n + 1} of ${samples.length}` }, (n) => {
    chosen.sample = n;
    draw();
  });
  pick.element.hidden = true;
  const contours = tick("Contours of the segmentation", chosen.contours, (value) => {
    chosen.contours = value;
    draw();
  });
  contours.hidden = !info.overlays.label;
  colours.show(chosen.overlay);
  const opacity = slider("Opacity", { min: 0, max: 1, step: 0.05, value: chosen.opacity, say: percent }, (value) => {
    chosen.opacity = value;
    draw();
  });
  place.append(h("div", { class: "canvas" }, frame, caption),
    h("div", { class: "panel" }, axes.length > 1 && plane.element, position.element, contours, over.element, pick.element, opacity.element,
      colours.element, info.missing && h("p", { class: "note" }, info.missing)));

  function step(by) {
    const index = Math.min(chosen.axis.count - 1, Math.max(0, chosen.index + by));
    if (index === chosen.index) return;
    chosen.index = index;
    position.set(index);
    draw();
  }

  function keys(event) {
    const by = { ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1, PageUp: 10, PageDown: -10, Home: -Infinity, End: Infinity }[event.key];
    if (by === undefined) return;
    event.preventDefault();
    step(by);
  }

  /** Of the picture: as large as it is seen, in a few steps so that it need not be drawn anew for every pixel. */
  function size() {
    const seen = Math.max(frame.clientWidth, frame.clientHeight) * devicePixelRatio;
    return [640, 960, 1440].find((side) => side >= seen) ?? 2048;
  }

  function key() {
    if (chosen.bare) return "none";
    return chosen.overlay === "sample" ? samples[chosen.sample] : chosen.overlay;
  }

  function address(index) {
    return `${base}/slice.png?${new URLSearchParams({ axis: chosen.axis.axis, index, overlay: key(), opacity: chosen.opacity, contours: chosen.contours && !chosen.bare, size: size() })}`;
  }

  async function fetched(index) {
    const url = address(index);
    if (!kept.has(url)) {
      const content = await (await request(url, { signal })).blob();
      if (!kept.has(url)) kept.set(url, URL.createObjectURL(content));
      if (kept.size > KEEP) forget(kept.keys().next().value);
    }
    return kept.get(url);
  }

  function forget(url) {
    URL.revokeObjectURL(kept.get(url));
    kept.delete(url);
  }

  /** Draw what is chosen now; an answer that comes after a newer choice is dropped. */
  async function draw() {
    const mine = ++turn;
    try {
      const shown = await fetched(chosen.index);
      if (mine !== turn) return;
      picture.src = shown;
      const side = info.orientation ? `, ${info.orientation}: the patient's right is on the left` : "";
      const where = `${chosen.axis.name} slice ${chosen.index + 1} of ${chosen.axis.count}`;
      frame.setAttribute("aria-label", `${where}, ${title(key())} over it; the arrow keys go through the slices`);
      setText(caption, (info.axes.length > 1 ? where : "2D image") + (info.orientation && chosen.axis.axis !== 0 ? side : info.orientation ? ", anterior is on the left" : ""));
      if (chosen.index + 1 < chosen.axis.count && mine === turn) fetched(chosen.index + 1).catch(() => {});
    } catch (error) {
      if (!signal.aborted && mine === turn) setText(caption, `No picture: ${error.message}`);
    }
  }

  await draw();
  return {
    close: () => [...kept.keys()].forEach(forget),
    toggle: () => {
      chosen.bare = !chosen.bare;
      draw();
      return !chosen.bare;
    },
    view: (name) => {
      const axis = axes.find((one) => one.name === name);
      if (axis) turnTo(String(axis.axis));
    },
  };
}
