// One case: its picture, its numbers, its files, and the way to the next one.

import { ApiError, casePath, json, pause, save } from "./api.js";
import { walked } from "./cohort.js";
import { announce, chip, h, notice, setChip, setText } from "./dom.js";
import { amount, bytes, share, time, volumes, words } from "./format.js";
import { title } from "./overlays.js";
import { planeViewer } from "./planes.js";
import { interval } from "./table.js";
import { uploaded } from "./upload.js";
import { hasWebGL, volumeViewer } from "./volume.js";

const UNFINISHED = ["queued", "running"];

export async function showCase(place, { of: [cohort, name], signal, failed }) {
  const state = chip("queued"), error = h("p", { class: "error", hidden: true });
  const viewer = h("section", { class: "viewer", "aria-label": "Picture of the case" });
  const facts = h("div", { class: "facts-side" });
  place.append(
    h("p", { class: "trail" }, h("a", { href: "#/" }, "Cohorts"), " / ",
      h("a", { href: `#/cohorts/${encodeURIComponent(cohort)}` }, cohort), ...neighbours(cohort, name)),
    h("div", { class: "head" }, h("h1", { tabindex: -1 }, name), state), error,
    h("div", { class: "case" }, viewer, facts));

  async function fill() {
    const found = await json(casePath(cohort, name), { signal });
    setChip(state, found.state);
    error.hidden = !found.error;
    setText(error, found.error ?? "");
    facts.replaceChildren(...numbers(found), ...files(found, failed));
    return found;
  }
  async function draw(found) {
    if (found.state !== "cancelled") await show(viewer, cohort, found, signal).catch((problem) => told(viewer, problem, signal));
  }
  let found = await fill();
  if (!UNFINISHED.includes(found.state)) {
    draw(found);
    return;
  }
  viewer.replaceChildren(h("p", { class: "empty" }, "The picture comes when the case is done."));
  watch();
  async function watch() {
    while (UNFINISHED.includes(found.state) && !signal.aborted) {
      await pause(1000, signal);
      try {
        if (!signal.aborted) found = await fill();
      } catch (problem) {
        failed(problem);
        if (problem.status === 401) return;
      }
    }
    if (signal.aborted) return;
    announce(`The case is ${found.state}.`);
    await draw(found);
  }
}

/** Links to the cases before and after this one, in the order of the table. */
function neighbours(cohort, name) {
  const position = walked.cohort === cohort ? walked.names.indexOf(name) : -1;
  if (position < 0) return [];
  const link = (text, to) => (to ? h("a", { href: `#/cohorts/${encodeURIComponent(cohort)}/cases/${encodeURIComponent(to)}`, title: to }, text) : h("span", { class: "faint" }, text));
  return [h("span", { class: "walk" }, link("← Previous case", walked.names[position - 1]),
    h("span", { class: "faint" }, `${position + 1} of ${walked.names.length}`), link("Next case →", walked.names[position + 1]))];
}

function told(viewer, problem, signal) {
  if (signal.aborted || problem.name === "AbortError") return;
  if (!(problem instanceof ApiError)) console.error(problem);
  viewer.replaceChildren(h("p", { class: "empty" }, `No picture: ${problem.message}`));
}

/** By WebGL where it can be, else by pictures that the server draws; the reader may change over. */
async function show(viewer, cohort, found, signal) {
  const base = casePath(cohort, found.name);
  const info = await json(`${base}/volume-info`, { signal });
  if (!info.axes.length) {
    viewer.replaceChildren(h("p", { class: "empty" }, `No picture: ${info.missing}`));
    return;
  }
  const { viewer: built } = await json("/page/features.json", { signal });
  const able = hasWebGL();
  const file = uploaded.get(`${cohort}/${found.name}`) ?? null;
  const why = !info.volume ? "" : !built ? "The 3D viewer was not built (Node.js was missing at the installation), so the server draws the slices."
    : !able ? "This browser has no WebGL 2, so the server draws the slices." : "";
  const context = { base, info, found, file, signal };
  let close = () => {};
  async function open(make, text, other) {
    close();
    const place = h("div", { class: "stage" });
    const change = other && h("button", { type: "button", class: "quiet", onclick: other }, text);
    viewer.replaceChildren(place);
    close = await make(place, context);
    if (signal.aborted) return close();
    place.querySelector(".panel")?.append(h("div", { class: "under" }, why && h("p", { class: "note" }, why), change));
  }
  const byVolume = () => open(volumeViewer, "Show the server's slices", bySlices);
  const bySlices = () => open(planeViewer, "Show the volume", built && able && info.volume && byVolume);
  signal.addEventListener("abort", () => close(), { once: true });
  if (!(built && able && info.volume)) return bySlices();
  try {
    await byVolume();
  } catch (problem) {
    if (signal.aborted) return;
    notice(`The volume can't be shown by WebGL (${problem.message}); the server draws the slices instead.`, "hint");
    await bySlices();
  }
}

function numbers(found) {
  const known = found.numbers;
  if (!known) return [];
  const sizes = volumes(known);
  const pairs = [["Agreement", share(known.agreement)], ["Soft Dice confidence", share(known.soft_dice_confidence)], ["Mean entropy, nats", share(known.mean_entropy)]];
  const models = (known.model_digest ?? "").split(" ").filter(Boolean);
  if (models.length > 1) pairs.push(["between the models (epistemic)", share(known.mean_epistemic)], ["within the models (aleatoric)", share(known.mean_aleatoric)]);
  if (Number.isFinite(known.familiarity)) pairs.push(["Familiarity (p-value)", share(known.familiarity)]);
  pairs.push(["Samples × steps", `${known.samples} × ${known.steps}`], ["Seed", String(known.seed)], ["Seconds", amount(known.seconds)]);
  if (found.finished) pairs.push(["Finished", time(found.finished)]);
  models.forEach((digest, k) => pairs.push([models.length > 1 ? `Model ${k + 1}` : "Model", h("code", { title: digest }, digest.replace("sha256:", "").slice(0, 12))]));
  return [
    known.unfamiliar ? h("p", { class: "warning" }, h("strong", {}, "Unfamiliar. "), "This case is unlike those that the model was trained on. Don't trust the result without a look.") : null,
    sizes.length ? h("section", {}, h("h2", {}, "Sizes"), sizes.map(sizeBlock)) : null,
    h("section", {}, h("h2", {}, "Numbers"), h("dl", {}, pairs.flatMap(([term, value]) => [h("dt", {}, term), h("dd", {}, value)]))),
  ].filter(Boolean);
}

function sizeBlock(volume) {
  const bounds = [volume.low, volume.high, volume.from, volume.to].filter(Number.isFinite);
  const margin = 0.15 * (Math.max(...bounds) - Math.min(...bounds) || 1);
  const promised = Number.isFinite(volume.from);
  return h("div", { class: "size-block" },
    h("p", {}, h("strong", {}, words(volume.name)), h("span", { class: "big" }, `${amount(volume.middle)} ${volume.unit}`)),
    interval(volume, Math.min(...bounds) - margin, Math.max(...bounds) + margin),
    h("p", { class: "faint" }, `samples ${amount(volume.low)} to ${amount(volume.high)} (5th to 95th percentile)`),
    promised && h("p", { class: "faint" }, `calibrated ${amount(volume.from)} to ${amount(volume.to)}`),
    Number.isFinite(volume.agreement) && h("p", { class: "faint" }, `agreement ${share(volume.agreement)}`));
}

function files(found, failed) {
  const entries = Object.entries(found.files ?? {});
  if (!entries.length) return [];
  return [h("section", {}, h("h2", {}, "Files"), h("ul", { class: "files" }, entries.map(([key, entry]) => h("li", {},
    h("button", {
      type: "button", class: "quiet", "data-file": key, title: entry.name,
      onclick: () => save(entry.href, entry.name).catch(failed),
    }, `↓ ${title(key)}`), h("span", { class: "faint" }, bytes(entry.bytes))))))];
}
