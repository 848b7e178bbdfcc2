// Requests to this service: the token on each of them, errors as sentences, events over fetch.

const KEY = "ldseg-token";

export class ApiError extends Error {
  constructor(status, detail, kind = "") {
    super(detail);
    this.status = status;
    this.kind = kind;
  }
}

export function token() {
  return sessionStorage.getItem(KEY) ?? "";
}

export function keepToken(value) {
  if (value) sessionStorage.setItem(KEY, value);
  else sessionStorage.removeItem(KEY);
}

/** Keep the token of the link that the service prints at its start, and take it out of the address bar. */
export function takeToken() {
  const given = /^#token=(.+)$/.exec(location.hash);
  if (!given) return false;
  keepToken(given[1]);
  history.replaceState(null, "", `${location.pathname}#/`);
  return true;
}

/** An address of this service; one that leads elsewhere is refused, so that the token stays here. */
export function own(path) {
  const url = new URL(path, location.origin);
  if (url.origin !== location.origin) throw new ApiError(0, `the address ${path} is not of this service`);
  return url;
}

export function authorization() {
  return token() ? { Authorization: `Bearer ${token()}` } : {};
}

/** The error that an answer's body tells. */
export function failure(status, text) {
  try {
    const problem = JSON.parse(text);
    return new ApiError(status, problem.detail ?? problem.title ?? text, problem.type ?? "");
  } catch {
    return new ApiError(status, text.slice(0, 300) || `the service answered ${status}`);
  }
}

export async function request(path, { headers = {}, ...options } = {}) {
  let answer;
  try {
    answer = await fetch(own(path), { ...options, headers: { ...authorization(), ...headers }, redirect: "error" });
  } catch (error) {
    if (error.name === "AbortError" || error instanceof ApiError) throw error;
    throw new ApiError(0, "the service can't be reached; is it running?");
  }
  if (!answer.ok) throw failure(answer.status, await answer.text());
  return answer;
}

export async function json(path, options) {
  return (await request(path, options)).json();
}

let described = null;

/** Whether the service has a route, by its OpenAPI description: asking for what is not there would be an error. */
export async function has(route) {
  described ??= json("/openapi.json").then(
    (document) => new Set(Object.keys(document.paths ?? {}).map(nameless)),
    () => {
      described = null;
      return new Set();
    },
  );
  return (await described).has(nameless(route));
}

function nameless(route) {
  return route.replace(/\{[^}]*\}/g, "{}");
}

export function cohortPath(cohort) {
  return `/v1/cohorts/${encodeURIComponent(cohort)}`;
}

export function casePath(cohort, name) {
  return `${cohortPath(cohort)}/cases/${encodeURIComponent(name)}`;
}

/** Save what an address holds; with a token by way of memory, as a plain link can't send one. */
export async function save(path, name) {
  const content = await (await request(path)).blob();
  const url = URL.createObjectURL(content);
  const link = document.createElement("a");
  link.href = url;
  link.download = name;
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

/** Server-sent events, taken up again after the last one that came; ends with the signal. */
export async function follow(path, heard, signal) {
  let last = "", wait = 1000;
  while (!signal.aborted) {
    try {
      const headers = { Accept: "text/event-stream", ...(last ? { "Last-Event-ID": last } : {}) };
      const answer = await request(path, { headers, signal });
      if (answer.status === 204) return;
      wait = 1000;
      for await (const event of events(answer.body)) {
        last = event.id || last;
        wait = event.retry || wait;
        if (event.data) heard(event);
        if (event.event === "end") return;
      }
    } catch (error) {
      if (signal.aborted || [401, 404].includes(error.status)) return;
      wait = Math.min(wait * 2, 15_000);
    }
    await pause(wait, signal);
  }
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (rest + value).replace(/\r\n?/g, "\n").split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) yield event(block);
  }
}

function event(block) {
  const found = { id: "", event: "message", data: "", retry: 0 };
  for (const line of block.split("\n")) {
    const [, field, value] = /^([a-z]+): ?(.*)$/.exec(line) ?? [];
    if (field === "data") found.data += (found.data && "\n") + value;
    else if (field === "retry") found.retry = Number(value) || 0;
    else if (field in found) found[field] = value;
  }
  return found;
}

/** Wait, but not longer than the signal allows. */
export function pause(milliseconds, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, milliseconds);
    signal?.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
  });
}
