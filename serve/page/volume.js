// The volume by WebGL 2, in NiiVue: the image, the segmentation and one more map over it.

import { request } from "./api.js";
import { choice, h, setText, slider, tick } from "./dom.js";
import { percent, share } from "./format.js";
import { legend } from "./legend.js";
import { doubtOf, mapsOf, samplesOf, title } from "./overlays.js";

const VIEWS = [["0", "axial"], ["1", "coronal"], ["2", "sagittal"], ["3", "all planes"], ["4", "rendering"]];
const ATLAS = 1002;  // NIfTI's word for a map of labels; NiiVue outlines no other one
const COLOURS_FROM_ZERO = 2;  // and nothing below cal_min
const CONTOUR = 0.8;  // opacity of the label map's contours
const TRACE = 0.01;  // NiiVue draws nothing of a layer without opacity, not even its contours
const KEEP = 8;  // files that are kept in memory for flipping through samples

export function hasWebGL() {
  const found = document.createElement("canvas").getContext("webgl2");
  found?.getExtension("WEBGL_lose_context")?.loseContext();
  return Boolean(found);
}

/** Show the volume; returns `close`, `toggle` of what lies over it, and `view` by its name. */
export async function volumeViewer(place, context) {
  const viewer = new VolumeViewer(place, context, await import("./dist/viewer.js"));
  try {
    await viewer.open();
  } catch (error) {
    viewer.close();
    throw error;
  }
  return { close: () => viewer.close(), toggle: () => viewer.toggle(), view: (name) => viewer.view(name) };
}

class VolumeViewer {
  constructor(place, { base, info, found, file, signal }, { Niivue, NVImage }) {
    Object.assign(this, { place, base, info, found, file, signal, NVImage });
    this.kept = new Map();
    this.layers = { label: null, map: null };
    this.turns = { label: 0, map: 0 };
    this.opacity = { label: 0, map: 0.6 };
    this.contours = true;
    this.bare = false;
    this.colours = legend(info);
    this.canvas = h("canvas", { tabindex: -1, role: "img", "aria-label": `Volume of ${found.name}; the sliders beside it move the planes` });
    this.readout = h("p", { class: "caption" });
    this.viewer = new Niivue({
      isRadiologicalConvention: true, sagittalNoseLeft: true, show3Dcrosshair: true, isColorbar: false, logLevel: "error",
      backColor: [0.04, 0.05, 0.07, 1], crosshairColor: [0.42, 0.71, 1, 0.75], crosshairWidth: 0.6, crosshairWidthUnit: "percent",
      dragAndDropEnabled: false, isNearestInterpolation: false, multiplanarForceRender: true, showAllOrientationMarkers: true,
      viewModeHotKey: "", clipPlaneHotKey: "", cycleClipPlaneHotKey: "", scrollRequiresFocus: false, fontColor: [1, 1, 1, 1], fontSizeScaling: 0.55, multiplanarPadPixels: 8,
    });
    this.viewer.onLocationChange = (data) => this.moved(data);
  }

  async open() {
    const { info, viewer } = this;
    const panel = this.panel();
    panel.inert = true;  // until there is something to change
    this.place.append(h("div", { class: "canvas gl" }, h("div", { class: "gl-frame" }, this.canvas), this.readout), panel);
    setText(this.readout, "Loading …");
    await viewer.attachToCanvas(this.canvas);
    this.canvas.tabIndex = -1;  // NiiVue makes it a stop of the Tab key; the sliders are the keyboard's way
    if (this.signal.aborted) return;
    viewer.addColormap("doubt", heat(info.heat));
    for (const { name, colour } of info.structures) viewer.addColormap(`ramp-${name}`, ramp(colour));
    this.shows = Boolean(info.image || this.file);
    const first = this.shows ? await this.image() : await this.map(info.overlays.label ? "label" : Object.keys(info.overlays)[0]);
    if (!this.shows) first.opacity = 0;
    viewer.addVolume(first);
    viewer.setAtlasOutline(CONTOUR);
    await this.show("map", doubtOf(info));
    await this.show("label", info.overlays.label ? "label" : "none");
    if (this.signal.aborted) return;
    viewer.setSliceType(3);
    panel.inert = false;
    this.go(info.axes.map((axis) => axis.start));
  }

  async image() {
    const content = this.file && !this.info.image ? await this.file.arrayBuffer() : await this.fetched(`${this.base}/image`);
    const range = this.info.range ?? [NaN, NaN];
    return this.NVImage.loadFromUrl({ url: content, name: nifti(content, "image"), colormap: "gray", cal_min: range[0], cal_max: range[1] });
  }

  /** Of a results' file, in its colours. */
  async map(key) {
    const { info, found } = this;
    const content = await this.fetched(found.files[key].href);
    const options = { url: content, name: nifti(content, key), opacity: 0 };
    if (key === "label" || key.startsWith("sample-")) {
      const volume = await this.NVImage.loadFromUrl(options);
      volume.setColormapLabel(labels(info.structures));
      volume.hdr.intent_code = ATLAS;
      return volume;
    }
    const structure = info.structures.find(({ name }) => [`prob-${name}`, `cautious-${name}`].includes(key));
    const colormap = structure ? `ramp-${structure.name}` : "doubt";
    const { highest } = info.overlays[key];
    const volume = await this.NVImage.loadFromUrl({ ...options, colormap, cal_min: info.heat.faded_below * highest / 2, cal_max: highest });
    volume.colormapType = COLOURS_FROM_ZERO;  // NiiVue shows a voxel of an overlay or not: little is not shown
    return volume;
  }

  async fetched(path) {
    if (!this.kept.has(path)) {
      const content = await (await request(path, { signal: this.signal })).arrayBuffer();
      if (this.kept.size >= KEEP) this.kept.delete(this.kept.keys().next().value);
      this.kept.set(path, content);
    }
    return this.kept.get(path).slice(0);
  }

  /** Put a file into a layer, in the place of what was there. */
  async show(layer, key) {
    const mine = ++this.turns[layer];
    const volume = key === "none" ? null : await this.map(key);
    if (mine !== this.turns[layer] || this.signal.aborted) return;
    const old = this.layers[layer];
    if (volume) this.viewer.addVolume(volume);
    if (old) this.viewer.removeVolume(old);
    this.layers[layer] = volume;
    if (layer === "map") this.colours.show(key);
    if (layer === "map" && volume && this.layers.label) this.viewer.setVolume(this.layers.label, this.viewer.volumes.length - 1);
    this.setOpacity(layer, this.opacity[layer]);
    this.viewer.createOnLocationChange();
  }

  setOpacity(layer, value) {
    this.opacity[layer] = value;
    const volume = this.layers[layer], least = layer === "label" && this.contours ? TRACE : 0;
    if (volume) this.viewer.setOpacity(this.viewer.volumes.indexOf(volume), this.bare ? 0 : Math.max(value, least));
  }

  setContours(shown) {
    this.contours = shown;
    this.viewer.setAtlasOutline(shown && !this.bare ? CONTOUR : 0);
    this.setOpacity("label", this.opacity.label);
  }

  /** Take away what lies over the image, or bring it back; whether it is there now. */
  toggle() {
    this.bare = !this.bare;
    this.setContours(this.contours);
    this.setOpacity("map", this.opacity.map);
    return !this.bare;
  }

  view(name) {
    const [value] = VIEWS.find(([, title]) => title === name) ?? [];
    if (value === undefined) return;
    this.views.select.value = value;
    this.viewer.setSliceType(Number(value));
  }

  panel() {
    const { info } = this;
    const samples = samplesOf(info);
    const failed = (error) => this.signal.aborted || setText(this.readout, `It can't be shown: ${error.message}`);
    const change = (layer) => (key) => this.show(layer, key).catch(failed);
    this.views = choice("View", VIEWS, "3", (value) => this.viewer.setSliceType(Number(value)));
    const contours = tick("Contours of the segmentation", this.contours, (value) => this.setContours(value));
    this.places = info.axes.map((axis) => slider(axis.name, {
      min: 0, max: axis.count - 1, value: axis.start, say: (n) => `${n + 1} of ${axis.count}`,
    }, () => this.go(this.places.map(({ input }) => Number(input.value)))));
    const opacities = (label, layer) => slider(label, { min: 0, max: 1, step: 0.05, value: this.opacity[layer], say: percent }, (value) => this.setOpacity(layer, value));
    const sample = samples.length > 0 && slider("Sample", {
      min: -1, max: samples.length - 1, value: -1, say: (n) => (n < 0 ? "their mean" : `${n + 1} of ${samples.length}`),
    }, (n) => change("label")(n < 0 ? "label" : samples[n]));
    const map = choice("Map", [["none", "none"], ...mapsOf(info).map((key) => [key, title(key)])], doubtOf(info), change("map"));
    return h("div", { class: "panel" }, this.views.element, h("fieldset", {}, h("legend", {}, "Planes"), this.places.map(({ element }) => element)),
      h("fieldset", {}, h("legend", {}, "Over the image"), contours, sample && sample.element, opacities("Segmentation, opacity", "label").element, map.element, opacities("Map, opacity", "map").element),
      this.colours.element, info.missing && !this.file && h("p", { class: "note" }, info.missing));
  }

  /** Move the planes to a voxel, counted towards right, anterior, superior. */
  go(voxel) {
    this.viewer.scene.crosshairPos = this.viewer.vox2frac(voxel);
    this.viewer.createOnLocationChange();
    this.viewer.drawScene();
  }

  moved(data) {
    data.vox?.slice(0, 3).forEach((n, k) => this.places[k].set(Math.round(n)));
    const values = (data.values ?? []).map(({ value }, k) => [this.viewer.volumes[k], value]).slice(this.shows ? 0 : 1);
    const at = data.mm ? `at ${[...data.mm].slice(0, 3).map((mm) => mm.toFixed(1)).join(", ")} mm` : "";
    const said = values.filter(([volume]) => volume).map(([volume, value]) => `${title(volume.name.replace(/\.nii(\.gz)?$/, ""))} ${this.spoken(volume, value)}`);
    setText(this.readout, [at, ...said].filter(Boolean).join(" · "));
  }

  spoken(volume, value) {
    if (!/^(label|sample-)/.test(volume.name)) return share(value);
    return this.info.structures.find((one) => one.value === Math.round(value))?.name ?? "background";
  }

  close() {
    this.kept.clear();
    this.viewer.cleanup?.();
    this.canvas.getContext("webgl2")?.getExtension("WEBGL_lose_context")?.loseContext();
  }
}

function nifti(content, name) {
  const [first, second] = new Uint8Array(content, 0, 2);
  return first === 31 && second === 139 ? `${name}.nii.gz` : `${name}.nii`;
}

function parts(colour) {
  return [1, 3, 5].map((k) => parseInt(colour.slice(k, k + 2), 16));
}

/** From dark to a structure's colour: overlays are not translucent voxel by voxel. */
function ramp(colour) {
  const [r, g, b] = parts(colour);
  return { R: [r / 5, r], G: [g / 5, g], B: [b / 5, b], A: [0, 255], I: [0, 255] };
}

/** Colours of an amount of doubt, those of the server's pictures. */
function heat({ colours }) {
  const stops = colours.map(parts);
  const column = (k) => stops.map((rgb) => rgb[k]);
  const places = stops.map((_, n) => Math.round((255 * n) / (stops.length - 1)));
  return { R: column(0), G: column(1), B: column(2), A: stops.map((_, n) => (n ? 255 : 0)), I: places };
}

function labels(structures) {
  const all = structures.map(({ name, value, colour }) => ({ name, value, rgb: parts(colour) }));
  const column = (k) => [0, ...all.map(({ rgb }) => rgb[k])];
  return { R: column(0), G: column(1), B: column(2), A: [0, ...all.map(() => 255)], I: [0, ...all.map(({ value }) => value)], labels: ["", ...all.map(({ name }) => name)] };
}
