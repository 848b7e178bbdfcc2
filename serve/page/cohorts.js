// All cohorts, the newest first, with their progress.

import { json, pause } from "./api.js";
import { chip, choice, h, setChip, setText } from "./dom.js";
import { count, time } from "./format.js";
import { progress } from "./progress.js";

const EVERY = 2000, IDLE = 6000, PAGE = 50;
const FILTERS = [["", "all"], ["queued", "queued"], ["running", "running"], ["done", "done"], ["cancelled", "cancelled"]];

export async function showCohorts(place, { signal, failed }) {
  const rows = new Map();
  const body = h("tbody");
  const empty = h("p", { class: "empty", hidden: true });
  const more = h("button", { type: "button", hidden: true, onclick: older }, "Older cohorts");
  const filter = choice("State", FILTERS, "", () => sift());
  const columns = ["Cohort", "Posted", "Model", "State", "Progress", "Review", "Samples"];
  let due = 0;
  const search = h("input", {
    type: "search", id: "search", placeholder: "name of a cohort", autocomplete: "off",
    oninput: () => {
      clearTimeout(due);
      due = setTimeout(() => anew().catch(failed), 250);
    },
  });
  place.append(
    h("div", { class: "head" }, h("h1", { tabindex: -1 }, "Cohorts"), h("div", { class: "tools" }, h("label", { class: "choice", for: "search" }, "Search"), search, filter.element)),
    h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Table of the cohorts" }, h("table", { class: "cohorts" },
      h("caption", { class: "unseen" }, "Cohorts, the newest first"),
      h("thead", {}, h("tr", {}, columns.map((name) => h("th", { scope: "col", class: name === "Samples" && "number" }, name)))), body)),
    empty, h("p", { class: "pages" }, more),
  );
  let next = null, unfinished = false;

  function take(cohorts, first) {
    cohorts.forEach((cohort, position) => {
      let row = rows.get(cohort.id);
      if (!row) {
        row = line(cohort);
        rows.set(cohort.id, row);
        if (first) body.insertBefore(row.element, body.children[position] ?? null);
        else body.append(row.element);
      }
      row.update(cohort);
    });
    sift();
  }

  function sift() {
    let visible = 0;
    for (const row of rows.values()) {
      row.element.hidden = Boolean(filter.select.value) && row.state !== filter.select.value;
      visible += !row.element.hidden;
    }
    empty.hidden = visible > 0;
    empty.textContent = search.value.trim() ? "No cohort is called so." : rows.size ? "No cohort here is in that state."
      : "There is nothing here yet. Upload volumes to have them segmented.";
  }

  /** Another search: what was found before goes. */
  async function anew() {
    rows.clear();
    body.replaceChildren();
    await refresh();
  }

  async function refresh() {
    const asked = search.value.trim();
    const answer = await json(`/v1/cohorts?${new URLSearchParams({ limit: PAGE, search: asked })}`, { signal });
    if (asked !== search.value.trim()) return;
    if (!rows.size) next = answer.next;
    take(answer.cohorts, true);
    more.hidden = !next;
    unfinished = answer.cohorts.some((cohort) => ["queued", "running"].includes(cohort.state));
  }

  async function older() {
    try {
      const answer = await json(next, { signal });
      next = answer.next;
      more.hidden = !next;
      take(answer.cohorts, false);
    } catch (error) {
      failed(error);
    }
  }

  await refresh();
  keepFresh(refresh, () => (unfinished ? EVERY : IDLE), signal, failed);
}

/** Ask again and again while the page is in sight. */
export async function keepFresh(refresh, every, signal, failed) {
  for (;;) {
    await pause(every(), signal);
    if (signal.aborted) return;
    if (document.hidden) continue;
    try {
      await refresh();
    } catch (error) {
      failed(error);
      if (error.status === 401) return;
    }
  }
}

function line(cohort) {
  const state = chip(cohort.state), bar = progress();
  const link = h("a", { href: `#/cohorts/${encodeURIComponent(cohort.id)}` }, h("span", {}, cohort.name), " ", h("code", { class: "faint" }, cohort.id));
  const kind = cohort.upload ? h("span", { class: "tag" }, "upload") : null;
  const model = h("td", { class: "of-model", "data-label": "Model" }), review = h("td", { "data-label": "Review" });
  const element = h("tr", {},
    h("th", { scope: "row" }, link, kind), h("td", { "data-label": "Posted" }, time(cohort.created)), model, h("td", { "data-label": "State" }, state),
    h("td", { class: "wide", "data-label": "Progress" }, bar.element), review, h("td", { class: "number", "data-label": "Samples" }, samples(cohort.samples)));
  const row = { element, state: cohort.state, update };
  function update(next) {
    row.state = next.state;
    setChip(state, next.state);
    bar.update(next.counts, next.total);
    const { needed, reviewed, models } = next.review;
    const said = [needed && `${count(needed)} need${needed === 1 ? "s" : ""} review`, reviewed && `${count(reviewed)} of ${count(next.total)} reviewed`];
    setText(review, said.filter(Boolean).join("; ") || "–");
    review.classList.toggle("wanted", needed > reviewed);
    setText(model, next.models.map((one) => one.split("/").slice(1).join("/")).join(", ") || models.map((one) => one.replace("sha256:", "").slice(0, 10)).join(", ") || "–");
    model.title = models.join(" ");
    setText(element.lastElementChild, samples(next.samples));
  }
  return row;
}

/** How many samples a cohort asks for: a number, or bounds for as many as a case needs. */
export function samples(wanted) {
  if (wanted && typeof wanted === "object") return `${count(wanted.min)} to ${count(wanted.max)}`;
  return count(wanted);
}
