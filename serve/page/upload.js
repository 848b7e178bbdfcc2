// One volume from this computer: sent, watched, and then shown.

import { authorization, failure, has, json, own, pause } from "./api.js";
import { announce, h, notice } from "./dom.js";
import { bytes, percent } from "./format.js";

/** Files that were uploaded from here, by cohort and case: the service doesn't keep them once they are segmented. */
export const uploaded = new Map();

const KINDS = ".nii,.nii.gz,.gz,.png,.bmp,.tif,.tiff";

export async function showUpload(place, { signal, failed }) {
  const file = h("input", { type: "file", id: "file", accept: KINDS, required: true });
  const name = h("input", { type: "text", id: "name", maxlength: 150, placeholder: "the file's name", autocomplete: "off" });
  const samples = h("input", { type: "number", id: "samples", min: 1, step: 1, value: 8, required: true });
  const seed = h("input", { type: "number", id: "seed", min: 0, step: 1, value: 0, required: true });
  const button = h("button", { type: "submit", class: "main" }, "Upload and segment");
  const bar = h("progress", { max: 1, value: 0, "aria-label": "upload" });
  const said = h("p", { class: "said" });
  const going = h("div", { class: "going", hidden: true }, bar, said);
  const drop = h("div", { class: "drop" }, field("Volume", file, "NIfTI (.nii, .nii.gz), or PNG, BMP, TIFF for a 2D model; drop it here"));
  const form = h("form", { class: "upload" }, drop,
    h("div", { class: "fields" }, field("Name", name), field("Samples", samples, "more cost more time"), field("Seed", seed, "of the samples")),
    h("div", { class: "tools" }, button), going);
  place.append(h("h1", { tabindex: -1 }, "Upload a volume"),
    h("p", { class: "facts" }, "It is segmented before the cohorts that wait, and becomes a cohort of one case."), form);
  acceptDrops(drop, file);

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    notice(null);
    button.disabled = true;
    going.hidden = false;
    const tell = (text) => (said.textContent = text);
    try {
      const sent = new FormData();
      sent.append("samples", samples.value);
      sent.append("seed", seed.value);
      if (name.value.trim()) sent.append("name", name.value.trim());
      sent.append("image", file.files[0]);
      const answer = await post(sent, file.files[0], bar, tell, signal);
      await arrive(answer, file.files[0], tell, signal);
    } catch (error) {
      failed(error);
      if (error.cohort) notice(`${error.message} (cohort ${error.cohort})`);
    } finally {
      button.disabled = false;
      going.hidden = true;
    }
  });
}

function field(label, input, hint = "") {
  const id = `${input.id}-hint`;
  if (hint) input.setAttribute("aria-describedby", id);
  return h("div", { class: "field" }, h("label", { for: input.id }, label), input, hint && h("small", { id }, hint));
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

/** Send the form; XMLHttpRequest because fetch doesn't tell how much has been sent. */
function post(form, file, bar, tell, signal) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", own("/v1/segmentations"));
    for (const [key, value] of Object.entries(authorization())) request.setRequestHeader(key, value);
    request.setRequestHeader("Prefer", "respond-async");  // where the service knows it, the wait is told as a cohort
    request.upload.onprogress = (event) => {
      const done = event.total ? event.loaded / event.total : 0;
      bar.value = done;
      tell(`Sending ${file.name}: ${percent(done)} of ${bytes(event.total)}`);
    };
    request.upload.onload = () => {
      bar.removeAttribute("value");
      tell("Sent. It is being segmented …");
      announce("The volume is sent and is being segmented.");
    };
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
async function arrive(answer, file, tell, signal) {
  let cohort = answer.cohort ?? answer.id, name = answer.cohort ? answer.name : answer.cases?.[0]?.name;
  while (!name && !signal.aborted) {
    name = await onlyCase(cohort, signal);
    if (!name) await pause(500, signal);
  }
  uploaded.set(`${cohort}/${name}`, file);
  announce("The volume is taken in.");
  if (!signal.aborted) location.hash = `#/cohorts/${encodeURIComponent(cohort)}/cases/${encodeURIComponent(name)}`;
}

async function onlyCase(cohort, signal) {
  const paged = await has("/v1/cohorts/{cohort}/cases");
  const document = await json(`/v1/cohorts/${encodeURIComponent(cohort)}${paged ? "/cases?limit=1" : ""}`, { signal });
  return document.cases?.[0]?.name;
}
