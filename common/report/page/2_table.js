// The summary table: its headings sort it.

function sortBy(table, column, button) {
  const heading = button.closest("th");
  const rows = [...table.tBodies[0].rows];
  const numeric = rows[0].cells[column].dataset.number !== undefined;
  const before = heading.getAttribute("aria-sort");
  const direction = (before ? before === "descending" : !numeric) ? "ascending" : "descending"; // large numbers first
  const sign = direction === "ascending" ? 1 : -1;
  const key = (row) => (numeric ? row.cells[column].dataset.number : row.cells[column].dataset.value);
  rows.sort((one, other) => {
    const [a, b] = [key(one), key(other)];
    if (a === "" || b === "") return (a === "") - (b === ""); // what is not known comes last
    return sign * (numeric ? a - b : a.localeCompare(b, "en", { numeric: true }));
  });
  for (const other of table.querySelectorAll("th[aria-sort]")) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", direction);
  table.tBodies[0].append(...rows);
}

for (const table of document.querySelectorAll("table.sortable")) {
  for (const button of table.querySelectorAll("thead button")) {
    button.addEventListener("click", () => sortBy(table, button.closest("th").cellIndex, button));
  }
}
