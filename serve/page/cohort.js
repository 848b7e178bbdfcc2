// One cohort: its progress, its table, its downloads.

import { cohortPath, follow, has, json, pause, request, save } from "./api.js";
import { Cases, PAGE, hasEnded } from "./cases.js";
import { keepFresh, samples } from "./cohorts.js";
import { announce, chip, choice, h, setChip, setText } from "./dom.js";
import { count, time } from "./format.js";
import { inWords, progress } from "./progress.js";
import { CaseTable } from "./table.js";

const FILTERS = [["", "all"], ["needed", "needs review"], ["open", "not reviewed"], ["reviewed", "reviewed"],
  ["done", "done"], ["failed", "failed"], ["running", "running"], ["queued", "queued"], ["cancelled", "cancelled"]];
const DOWNLOADS = { table: "numbers (Parquet)", csv: "numbers (CSV)", reviews: "reviews (CSV)", archive: "everything (zip)" };
const NO_DOWNLOADS = ["self", "cases", "events", "cohort"];
const EVERY = 1500, IDLE = 10_000;

/** The order of the table that was shown last, for the way from case to case. */
export const walked = { cohort: "", title: "", names: [] };

export async function showCohort(place, { of: [id], signal, failed }) {
  const view = new CohortView(id, signal, failed);
  await view.refresh();
  place.append(view.element);
  view.live();
}

class CohortView {
  constructor(id, signal, failed) {
    Object.assign(this, { id, signal, failed, number: 0, told: -1, busy: null });
    this.cases = new Cases(id, signal);
    this.bar = progress();
    this.state = chip("queued");
    this.facts = h("p", { class: "facts" });
    this.links = h("div", { class: "tools" });
    this.cancel = h("button", { type: "button", class: "quiet", hidden: true, onclick: () => this.askToCancel() }, "Cancel the rest");
    this.filter = choice("Show", FILTERS, "", () => this.turn(0));
    this.heading = h("span");
    this.reviewed = h("p", { class: "reviewed" });
    this.table = new CaseTable(id, () => this.turn(0));
    this.where = h("span", { class: "where" });
    this.back = h("button", { type: "button", onclick: () => this.turn(this.number - 1) }, "Previous page");
    this.forth = h("button", { type: "button", onclick: () => this.turn(this.number + 1) }, "Next page");
    this.pages = h("nav", { class: "pages", "aria-label": "Pages of the table" }, this.back, this.where, this.forth);
    this.element = this.layout();
  }

  layout() {
    return h("div", {},
      h("p", { class: "trail" }, h("a", { href: "#/" }, "Cohorts")),
      h("div", { class: "head" },
        h("h1", { tabindex: -1 }, this.heading, " ", h("code", { class: "faint" }, this.id)), this.state, this.cancel),
      this.facts, this.bar.element, this.reviewed,
      h("div", { class: "head table-head" }, h("h2", {}, "Cases"), this.filter.element, this.links),
      this.table.element, this.pages);
  }

  /** Ask for the cohort and its rows, one question at a time. */
  async refresh() {
    this.busy ??= this.read().finally(() => (this.busy = null));
    return this.busy;
  }

  async read() {
    const cohort = await json(`${cohortPath(this.id)}?cases=false`, { signal: this.signal });
    this.showCohort(cohort);
    const query = { ...this.table.order, filter: this.filter.select.value, number: this.number };
    const page = await this.cases.page(cohort.total, query);
    this.table.show(page.rows, this.cases.held);
    Object.assign(walked, { cohort: this.id, title: cohort.name, names: page.names });
    this.showPages(page);
  }

  showCohort(cohort) {
    this.cohort = cohort;
    setChip(this.state, cohort.state);
    setText(this.heading, cohort.name);
    document.title = `${cohort.name} – LDSeg`;
    this.bar.update(cohort.counts, cohort.total);
    const { needed, reviewed } = cohort.review;
    setText(this.reviewed, `${count(reviewed)} of ${count(cohort.total)} reviewed${needed ? `; ${count(needed)} need${needed === 1 ? "s" : ""} review` : ""}`);
    const steps = cohort.steps ? `${cohort.steps} steps` : "the model's own steps";
    setText(this.facts, `Posted ${time(cohort.created)} · ${samples(cohort.samples)} samples, ${steps}, seed ${cohort.seed}`);
    this.cancel.hidden = hasEnded(cohort) || cohort.state === "cancelled";
    if (!this.links.childElementCount) this.links.replaceChildren(...this.downloads(cohort.links ?? {}));
    const tenth = Math.floor((10 * (cohort.total - (cohort.counts.queued ?? 0) - (cohort.counts.running ?? 0))) / cohort.total);
    if (this.told >= 0 && tenth !== this.told) announce(`${inWords(cohort.counts, cohort.total)}`);
    this.told = tenth;
  }

  showPages({ rows, hasNext, found }) {
    const first = this.number * PAGE;
    this.pages.hidden = this.number === 0 && !hasNext;
    this.back.disabled = this.number === 0;
    this.forth.disabled = !hasNext;
    const all = found ?? (this.filter.select.value ? null : this.cohort.total);
    setText(this.where, `${count(first + 1)} to ${count(first + rows.length)}${all === null ? "" : ` of ${count(all)}`}`);
  }

  async turn(number) {
    this.number = Math.max(0, number);
    await this.busy?.catch(() => {});
    try {
      await this.refresh();
      announce(this.pages.hidden ? "The table is sorted anew." : `Cases ${this.where.textContent}`);
    } catch (error) {
      this.failed(error);
    }
  }

  downloads(links) {
    return Object.entries(links).filter(([name]) => !NO_DOWNLOADS.includes(name)).map(([name, href]) => {
      const title = DOWNLOADS[name] ?? name;
      return h("button", {
        type: "button", class: "quiet", "data-download": name, "aria-label": `Download the ${title} of this cohort`,
        onclick: () => save(href, `${this.id}-${href.split("?")[0].split("/").pop()}`).catch(this.failed),
      }, `↓ ${title}`);
    });
  }

  async askToCancel() {
    const dialog = h("dialog", { "aria-labelledby": "cancel-title" },
      h("form", { method: "dialog" },
        h("h2", { id: "cancel-title" }, "Cancel what is unfinished?"),
        h("p", {}, "Cases that are done keep their results. This can't be taken back."),
        h("div", { class: "tools" }, h("button", { value: "no", autofocus: true }, "Go on"), h("button", { value: "yes", class: "danger" }, "Cancel the rest"))));
    document.body.append(dialog);
    dialog.showModal();
    await new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
    dialog.remove();
    if (dialog.returnValue !== "yes") return;
    try {
      await request(cohortPath(this.id), { method: "DELETE" });
      await this.refresh();
      announce("What was unfinished is cancelled.");
    } catch (error) {
      this.failed(error);
    }
  }

  /** Follow the cohort's events where the service sends them, and ask again now and then either way. */
  async live() {
    const events = await has("/v1/cohorts/{cohort}/events");
    const every = () => {
      if (hasEnded(this.cohort)) return IDLE;
      const polled = Math.max(EVERY, 2 * this.cases.cost);
      return events ? 4 * polled : polled;
    };
    keepFresh(() => this.refresh(), every, this.signal, this.failed);
    if (!events || hasEnded(this.cohort)) return;
    let due = null;
    const heard = () => {
      due ??= pause(Math.max(500, this.cases.cost), this.signal).then(() => {
        due = null;
        return this.signal.aborted ? null : this.refresh();
      }).catch(this.failed);
    };
    const ended = new AbortController();
    this.signal.addEventListener("abort", () => ended.abort(), { once: true });
    follow(`${cohortPath(this.id)}/events`, () => (hasEnded(this.cohort) ? ended.abort() : heard()), ended.signal);
  }
}
