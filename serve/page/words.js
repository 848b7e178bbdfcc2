// What the page says in words of its own: reasons, verdicts, and what a number means.

import { json } from "./api.js";

export const REASONS = {
  unfamiliar: ["unfamiliar", "Unlike the cases that the model was trained on: don't trust the result without a look."],
  failed: ["failed", "The case could not be segmented."],
  "wide-interval": ["wide interval", "Its volume is among the least certain of this cohort."],
  "low-agreement": ["low agreement", "Its samples agree less than those of most cases of this cohort."],
};

export const VERDICTS = { accept: "accepted", correct: "to be corrected", reject: "rejected" };

let known = null;

/** The meaning of each number, by its name in the tables. */
export async function meanings() {
  known ??= json("/page/meanings.json").catch(() => {
    known = null;
    return {};
  });
  return known;
}

/** The state of a case as a reader should take it: what is done but unfamiliar wants a look. */
export function standing(row) {
  return row.state === "done" && row.numbers?.unfamiliar ? "review" : row.state;
}
