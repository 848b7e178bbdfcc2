// Keys of a view, and the list of them.

import { h } from "./dom.js";

const TYPING = "input:not([type=range], [type=checkbox]), textarea, select, [contenteditable]";
const PRESSED_BY_SPACE = "button, summary, a, input, [role=button]";

/**
 * Listen to keys until the signal ends.
 *
 * @param {Array<{keys: string[], words: string, does: (key: string) => void}>} actions
 */
export function shortcuts(actions, signal) {
  const help = { keys: ["?"], words: "this list", does: () => showKeys([...actions, help]) };
  const all = new Map([...actions, help].flatMap((action) => action.keys.map((key) => [key, action])));
  document.addEventListener("keydown", (event) => {
    const key = event.key.toLowerCase();
    const action = all.get(key);
    if (!action || event.ctrlKey || event.metaKey || event.altKey || event.repeat && key === " ") return;
    if (document.querySelector("dialog[open]") || event.target.closest?.(TYPING)) return;
    if (key === " " && event.target.closest?.(PRESSED_BY_SPACE)) return;
    event.preventDefault();
    action.does(key);
  }, { signal });
  return help;
}

function showKeys(actions) {
  const name = (key) => (key === " " ? "Space" : key.toUpperCase());
  const dialog = h("dialog", { class: "keys", "aria-labelledby": "keys-title" },
    h("form", { method: "dialog" }, h("h2", { id: "keys-title" }, "Keys"),
      h("dl", {}, actions.flatMap(({ keys, words }) => [
        h("dt", {}, keys.flatMap((key, k) => [k > 0 && " ", h("kbd", {}, name(key))])), h("dd", {}, words)])),
      h("div", { class: "tools" }, h("button", { autofocus: true }, "Close"))));
  document.body.append(dialog);
  dialog.addEventListener("close", () => dialog.remove(), { once: true });
  dialog.showModal();
}
