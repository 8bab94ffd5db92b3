// The page: which data set and which runs are shown.

function fillRuns(select, dataset, chosen, onChange) {
  const options = dataset.runs.map((run, index) => element("option", { value: index }, run.name));
  select.replaceChildren(...options);
  select.value = Math.min(chosen, options.length - 1);
  select.onchange = onChange;
}

function show(number) {
  const dataset = open(number);
  for (const button of find("datasets").children) {
    const chosen = button === find("datasets").children[number];
    button.setAttribute("aria-checked", chosen);
    button.tabIndex = chosen ? 0 : -1;
  }
  showCurves(dataset);
  find("tested").hidden = !dataset.labels;
  if (dataset.labels) showTested(dataset);
  else find("remark").textContent = `No confusion matrices, disagreements or suspects: ${dataset.remark}.`;
  shown = number;
}

/** Show what the runs said of the test images. */
function showTested(dataset) {
  const chosen = (id) => dataset.runs[find(id).value];
  const compare = () => showDisagreement(dataset, chosen("run-a"), chosen("run-b"));
  fillRuns(find("matrix-run"), dataset, 0, () => showMatrix(dataset, chosen("matrix-run")));
  fillRuns(find("run-a"), dataset, 0, compare);
  fillRuns(find("run-b"), dataset, dataset.models[0].tested.length, compare); // the second model's first seed
  showMatrix(dataset, dataset.runs[0]);
  if (dataset.runs.length > 1) compare();
  find("disagreement-body").parentNode.hidden = dataset.runs.length < 2;
  showSuspects(dataset);
  const pictures = dataset.sheet
    ? `Pictures are small copies, of ${counted(dataset.sheet.tiles.size, "image", "images")} of ${dataset.labels.length.toLocaleString("en")}.`
    : `The test images are not shown: ${dataset.remark}.`;
  find("remark").textContent = `${pictures} A confidence is the softmax's largest probability; “no.” is the image's place in the test split.`;
}

let shown = 0;

report.datasets.forEach((dataset, number) => {
  const button = element("button", { type: "button", role: "radio" }, named(dataset.title));
  button.addEventListener("click", () => show(number));
  find("datasets").append(button);
});

find("datasets").addEventListener("keydown", (event) => {
  if (!(event.key in STEPS)) return;
  event.preventDefault();
  const to = Math.min(report.datasets.length - 1, Math.max(0, shown + STEPS[event.key]));
  show(to);
  find("datasets").children[to].focus();
});

find("datasets").hidden = report.datasets.length < 2;
find("explorer").hidden = false;
show(0);

// Charts have the width of the window, print has no closed parts

let width = window.innerWidth;
window.addEventListener("resize", () => {
  if (window.innerWidth !== width) showCurves(open(shown)); // on a phone, scrolling changes the height
  width = window.innerWidth;
});

const unfolded = [];
window.addEventListener("beforeprint", () => {
  for (const part of document.querySelectorAll("details:not([open])")) {
    part.open = true;
    unfolded.push(part);
  }
});
window.addEventListener("afterprint", () => {
  for (const part of unfolded.splice(0)) part.open = false;
});
