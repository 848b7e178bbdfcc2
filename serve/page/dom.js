// Elements made without HTML text: whatever comes from the server ends in a text node.

/** An element; `on…` are listeners, false and null leave an attribute out. */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "value") element.value = value;
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** Replace an element's children, unless its text is the same already. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Tell a screen reader without moving the focus. */
export function announce(text) {
  setText(document.getElementById("status"), text);
}

/** Show an error above the content, or take it away. */
export function notice(text, kind = "error") {
  const place = document.getElementById("notice");
  place.hidden = !text;
  place.dataset.kind = kind;
  setText(place, text ?? "");
}

/** A slider with its label and its value in words. */
export function slider(label, { min, max, step = 1, value, say = String }, changed) {
  const output = h("output", { class: "said" }, say(value));
  const input = h("input", {
    type: "range", min, max, step, value, "aria-valuetext": say(value),
    oninput: () => {
      set(Number(input.value));
      changed(Number(input.value));
    },
  });
  input.value = value;
  function set(next) {
    input.value = next;
    output.textContent = say(next);
    input.setAttribute("aria-valuetext", say(next));
  }
  const element = h("label", { class: "slider" }, h("span", {}, label), input, output);
  return { element, input, set };
}

/** A select with its label; options are [value, text]. */
export function choice(label, options, value, changed) {
  const select = h("select", { onchange: () => changed(select.value) },
    options.map(([key, text]) => h("option", { value: key }, text)));
  select.value = value;
  return { element: h("label", { class: "choice" }, h("span", {}, label), select), select };
}

/** A box to tick with its label. */
export function tick(label, value, changed) {
  const input = h("input", { type: "checkbox", onchange: () => changed(input.checked) });
  input.checked = value;
  return h("label", { class: "tick" }, input, h("span", {}, label));
}

/** A state as a word with a dot of its colour. */
export function chip(state) {
  return h("span", { class: `chip ${state}` }, state);
}

export function setChip(element, state) {
  element.className = `chip ${state}`;
  setText(element, state);
}
