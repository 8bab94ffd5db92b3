// The confusion matrix: a cell shows its images.

const MOST_CLASSES = 60; // rows of a matrix that still has cells one can hit

/** Return counts[true][predicted] of a run. */
function confusion(dataset, run) {
  const counts = dataset.classes.map(() => new Array(dataset.classes.length).fill(0));
  dataset.labels.forEach((label, position) => (counts[label][run.predicted[position]] += 1));
  return counts;
}

/** Return the classes that are shown: all, or of very many those with the most mistakes. */
function classesShown(counts) {
  const all = counts.map((_, index) => index);
  if (all.length <= MOST_CLASSES) return all;
  const mistakes = all.map((index) => sum(counts[index]) + sum(counts.map((row) => row[index])) - 2 * counts[index][index]);
  return all.sort((a, b) => mistakes[b] - mistakes[a]).slice(0, MOST_CLASSES).sort((a, b) => a - b);
}

function matrixCell(dataset, counts, actual, predicted) {
  const count = counts[actual][predicted];
  const total = sum(counts[actual]);
  const part = total ? count / total : 0;
  const right = actual === predicted;
  const shade = right ? 90 * part : count && 6 + 84 * Math.sqrt(part); // mistakes are rare: their root is what one sees
  const cell = element("td", {
    role: "gridcell",
    tabindex: -1,
    class: right ? "right" : "wrong",
    "aria-selected": "false",
    "aria-label": `true ${dataset.classes[actual]}, predicted ${dataset.classes[predicted]}: ${counted(count, "image", "images")}`,
    "data-true": actual,
    "data-predicted": predicted,
  });
  cell.style.setProperty("--share", shade);
  cell.classList.toggle("strong", shade > 55);
  if (count && dataset.classes.length <= 30) cell.append(String(count));
  return cell;
}

function drawMatrix(dataset, run) {
  const counts = confusion(dataset, run);
  const shown = classesShown(counts);
  const heading = (index, scope) => element("th", { scope, title: dataset.classes[index] }, named(dataset.classes[index]));
  const rows = shown.map((actual) =>
    element("tr", {}, heading(actual, "row"), ...shown.map((predicted) => matrixCell(dataset, counts, actual, predicted))),
  );
  const head = element("tr", {}, element("th", { "aria-hidden": "true" }), ...shown.map((index) => heading(index, "col")));
  const longest = Math.max(...shown.map((index) => [...dataset.classes[index]].length));
  const table = find("matrix");
  table.classList.toggle("short", longest <= 3); // such as digits: headings need not be turned
  table.style.setProperty("--size", shown.length);
  table.style.setProperty("--label", `${Math.min(96, 18 + 6.5 * longest)}px`);
  table.replaceChildren(element("thead", {}, head), element("tbody", {}, ...rows));
  const some = shown.length < counts.length ? ` The ${shown.length} of ${counts.length} classes with the most mistakes.` : "";
  find("matrix-caption").textContent =
    `Rows are true classes, columns predicted ones; blue is right, orange wrong. Choose a cell to see its images.${some}`;
  return { counts, shown };
}

function showCell(dataset, run, counts, actual, predicted) {
  const panel = find("cell");
  const positions = ordered(dataset, run, (i) => dataset.labels[i] === actual && run.predicted[i] === predicted);
  const [truth, guess] = [dataset.classes[actual], dataset.classes[predicted]];
  const title = element("h4", { "aria-live": "polite" }, "True ", named(truth), ", predicted ", named(guess));
  const total = sum(counts[actual]);
  const part = total ? ` of ${counted(total, "image", "images")} of this class (${percent(positions.length / total)})` : "";
  const confident = positions.length ? ", the most confident first" : "";
  panel.replaceChildren(title, element("p", { class: "caption" }, `${positions.length.toLocaleString("en")}${part}${confident}`));
  showCards(panel, dataset, positions, (position) => [
    line("true ", named(truth)),
    line("→ ", named(guess)),
    line(sureness(share(run, position))),
  ]);
}

/** Let one cell be in the tab order; arrows move, Enter and Space choose, a click does both. */
function bindMatrix(dataset, run, { counts, shown }) {
  const table = find("matrix");
  const rows = [...table.tBodies[0].rows].map((row) => [...row.cells].slice(1));
  const focus = (row, column) => {
    const to = rows[Math.min(rows.length - 1, Math.max(0, row))].at(Math.min(rows.length - 1, Math.max(0, column)));
    for (const cell of table.querySelectorAll("td[tabindex='0']")) cell.tabIndex = -1;
    to.tabIndex = 0;
    return to;
  };
  const choose = (cell) => {
    for (const other of table.querySelectorAll("td[aria-selected='true']")) other.setAttribute("aria-selected", "false");
    cell.setAttribute("aria-selected", "true");
    showCell(dataset, run, counts, Number(cell.dataset.true), Number(cell.dataset.predicted));
  };
  const moves = {
    ArrowLeft: (row, column) => [row, column - 1],
    ArrowRight: (row, column) => [row, column + 1],
    ArrowUp: (row, column) => [row - 1, column],
    ArrowDown: (row, column) => [row + 1, column],
    Home: (row) => [row, 0],
    End: (row) => [row, rows.length - 1],
  };
  table.onclick = ({ target }) => {
    const cell = target.closest("td[role='gridcell']");
    if (cell) choose(focus(cell.parentNode.rowIndex - 1, cell.cellIndex - 1));
  };
  table.onkeydown = (event) => {
    const cell = event.target.closest("td[role='gridcell']");
    if (!cell) return;
    if (event.key === "Enter" || event.key === " ") choose(cell);
    else if (event.key in moves) focus(...moves[event.key](cell.parentNode.rowIndex - 1, cell.cellIndex - 1)).focus();
    else return;
    event.preventDefault();
  };
  let [worst, most] = [[0, 0], -1]; // the most frequent mistake is shown first
  shown.forEach((actual, row) =>
    shown.forEach((predicted, column) => {
      if (actual !== predicted && counts[actual][predicted] > most) [worst, most] = [[row, column], counts[actual][predicted]];
    }),
  );
  choose(focus(...worst));
}

function showMatrix(dataset, run) {
  bindMatrix(dataset, run, drawMatrix(dataset, run));
}
