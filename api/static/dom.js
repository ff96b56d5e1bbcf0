// Elements, made from names and text. Text never becomes markup.

const SVG = "http://www.w3.org/2000/svg";

/** An element with attributes and children; children are nodes or text, null is left out. */
export function h(name, attributes = {}, ...children) {
  return build(document.createElement(name), attributes, children);
}

/** The same for SVG. */
export function s(name, attributes = {}, ...children) {
  return build(document.createElementNS(SVG, name), attributes, children);
}

/** Set text only if it differs, to avoid flicker and repeated announcements of live regions. */
export function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Set an attribute, or remove it if the value is null or false. */
export function mark(element, name, value) {
  if (value === null || value === false) element.removeAttribute(name);
  else if (element.getAttribute(name) !== String(value)) element.setAttribute(name, value === true ? "" : value);
}

/**
 * Update the children of `parent` to match `items`: one element an item, in their order.
 * `make` makes an element, `update` fills it. Elements that stay keep their focus.
 */
export function reconcile(parent, items, keyOf, make, update) {
  const known = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  let next = parent.firstElementChild;
  for (const item of items) {
    const key = String(keyOf(item));
    let element = known.get(key);
    if (element) known.delete(key);
    else {
      element = make(item);
      element.dataset.key = key;
    }
    update(element, item);
    if (element === next) next = next.nextElementSibling;
    else parent.insertBefore(element, next);
  }
  for (const gone of known.values()) gone.remove();
}

function build(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else mark(element, name, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}
