// The rows of a cohort's table: all of them where there are few, a page of them from the server where there are many.

import { casePath, cohortPath, has, json } from "./api.js";

export const PAGE = 50;
const FEW = 1000;  // so many are held here and sorted by any column
const FETCHED = 200;  // numbers that are fetched case by case from a service without pages
const AT_ONCE = 6;
const ENDED = ["done", "failed", "cancelled"];

/** What sorts a row; null goes last. */
export function key(row, column) {
  if (column === "name") return row.name;
  if (column === "state") return row.state;
  if (column === "posted") return row.position;
  const value = row.numbers?.[column];
  return Number.isFinite(value) ? value : null;
}

export class Cases {
  constructor(cohort, signal) {
    this.cohort = cohort;
    this.signal = signal;
    this.rows = [];
    this.numbers = new Map();
    this.cursors = [null];  // of the pages so far, where the server has them
    this.asked = "";
  }

  /** Whether every column can be sorted by; else by agreement or as posted. */
  get sortable() {
    return this.held || !this.paged;
  }

  /**
   * A page of rows.
   *
   * @returns {Promise<{rows: object[], hasNext: boolean, found: number|null, unsorted?: boolean}>} `unsorted` where
   *   the numbers to sort by are not here: the rows are as posted
   */
  async page(total, { column, down, state, number }) {
    this.paged ??= await has("/v1/cohorts/{cohort}/cases");
    this.held = total <= FEW;
    if (this.paged && !this.held) return this.fromServer({ column, state, number });
    await (this.paged ? this.readAll(total) : this.readDocument());
    const found = this.rows.filter((row) => !state || row.state === state);
    const unsorted = !this.paged && this.rows.length > FETCHED && !["name", "state"].includes(column);
    const by = unsorted ? "posted" : column;
    found.sort((one, other) => compare(key(one, by), key(other, by), down) || one.position - other.position);
    const rows = found.slice(number * PAGE, (number + 1) * PAGE);
    if (!this.paged) await this.fetchNumbers(rows);
    return { rows, hasNext: found.length > (number + 1) * PAGE, found: found.length, unsorted };
  }

  /** How many rows a refresh costs the service. */
  get cost() {
    return this.paged && !this.held ? PAGE : this.rows.length;
  }

  address(query) {
    const left = Object.entries(query).filter(([, value]) => value);
    return `${cohortPath(this.cohort)}/cases?${new URLSearchParams(left)}`;
  }

  async fromServer({ column, state, number }) {
    const order = column === "posted" ? "posted" : "agreement";
    const start = this.address({ limit: PAGE, order, state });
    if (start !== this.asked) [this.asked, this.cursors] = [start, [start]];
    const answer = await json(this.cursors[number] ?? start, { signal: this.signal });
    if (answer.next) this.cursors[number + 1] = answer.next;
    return { rows: answer.cases, hasNext: Boolean(answer.next), found: null };
  }

  async readAll() {
    const rows = [];
    let next = this.address({ limit: 500, order: "posted" });
    while (next && rows.length < 2 * FEW) {
      const answer = await json(next, { signal: this.signal });
      rows.push(...answer.cases);
      next = answer.next;
    }
    this.rows = rows.map((row, position) => ({ ...row, position }));
  }

  async readDocument() {
    const document = await json(cohortPath(this.cohort), { signal: this.signal });
    this.rows = document.cases.map((row, position) => ({ ...row, position, numbers: this.numbers.get(row.name) }));
    if (this.rows.length <= FETCHED) await this.fetchNumbers(this.rows);
  }

  async fetchNumbers(rows) {
    const missing = rows.filter((row) => row.state === "done" && !row.numbers);
    const work = async () => {
      for (let row = missing.pop(); row; row = missing.pop()) {
        const found = await json(casePath(this.cohort, row.name), { signal: this.signal });
        row.numbers = found.numbers ?? {};
        this.numbers.set(row.name, row.numbers);
      }
    };
    await Promise.all(Array.from({ length: AT_ONCE }, work));
  }
}

function compare(one, other, down) {
  if (one === null || other === null) return Number(one === null) - Number(other === null);
  const order = typeof one === "string" ? one.localeCompare(other, "en", { numeric: true }) : one - other;
  return down ? -order : order;
}

export function hasEnded(cohort) {
  return ENDED.reduce((sum, state) => sum + (cohort.counts[state] ?? 0), 0) >= cohort.total;
}
