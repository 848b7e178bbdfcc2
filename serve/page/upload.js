// Volumes from this computer: sent with a bar each, watched, and then shown. Several become a cohort.

import { authorization, failure, json, own, pause } from "./api.js";
import { announce, h, notice } from "./dom.js";
import { bytes, count, percent } from "./format.js";

/** Files that were uploaded from here, by cohort and case: the service doesn't keep them once they are segmented. */
export const uploaded = new Map();

const KINDS = ".nii,.nii.gz,.gz,.png,.bmp,.tif,.tiff";
const ENDINGS = /\.(nii(\.gz)?|png|bmp|tiff?)$/i;
const AT_ONCE = 2;

export async function showUpload(place, { signal, failed }) {
  const file = h("input", { type: "file", id: "file", accept: KINDS, required: true, multiple: true });
  const name = h("input", { type: "text", id: "name", maxlength: 150, placeholder: "the file's name", autocomplete: "off" });
  const samples = h("input", { type: "number", id: "samples", min: 1, step: 1, value: 8, required: true });
  const seed = h("input", { type: "number", id: "seed", min: 0, step: 1, value: 0, required: true });
  const button = h("button", { type: "submit", class: "main" }, "Upload and segment");
  const going = h("ul", { class: "going", hidden: true, "aria-label": "Files" });
  const rest = h("div", { class: "tools" });
  const drop = h("div", { class: "drop" }, field("Volumes", file, "NIfTI (.nii, .nii.gz), or PNG, BMP, TIFF for a 2D model; drop one or several here"));
  const form = h("form", { class: "upload" }, drop,
    h("div", { class: "fields" }, field("Name", name, "of the volume, or of all together"), field("Samples", samples, "more cost more time"), field("Seed", seed, "the same seed gives the same samples")),
    h("div", { class: "tools" }, button), going, rest);
  place.append(h("h1", { tabindex: -1 }, "Upload"),
    h("p", { class: "facts" }, "One volume is segmented before all that waits. Several become a cohort."), form);
  acceptDrops(drop, file);

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    notice(null);
    button.disabled = true;
    going.hidden = false;
    rest.replaceChildren();
    const files = [...file.files], rows = files.map((one) => row(one));
    going.replaceChildren(...rows.map(({ element }) => element));
    const draws = { samples: Number(samples.value), seed: Number(seed.value), name: name.value.trim() };
    try {
      if (files.length === 1) await alone(files[0], draws, rows[0], signal);
      else await together(files, draws, rows, rest, signal, failed);
    } catch (error) {
      failed(error);
      if (error.cohort) notice(`${error.message} (cohort ${error.cohort})`);
    } finally {
      button.disabled = false;
    }
  });
}

function field(label, input, hint = "") {
  const id = `${input.id}-hint`;
  if (hint) input.setAttribute("aria-describedby", id);
  return h("div", { class: "field" }, h("label", { for: input.id }, label), input, hint && h("small", { id }, hint));
}

/** A file's own bar and words. */
function row(file) {
  const bar = h("progress", { max: 1, value: 0, "aria-label": `upload of ${file.name}` });
  const said = h("span", { class: "said" }, "waits");
  const element = h("li", {}, h("span", { class: "file-name" }, file.name), bar, said);
  return {
    element,
    sending(done, total) {
      bar.value = done;
      said.textContent = `${percent(done)} of ${bytes(total)}`;
    },
    tell(text, state = "") {
      if (state === "busy") bar.removeAttribute("value");
      else bar.value = state === "failed" ? 0 : 1;
      element.className = state;
      said.textContent = text;
    },
  };
}

function acceptDrops(drop, file) {
  drop.addEventListener("dragover", (event) => {
    event.preventDefault();
    drop.classList.add("over");
  });
  drop.addEventListener("dragleave", () => drop.classList.remove("over"));
  drop.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    if (event.dataTransfer.files.length) file.files = event.dataTransfer.files;
  });
}

async function alone(file, { samples, seed, name }, row, signal) {
  const fields = { samples, seed, ...(name ? { name } : {}) };
  const answer = await post("/v1/segmentations", file, fields, row, signal, () => {
    row.tell("sent; it is being segmented …", "busy");
    announce("The volume is sent and is being segmented.");
  });
  await arrive(answer, file, signal);
}

/** Send all files, then make a cohort of them; if some can't be used, the reader decides about the others. */
async function together(files, draws, rows, rest, signal, failed) {
  const names = caseNames(files), sent = [], waiting = files.map((file, k) => k);
  const work = async () => {
    for (let k = waiting.shift(); k !== undefined && !signal.aborted; k = waiting.shift()) {
      try {
        const { image } = await post("/v1/uploads", files[k], {}, rows[k], signal, () => rows[k].tell("sent; it is being checked …", "busy"));
        rows[k].tell("ready", "ready");
        sent.push({ k, name: names[k], image });
      } catch (error) {
        if (signal.aborted || error.status === 401) throw error;
        rows[k].tell(error.message, "failed");
      }
    }
  };
  await Promise.all(Array.from({ length: AT_ONCE }, work));
  sent.sort((one, other) => one.k - other.k);
  const make = async () => {
    const cases = sent.map(({ name, image }) => ({ name, image }));
    const cohort = await json("/v1/cohorts", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ cases, ...draws }), signal });
    for (const { k, name } of sent) uploaded.set(`${cohort.id}/${name}`, files[k]);
    location.hash = `#/cohorts/${encodeURIComponent(cohort.id)}`;
  };
  if (sent.length === files.length) return make();
  announce(`${count(files.length - sent.length)} of ${count(files.length)} files can't be used.`);
  if (sent.length) rest.append(h("button", { type: "button", class: "main", onclick: () => make().catch(failed) }, `Segment the other ${count(sent.length)}`));
}

/** The files' names without their endings; a second one of the same name gets a number. */
function caseNames(files) {
  const taken = new Set();
  return files.map(({ name }) => {
    const start = name.replace(ENDINGS, "").replace(/^\.+/, "") || "volume";
    let found = start;
    for (let k = 2; taken.has(found); k += 1) found = `${start}-${k}`;
    taken.add(found);
    return found;
  });
}

/** Send a file with fields; XMLHttpRequest because fetch doesn't tell how much has been sent. */
function post(path, file, fields, row, signal, sent) {
  const form = new FormData();
  for (const [key, value] of Object.entries(fields)) form.append(key, value);
  form.append("image", file);
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", own(path));
    for (const [key, value] of Object.entries(authorization())) request.setRequestHeader(key, value);
    request.upload.onprogress = (event) => row.sending(event.total ? event.loaded / event.total : 0, event.total);
    request.upload.onload = sent;
    request.onload = () => {
      const where = request.getResponseHeader("Location") ?? "";
      if (request.status < 300) return resolve(JSON.parse(request.responseText));
      const error = failure(request.status, request.responseText);
      error.cohort = where.split("/").pop();
      reject(error);
    };
    request.onerror = () => reject(failure(0, "the upload was cut off; is the service running?"));
    request.onabort = () => reject(new DOMException("left", "AbortError"));
    signal.addEventListener("abort", () => request.abort(), { once: true });
    request.send(form);
  });
}

/** Go to the case, or to the cohort while it waits. */
async function arrive(answer, file, signal) {
  const cohort = answer.cohort ?? answer.id;
  let name = answer.cohort ? answer.name : answer.cases?.[0]?.name;
  while (!name && !signal.aborted) {
    name = (await json(`/v1/cohorts/${encodeURIComponent(cohort)}/cases?limit=1`, { signal })).cases[0]?.name;
    if (!name) await pause(500, signal);
  }
  uploaded.set(`${cohort}/${name}`, file);
  announce("The volume is taken in.");
  if (!signal.aborted) location.hash = `#/cohorts/${encodeURIComponent(cohort)}/cases/${encodeURIComponent(name)}`;
}
