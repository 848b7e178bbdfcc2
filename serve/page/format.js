// Numbers, times and names as people read them.

const DIGITS = new Map();

function fixed(digits) {
  if (!DIGITS.has(digits)) {
    DIGITS.set(digits, new Intl.NumberFormat("en", { minimumFractionDigits: digits, maximumFractionDigits: digits }));
  }
  return DIGITS.get(digits);
}

/** A size: three digits that count. */
export function amount(value) {
  if (!Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  return fixed(size >= 100 ? 0 : size >= 10 ? 1 : size >= 1 ? 2 : 3).format(value);
}

export function share(value) {
  return Number.isFinite(value) ? fixed(3).format(value) : "–";
}

export function percent(value) {
  return `${Math.round(value * 100)} %`;
}

export function count(value) {
  return fixed(0).format(value);
}

export function bytes(value) {
  const units = ["B", "kB", "MB", "GB"];
  const step = Math.min(3, Math.floor(Math.log10(Math.max(1, value)) / 3));
  return `${fixed(step && value / 1000 ** step < 10 ? 1 : 0).format(value / 1000 ** step)} ${units[step]}`;
}

/** A time in seconds since 1970, in the reader's own zone. */
export function time(seconds) {
  return new Date(seconds * 1000).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" });
}

export function unit(name) {
  return name === "mm2" ? "mm²" : name;
}

export function words(name) {
  return name.replaceAll("_", " ");
}

/** The structures that a case's numbers tell the size of, with percentiles and the interval with a promise. */
export function volumes(numbers) {
  const found = [];
  for (const key of Object.keys(numbers ?? {})) {
    const match = /^(.+)_volume_(.+)_p50$/.exec(key);
    if (!match) continue;
    const start = `${match[1]}_volume_${match[2]}`;
    found.push({
      name: match[1], unit: unit(match[2]), middle: numbers[key], low: numbers[`${start}_p05`],
      high: numbers[`${start}_p95`], from: numbers[`${start}_low`], to: numbers[`${start}_high`],
      agreement: numbers[`${match[1]}_agreement`], unfamiliar: Boolean(numbers.unfamiliar),
    });
  }
  return found;
}
