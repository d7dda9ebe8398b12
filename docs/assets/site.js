// Tables are sorted by a click on a head; figures open large; formulas are set. Nothing is fetched from elsewhere.
if (document.querySelector(".arithmatex")) {
  window.MathJax = {
    options: { enableMenu: false, ignoreHtmlClass: ".*|", processHtmlClass: "arithmatex" },
    svg: { fontCache: "local" },
  };
  const script = document.createElement("script");
  script.src = document.querySelector('script[src$="assets/site.js"]').src.replace("site.js", "mathjax.js");
  document.head.append(script);
}

const number = (text) => {
  const match = text.replace(/,/g, "").match(/^[^\d-]{0,2}(-?\d+(\.\d+)?)/);
  return match ? Number(match[1]) : NaN;
};

function sort(table, column, head) {
  const ascending = head.getAttribute("aria-sort") !== "ascending";
  const cell = (row) => (row.cells[column] ? row.cells[column].textContent.trim() : "");
  const rows = [...table.tBodies[0].rows].sort((a, b) => {
    const [x, y] = [number(cell(a)), number(cell(b))];
    const order = Number.isNaN(x) || Number.isNaN(y) ? cell(a).localeCompare(cell(b)) : x - y;
    return ascending ? order : -order;
  });
  table.tBodies[0].append(...rows);
  for (const other of table.tHead.rows[0].cells) other.setAttribute("aria-sort", "none");
  head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
}

for (const table of document.querySelectorAll(".md-content table")) {
  const [first] = table.tHead ? table.tHead.rows : [];
  // A table whose first cells are left out groups its rows, and keeps their order.
  const grouped = table.tBodies[0] && [...table.tBodies[0].rows].some((row) => !row.cells[0].textContent.trim());
  if (!first || grouped || table.tBodies[0].rows.length < 6) continue;
  [...first.cells].forEach((head, column) => {
    head.setAttribute("aria-sort", "none");
    head.title = "sort";
    head.addEventListener("click", () => sort(table, column, head));
  });
}

for (const image of document.querySelectorAll(".md-content p > img")) {
  image.addEventListener("click", () => {
    const dialog = document.createElement("dialog");
    dialog.className = "figure";
    dialog.append(image.cloneNode());
    dialog.addEventListener("click", () => dialog.remove());
    dialog.addEventListener("close", () => dialog.remove());
    document.body.append(dialog);
    dialog.showModal();
  });
}

for (const code of document.querySelectorAll(".md-content td code")) {
  const text = code.textContent; // a short command of the last column is not broken; words of the others are not
  if (code.closest("td").matches(":last-child")) code.style.whiteSpace = text.length <= 30 ? "nowrap" : "normal";
  else if (text.includes(" ")) code.style.whiteSpace = "normal";
}
