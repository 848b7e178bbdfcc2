// Views that stand in for another one: the way in, and the way back.

import { keepToken, token } from "./api.js";
import { h } from "./dom.js";

/** Ask for a token; `entered` is called once there is one. */
export function showSignIn(place, entered) {
  const input = h("input", { id: "token", type: "password", autocomplete: "off", spellcheck: "false", required: true });
  const wrong = token() ? h("p", { class: "error", role: "alert" }, "That token is not known here. Look for a letter too few, or ask for a new one.") : null;
  place.replaceChildren(h("form", {
    class: "sign-in", autocomplete: "off",
    onsubmit: (event) => {
      event.preventDefault();
      keepToken(input.value.trim());
      entered();
    },
  }, h("h1", { tabindex: -1 }, "Sign in"),
  h("p", { class: "facts" }, "This service shows each reader their own cases. Enter the access token that you were given."),
  wrong, h("label", { for: "token" }, "Access token"), input,
  h("button", { type: "submit", class: "main" }, "Sign in"),
  h("p", { class: "note" }, "It is forgotten when this tab is closed. Whoever runs the service can give you one.")));
  input.focus();
}

/** Tell that there is nothing, and lead back. */
export function showLost(place, what, cohort) {
  place.replaceChildren(h("div", { class: "lost" },
    h("h1", { tabindex: -1 }, what),
    h("p", { class: "facts" }, "It may have been removed, the address may be cut short, or it belongs to somebody else's token."),
    h("p", { class: "tools" }, cohort && h("a", { class: "button", href: `#/cohorts/${encodeURIComponent(cohort)}` }, "← To its cohort"),
      h("a", { class: "button", href: "#/" }, "← To all cohorts"))));
}
