// Which view is shown, the token, the model's name.

import { ApiError, json, keepToken, takeToken, token } from "./api.js";
import { showCase } from "./case.js";
import { showCohort } from "./cohort.js";
import { announce, h, notice, setText } from "./dom.js";
import { showCohorts } from "./cohorts.js";
import { showLost, showSignIn } from "./signin.js";
import { showUpload } from "./upload.js";

const main = document.getElementById("main");
let current = new AbortController();
let shown = false;

function route() {
  const parts = location.hash.replace(/^#\/?/, "").split("/").filter(Boolean).map(decoded);
  if (parts[0] === "upload") return [showUpload, "Upload"];
  if (parts[0] === "cohorts" && parts[2] === "cases" && parts[3]) return [showCase, parts[3], parts[1], parts[3]];
  if (parts[0] === "cohorts" && parts[1]) return [showCohort, `Cohort ${parts[1]}`, parts[1]];
  if (!parts.length || parts[0] === "cohorts") return [showCohorts, "Cohorts"];
  return [(place) => showLost(place, "There is no such page"), "Not found"];
}

function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

async function show() {
  if (location.hash === "#main") return main.focus();
  current.abort();
  current = new AbortController();
  const { signal } = current;
  const [view, title, ...of] = route();
  document.title = `${title} – LDSeg`;
  for (const [id, here] of [["nav-cohorts", view !== showUpload], ["nav-upload", view === showUpload]]) {
    if (here) document.getElementById(id).setAttribute("aria-current", "page");
    else document.getElementById(id).removeAttribute("aria-current");
  }
  notice(null);
  const place = h("div", { class: "view" });
  main.replaceChildren(place);
  try {
    await view(place, { of, signal, failed: (error) => fail(error, signal, place) });
    if (signal.aborted) return;
    if (shown) place.querySelector("h1")?.focus();  // after the first view, a new one is told by its heading
    shown = true;
  } catch (error) {
    if (error.status === 404 && of.length && !signal.aborted) lose(place, of);
    else fail(error, signal, place);
  }
}

function lose(place, [cohort, name]) {
  document.title = "Not found – LDSeg";
  showLost(place, name ? "There is no such case" : "There is no such cohort", name && cohort);
}

function fail(error, signal, place) {
  if (signal.aborted || error.name === "AbortError") return;
  if (error.status === 401) {
    current.abort();
    document.title = "Sign in – LDSeg";
    document.body.classList.add("signed-out");
    return showSignIn(place, enter);
  }
  notice(error instanceof ApiError ? error.message : `the page failed: ${error.message}`);
  if (!(error instanceof ApiError)) console.error(error);
}

async function tellModel() {
  const place = document.getElementById("model");
  try {
    const model = await json("/v1/model");
    const digest = String(model.digest ?? "").replace("sha256:", "").slice(0, 10);
    setText(place, [String(model.uri ?? "").split("/").pop(), digest].filter(Boolean).join(" · "));
    place.title = `${model.uri ?? ""} ${model.digest ?? ""}`;
  } catch {
    setText(place, "");
  }
}

/** With another token, or none. */
function enter() {
  document.body.classList.remove("signed-out");
  document.getElementById("sign-out").hidden = !token();
  tellModel();
  show();
}

document.getElementById("sign-out").addEventListener("click", () => {
  keepToken("");
  announce("You are signed out.");
  enter();
});

addEventListener("hashchange", () => (takeToken() ? enter() : show()));
takeToken();
enter();
