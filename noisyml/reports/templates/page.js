"use strict";
// What the page can do beyond showing itself: it is complete without. No library, no network.

/** Value of a cell to sort by: a number, a text, or null where there is none. */
function valueOf(text, exact) {
  const said = exact === undefined ? text.trim() : exact;
  if (said === "" || said === "–") return null;
  const plain = said.replace(/[−–]/g, "-");
  const found = /^[<>]?\s*([+-]?(\d[\d,]*)?\.?\d+(e[+-]?\d+)?)(?=$|\s*(±|%|to\s|of\s|\())/i.exec(plain);
  return found ? Number(found[1].replaceAll(",", "")) : said.toLowerCase();
}

/** Order of two values, -1 for the first before the second; what is missing comes last either way. */
function order(a, b, descending = false) {
  if (a === null || b === null) return (a === null) - (b === null);
  const turn = descending ? -1 : 1;
  if (typeof a !== typeof b) return typeof a === "number" ? -turn : turn;
  const way = typeof a === "number" ? a - b : a.localeCompare(b, undefined, { numeric: true });
  return turn * Math.sign(way);
}

/** True if every word of a filter occurs in a text, a number as a whole: 0.5 is not in 0.58. */
function matches(text, filter) {
  const low = text.toLowerCase(), whole = low.split(/[\s±=]+/);
  const found = (word) => (/^[\d.]+$/.test(word) ? whole.includes(word) : low.includes(word));
  return filter.toLowerCase().split(/\s+/).every(found);
}

/** Of each line the point nearest to x: its label, colour, x, mean and deviation. */
function nearest(lines, x) {
  return lines.map(({ label, colour, points }) => {
    const at = points.reduce((a, b) => (Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a));
    return { label, colour, x: at[0], mean: at[1], deviation: at[2] };
  }).filter((point) => point.mean !== null);
}

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

function sortable(table) {
  const heads = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
  const body = table.tBodies[0], first = [...body.rows];
  if (first.length < 2) return;
  let filter = "";
  const loosen = () => {
    const sorted = heads.some((head) => head.ariaSort !== "none");
    table.classList.toggle("loose", sorted || filter.trim() !== "");
  };
  const value = (row, column) => {
    const cell = row.cells.length === heads.length ? row.cells[column] : undefined;
    return cell ? valueOf(cell.textContent, cell.dataset.exact) : null;
  };
  heads.forEach((head, column) => {
    if (head.textContent.trim() === "") return;
    const button = element("button", { type: "button", className: "sort" }, ...head.childNodes);
    head.append(button);
    head.ariaSort = "none";
    button.addEventListener("click", () => {
      const next = { none: "ascending", ascending: "descending", descending: "none" }[head.ariaSort];
      heads.forEach((other) => { if (other.ariaSort) other.ariaSort = "none"; });
      head.ariaSort = next;
      const rows = [...first];
      if (next !== "none") {
        const down = next === "descending";
        rows.sort((a, b) => order(value(a, column), value(b, column), down));
      }
      body.append(...rows);
      loosen();
    });
  });
  if (first.length < 5) return;
  const box = element("input", { type: "search", placeholder: "all words must occur" });
  const count = element("span", { role: "status" });
  box.addEventListener("input", () => {
    filter = box.value;
    first.forEach((row) => { row.hidden = !matches(row.textContent, filter.trim()); });
    const left = first.filter((row) => !row.hidden).length;
    count.textContent = filter.trim() ? `${left} of ${first.length} rows` : "";
    loosen();
  });
  const holder = table.closest(".wide") ?? table;
  holder.before(element("div", { className: "filter" }, element("label", {}, "Filter rows ", box), count));
}

function tips() {
  const tip = element("div", { className: "tip", role: "tooltip", hidden: true });
  document.body.append(tip);
  const hide = () => { tip.hidden = true; };
  const show = (content, x, y) => {
    tip.replaceChildren(...content);
    (document.querySelector("dialog[open]") ?? document.body).append(tip);
    tip.hidden = false;
    tip.style.left = "0";
    const { width, height } = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(4, Math.min(x + 14, innerWidth - width - 4))}px`;
    tip.style.top = `${y + 18 + height > innerHeight ? Math.max(4, y - height - 12) : y + 18}px`;
  };
  for (const owner of document.querySelectorAll("[title]")) {
    owner.dataset.tip = owner.ariaDescription = owner.title;
    owner.removeAttribute("title");
  }
  const point = (event) => {
    const owner = event.target.closest?.("[data-tip]");
    if (owner) return show([owner.dataset.tip], event.clientX, event.clientY);
    const svg = event.target.closest?.("svg[data-axes]");
    const told = svg?.closest("figure")?.dataset.curves;
    const found = told ? underPointer(svg, JSON.parse(told), event) : [];
    return found.length ? show(found, event.clientX, event.clientY) : hide();
  };
  document.addEventListener("pointermove", point);
  document.addEventListener("click", point);
  document.addEventListener("scroll", hide, true);
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });
}

/** Values of the curves nearest to the pointer, a row each. */
function underPointer(svg, panels, event) {
  const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
  const places = JSON.parse(svg.dataset.axes);
  const number = places.findIndex(([l, t, r, b]) => at.x >= l && at.x <= r && at.y >= t && at.y <= b);
  const panel = panels[number];
  if (!panel) return [];
  const [left, , right, , low, high] = places[number];
  const points = nearest(panel.lines, low + ((at.x - left) / (right - left)) * (high - low));
  if (!points.length) return [];
  const rows = points.map(({ label, colour, x, mean, deviation }) => {
    const spread = deviation === null ? "" : ` ± ${deviation}`;
    const dot = element("span", { className: "dot" });
    dot.style.background = colour;
    const where = points.some((other) => other.x !== x) ? ` (at ${x})` : "";
    return element("div", {}, dot, `${label ? `${label}: ` : ""}${mean}${spread}${where}`);
  });
  return [element("div", { className: "quiet" }, `${panel.y}, ${panel.x} ${points[0].x}`), ...rows];
}

function lightbox() {
  const frame = element("figure"), caption = element("figcaption");
  const close = element("button", { type: "button", className: "close", ariaLabel: "Close" }, "×");
  const dialog = element("dialog", { className: "lightbox", ariaLabel: "Picture" }, close, frame, caption);
  document.body.append(dialog);
  const place = document.createComment("");
  let pictures = [], current = 0;
  const back = () => { if (place.parentNode) place.replaceWith(frame.firstElementChild); };
  const put = (number) => {
    back();
    current = (number + pictures.length) % pictures.length;
    const [picture, text] = pictures[current]();
    const owner = picture.closest("figure");
    if (owner?.dataset.curves) frame.dataset.curves = owner.dataset.curves;
    else delete frame.dataset.curves;
    caption.textContent = text;
    picture.replaceWith(place);
    frame.replaceChildren(picture);
  };
  const open = (number) => { if (!dialog.open) { put(number); dialog.showModal(); } };
  close.addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", back);
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (step) put(current + step);
  });
  for (const figure of document.querySelectorAll("main figure")) {
    const number = pictures.length, text = figure.querySelector("figcaption").textContent;
    pictures.push(() => {
      const drawn = [...figure.querySelectorAll("svg")];
      return [drawn.find((svg) => svg.getClientRects().length) ?? drawn[0], text];
    });
    const button = element("button", { type: "button", className: "enlarge", ariaLabel: `Enlarge: ${text}` }, "⤢");
    button.addEventListener("click", () => open(number));
    figure.append(button);
    for (const svg of figure.querySelectorAll("svg")) {
      svg.addEventListener("click", (event) => {
        // A finger that touches curves asks for their values; the button enlarges them.
        if (event.pointerType !== "touch" || !figure.dataset.curves) open(number);
      });
    }
  }
  for (const picture of document.querySelectorAll(".thumb img")) {
    const number = pictures.length, thumb = picture.closest(".thumb");
    const text = [...thumb.children].slice(1).map((line) => line.textContent).join(", ");
    pictures.push(() => [picture, `${thumb.dataset.tip ? `${thumb.dataset.tip}: ` : ""}${text}`]);
    const button = element("button", { type: "button", className: "zoom", ariaLabel: `Enlarge: ${text}` });
    picture.replaceWith(button);
    button.append(picture);
    button.addEventListener("click", () => open(number));
  }
}

if (typeof document !== "undefined") {
  document.querySelectorAll("table.sortable").forEach(sortable);
  tips();
  lightbox();
  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((d) => { d.open = true; }));
}
