// The rows of a cohort's table: all of them where there are few, a page of them from the server where there are many.

import { cohortPath, json } from "./api.js";

export const PAGE = 50;
const FEW = 1000;  // so many are held here and sorted by any column
const ENDED = ["done", "failed", "cancelled"];
const ORDERS = { agreement: "agreement", posted: "posted" };  // that the service knows; any other is that of review

/** What sorts a row; null goes last. */
export function key(row, column) {
  if (column === "name") return row.name;
  if (column === "state") return row.state;
  if (column === "verdict") return row.review?.verdict ?? null;
  if (column === "review") return row.position;
  const value = row.numbers?.[column];
  return Number.isFinite(value) ? value : null;
}

export class Cases {
  constructor(cohort, signal) {
    this.cohort = cohort;
    this.signal = signal;
    this.rows = [];
    this.cursors = [null];  // of the pages so far, where the server has them
    this.asked = "";
    this.held = true;
  }

  /**
   * A page of rows.
   *
   * @returns {Promise<{rows: object[], names: string[], hasNext: boolean, found: number|null}>} `names` of all rows
   *   that are known in this order
   */
  async page(total, { column, down, filter, number }) {
    this.held = total <= FEW;
    if (!this.held) return this.fromServer({ column, filter, number });
    await this.readAll();
    const found = this.rows.filter((row) => matches(row, filter));
    found.sort((one, other) => compare(key(one, column), key(other, column), down) || one.position - other.position);
    const rows = found.slice(number * PAGE, (number + 1) * PAGE);
    return { rows, names: found.map(({ name }) => name), hasNext: found.length > (number + 1) * PAGE, found: found.length };
  }

  /** How many rows a refresh costs the service. */
  get cost() {
    return this.held ? this.rows.length : PAGE;
  }

  address(query) {
    const left = Object.entries(query).filter(([, value]) => value);
    return `${cohortPath(this.cohort)}/cases?${new URLSearchParams(left)}`;
  }

  async fromServer({ column, filter, number }) {
    const start = this.address({ limit: PAGE, order: ORDERS[column] ?? "review" });
    if (start !== this.asked) [this.asked, this.cursors] = [start, [start]];
    const answer = await json(this.cursors[number] ?? start, { signal: this.signal });
    if (answer.next) this.cursors[number + 1] = answer.next;
    const rows = answer.cases.filter((row) => matches(row, filter));
    return { rows, names: rows.map(({ name }) => name), hasNext: Boolean(answer.next), found: null };
  }

  async readAll() {
    const rows = [];
    let next = this.address({ limit: 500, order: "review" });
    while (next && rows.length < 2 * FEW) {
      const answer = await json(next, { signal: this.signal });
      rows.push(...answer.cases);
      next = answer.next;
    }
    this.rows = rows.map((row, position) => ({ ...row, position }));
  }
}

/** A filter is a state, or what of the review is open or done. */
function matches(row, filter) {
  if (filter === "needed") return Boolean(row.attention?.length) && !row.review;
  if (filter === "reviewed") return Boolean(row.review);
  if (filter === "open") return !row.review;
  return !filter || row.state === filter;
}

function compare(one, other, down) {
  if (one === null || other === null) return Number(one === null) - Number(other === null);
  const order = typeof one === "string" ? one.localeCompare(other, "en", { numeric: true }) : one - other;
  return down ? -order : order;
}

export function hasEnded(cohort) {
  return ENDED.reduce((sum, state) => sum + (cohort.counts[state] ?? 0), 0) >= cohort.total;
}
