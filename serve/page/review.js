// A reviewer's work on one case: why it needs a look, what is said of it, and how far the cohort is.

import { casePath, json } from "./api.js";
import { announce, h, setText } from "./dom.js";
import { count, time } from "./format.js";
import { REASONS, VERDICTS } from "./words.js";

const BUTTONS = [["accept", "Accept"], ["correct", "Correct"], ["reject", "Reject"]];

export class Review {
  constructor(cohort, name, { signal, failed }) {
    Object.assign(this, { path: `${casePath(cohort, name)}/review`, signal, failed, found: null });
    this.reasons = h("ul", { class: "reasons" });
    this.note = h("textarea", { id: "note", rows: 2, maxlength: 2000, placeholder: "what you saw", onkeydown: (event) => event.key === "Escape" && this.note.blur() });
    this.buttons = new Map(BUTTONS.map(([verdict, word]) => [verdict, h("button", {
      type: "button", class: `verdict ${verdict}`, "aria-pressed": "false", onclick: () => this.say(verdict),
    }, word)]));
    this.said = h("p", { class: "faint" });
    this.back = h("button", { type: "button", class: "quiet", hidden: true, onclick: () => this.takeBack() }, "Take back");
    this.progress = h("p", { class: "faint" });
    this.element = h("section", { class: "reviewing", "aria-label": "Review" }, h("h2", {}, "Review"), this.reasons,
      h("div", { class: "verdicts" }, [...this.buttons.values()]),
      h("label", { for: "note", class: "note-label" }, "Note"), this.note, h("div", { class: "said-line" }, this.said, this.back), this.progress);
  }

  async read() {
    this.show(await json(this.path, { signal: this.signal }));
    if (this.found.review) this.note.value = this.found.review.note;
    return this.found;
  }

  show(found) {
    this.found = found;
    this.reasons.replaceChildren(...found.attention.map((reason) => h("li", {},
      h("strong", {}, (REASONS[reason] ?? [reason])[0]), ": ", (REASONS[reason] ?? ["", ""])[1])));
    this.reasons.hidden = !found.attention.length;
    const said = found.review;
    for (const [verdict, button] of this.buttons) button.setAttribute("aria-pressed", String(said?.verdict === verdict));
    setText(this.said, said ? `${VERDICTS[said.verdict]}${said.reviewer ? ` by ${said.reviewer}` : ""}, ${time(said.at)}` : "not reviewed yet");
    this.back.hidden = !said;
    setText(this.progress, `${count(found.reviewed)} of ${count(found.total)} reviewed`);
  }

  async say(verdict) {
    await this.send({
      method: "PUT", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ verdict, note: this.note.value.trim() }),
    }, () => `The case is ${VERDICTS[verdict]}. ${this.progress.textContent}.`);
  }

  async takeBack() {
    await this.send({ method: "DELETE" }, () => "The review is taken back.");
  }

  async send(options, words) {
    try {
      this.show(await json(this.path, { ...options, signal: this.signal }));
      announce(words());
    } catch (error) {
      this.failed(error);
    }
  }
}
