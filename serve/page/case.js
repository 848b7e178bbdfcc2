// One case: its picture, its numbers, its files, and the way to the next one.

import { ApiError, casePath, json, pause, save } from "./api.js";
import { walked } from "./cohort.js";
import { announce, chip, h, notice, setChip, setText } from "./dom.js";
import { amount, bytes, count, share, time, volumes, words } from "./format.js";
import { shortcuts } from "./keys.js";
import { title } from "./overlays.js";
import { planeViewer } from "./planes.js";
import { Review } from "./review.js";
import { interval, promise } from "./table.js";
import { uploaded } from "./upload.js";
import { hasWebGL, volumeViewer } from "./volume.js";
import { meanings, standing } from "./words.js";

const UNFINISHED = ["queued", "running"], REVIEWABLE = ["done", "failed"];
const PLANES = ["axial", "coronal", "sagittal", "all planes"];

export async function showCase(place, { of: [cohort, name], signal, failed }) {
  const state = chip("queued"), error = h("p", { class: "error", hidden: true });
  const viewer = h("section", { class: "viewer", "aria-label": "Picture of the case" });
  const facts = h("div", { class: "facts-side" });
  const review = new Review(cohort, name, { signal, failed });
  review.element.hidden = true;
  const walk = h("span", { class: "walk" }), shown = { viewer: null };
  place.append(
    h("p", { class: "trail" }, h("a", { href: "#/" }, "Cohorts"), " / ",
      h("a", { href: `#/cohorts/${encodeURIComponent(cohort)}` }, walked.cohort === cohort ? walked.title : "Its cohort"), walk),
    h("div", { class: "head" }, h("h1", { tabindex: -1 }, name), state), error,
    h("div", { class: "case" }, viewer, h("div", { class: "beside" }, review.element, facts)));

  const meaning = await meanings();
  async function fill() {
    const found = await json(casePath(cohort, name), { signal });
    setChip(state, standing(found));
    error.hidden = !found.error;
    setText(error, found.error ?? "");
    facts.replaceChildren(...numbers(found, meaning), ...files(found, failed));
    const place = neighbours(cohort, name, await review.read());
    review.element.hidden = !REVIEWABLE.includes(found.state);
    walk.replaceChildren(...links(cohort, place));
    near = place;
    return found;
  }
  async function draw(found) {
    if (found.state === "cancelled") return;
    await show(viewer, cohort, found, signal, shown).catch((problem) => told(viewer, problem, signal));
  }
  let near = {}, found = await fill();
  listen();
  if (!UNFINISHED.includes(found.state)) {
    draw(found);
    return;
  }
  viewer.replaceChildren(h("p", { class: "empty" }, "The picture comes when the case is done."));
  watch();

  function listen() {
    const go = (to) => to && (location.hash = caseHash(cohort, to));
    const help = shortcuts([
      { keys: ["j"], words: "next case", does: () => go(near.next) },
      { keys: ["k"], words: "previous case", does: () => go(near.previous) },
      { keys: [" "], words: "the image alone, and with what lies over it", does: () => announce(shown.viewer?.toggle() ? "The overlay is shown." : "The image alone.") },
      { keys: ["1", "2", "3", "4"], words: "axial, coronal, sagittal, all planes", does: (key) => shown.viewer?.view(PLANES[Number(key) - 1]) },
      { keys: ["a", "c", "r"], words: "accept, correct, reject", does: (key) => review.element.hidden || review.say({ a: "accept", c: "correct", r: "reject" }[key]) },
      { keys: ["n"], words: "write a note (Esc leaves it)", does: () => review.note.focus() },
    ], signal);
    review.element.append(h("button", { type: "button", class: "quiet keys-button", onclick: () => help.does() }, "Keys (?)"));
  }

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

function caseHash(cohort, name) {
  return `#/cohorts/${encodeURIComponent(cohort)}/cases/${encodeURIComponent(name)}`;
}

/** The cases before and after this one: in the order of the table that it was come from, else in that of review. */
function neighbours(cohort, name, { previous, next, place, total }) {
  const position = walked.cohort === cohort ? walked.names.indexOf(name) : -1;
  if (position < 0) return { previous, next, place, total };
  return { previous: walked.names[position - 1], next: walked.names[position + 1], place: position + 1, total: walked.names.length };
}

function links(cohort, { previous, next, place, total }) {
  const link = (text, to) => (to ? h("a", { href: caseHash(cohort, to), title: to }, text) : h("span", { class: "faint" }, text));
  return [link("← Previous case", previous), h("span", { class: "faint" }, `${place} of ${total}`), link("Next case →", next)];
}

function told(viewer, problem, signal) {
  if (signal.aborted || problem.name === "AbortError") return;
  if (!(problem instanceof ApiError)) console.error(problem);
  viewer.replaceChildren(h("p", { class: "empty" }, `No picture: ${problem.message}`));
}

/** By WebGL where it can be, else by pictures that the server draws; the reader may change over. */
async function show(viewer, cohort, found, signal, shown) {
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
  const close = () => {
    shown.viewer?.close();
    shown.viewer = null;
  };
  async function open(make, text, other) {
    close();
    const place = h("div", { class: "stage" });
    const change = other && h("button", { type: "button", class: "quiet", onclick: other }, text);
    viewer.replaceChildren(place);
    shown.viewer = await make(place, context);
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

function numbers(found, meaning) {
  const known = found.numbers;
  if (!known) return [];
  const sizes = volumes(known), models = (known.model_digest ?? "").split(" ").filter(Boolean);
  const rows = [
    ["Agreement", share(known.agreement), overall(meaning["{structure}_agreement"])],
    ["Soft Dice confidence", share(known.soft_dice_confidence), overall(meaning["{structure}_soft_dice_confidence"])],
    ["Mean entropy, nats", share(known.mean_entropy), meaning.mean_entropy],
    models.length > 1 && ["Between the models (epistemic)", share(known.mean_epistemic), meaning.mean_epistemic],
    models.length > 1 && ["Within the models (aleatoric)", share(known.mean_aleatoric), meaning.mean_aleatoric],
    Number.isFinite(known.familiarity) && ["Familiarity (p-value)", share(known.familiarity), meaning.familiarity],
    ["Samples", count(known.samples), meaning.samples], ["Steps", count(known.steps), meaning.steps],
    ["Seed", String(known.seed), "what the samples were drawn from; the same gives the same again"],
    ["Seconds", amount(known.seconds), meaning.seconds],
    found.finished && ["Finished", time(found.finished), "in your time zone"],
    ...models.map((digest, k) => [models.length > 1 ? `Model ${k + 1}` : "Model", h("code", { title: digest }, digest.replace("sha256:", "").slice(0, 12)), "names the model that drew the samples"]),
  ].filter(Boolean);
  return [
    known.unfamiliar ? h("p", { class: "warning" }, h("strong", {}, "Unfamiliar. "), "This case is unlike those that the model was trained on. No interval is promised for it; don't trust the result without a look.") : null,
    sizes.length ? h("section", {}, h("h2", {}, "Sizes"), sizes.map(sizeBlock)) : null,
    h("section", {}, h("h2", {}, "Numbers"), h("dl", {}, rows.flatMap(([term, value, why]) => [h("dt", {}, term, why && h("small", {}, why)), h("dd", {}, value)]))),
  ].filter(Boolean);
}

function overall(meaning) {
  return meaning && `${meaning}, averaged over the structures`;
}

const KINDS = {
  calibrated: "calibrated interval: holds the true size as often as promised",
  "not promised": "not promised: the case is unfamiliar",
  samples: "5th to 95th percentile of the samples",
};

function sizeBlock(volume) {
  const bounds = [volume.low, volume.high, volume.from, volume.to].filter(Number.isFinite);
  const margin = 0.15 * (Math.max(...bounds) - Math.min(...bounds) || 1);
  const { kind, from, to } = promise(volume);
  const calibrated = Number.isFinite(volume.from);
  return h("div", { class: "size-block" },
    h("p", {}, h("strong", {}, words(volume.name)), h("span", { class: kind === "not promised" ? "big doubtful" : "big" }, `${amount(from)} to ${amount(to)} ${volume.unit}`)),
    h("p", { class: kind === "not promised" ? "unpromised" : "faint" }, KINDS[kind]),
    interval(volume, Math.min(...bounds) - margin, Math.max(...bounds) + margin),
    h("ul", { class: "bar-legend" },
      calibrated && h("li", {}, h("span", { class: volume.unfamiliar ? "key promised broken" : "key promised", "aria-hidden": "true" }), volume.unfamiliar ? "not promised" : "calibrated"),
      h("li", {}, h("span", { class: "key drawn", "aria-hidden": "true" }), `samples, 5th to 95th percentile: ${amount(volume.low)} to ${amount(volume.high)}`),
      h("li", {}, h("span", { class: "key middle", "aria-hidden": "true" }), `best guess: ${amount(volume.middle)}`)),
    Number.isFinite(volume.agreement) && h("p", { class: "faint" }, `agreement of the samples: ${share(volume.agreement)}`));
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
