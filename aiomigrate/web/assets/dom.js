// Elements without markup in strings: whatever a peer has sent is text here, and never markup.

/** `element("p", { class: "x", onclick: f }, "text", child, ...)`; what is null is left out. */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** Change the text only if it is another one: nothing is announced, selected or laid out for nothing. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** A table. `columns` are `[title, numeric]`, `rows` lists of texts or elements. */
export function table(caption, columns, rows) {
  const head = columns.map(([title, numeric]) =>
    element("th", { scope: "col", class: numeric ? "number" : null }, title),
  );
  const body = rows.map((cells) =>
    element(
      "tr",
      {},
      ...cells.map((cell, at) =>
        at === 0
          ? element("th", { scope: "row", class: columns[at][1] ? "number" : null }, cell)
          : element("td", { class: columns[at][1] ? "number" : null }, cell),
      ),
    ),
  );
  return element(
    "table",
    {},
    element("caption", { class: "unseen" }, caption),
    element("thead", {}, element("tr", {}, ...head)),
    element("tbody", {}, ...body),
  );
}

/** What may be wider or longer than its place: scrolled by keyboard too. */
export function scrolled(label, ...children) {
  return element(
    "div",
    { class: "scrolled", role: "region", "aria-label": label, tabindex: "0" },
    ...children,
  );
}
