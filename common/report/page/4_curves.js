// Learning curves: two charts, and a table with the values of the epoch that is pointed at.

const QUANTITIES = [
  { name: "loss", title: "Cross-entropy (nats)" },
  { name: "accuracy", title: "Accuracy" },
];

/** Return the epochs of a model's runs and, for each, the mean of `name` over the runs that have it. */
function averaged(model, name) {
  const byEpoch = new Map();
  for (const run of model.runs) {
    run.epochs.forEach((epoch, i) => byEpoch.set(epoch, [...(byEpoch.get(epoch) ?? []), run[name][i]]));
  }
  return new Map([...byEpoch].sort(([a], [b]) => a - b).map(([epoch, values]) => [epoch, mean(values)]));
}

function ticks(low, high, count) {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
  const first = Math.ceil(low / step - 1e-9);
  const last = Math.floor(high / step + 1e-9);
  return Array.from({ length: last - first + 1 }, (_, i) => Number(((first + i) * step).toPrecision(12)));
}

function range(dataset, name) {
  const values = dataset.trainings.flatMap((run) => [...run[`train_${name}`], ...run[`val_${name}`]]);
  if (name === "loss") return [0, 1.06 * Math.max(...values)];
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const margin = Math.max(0.08 * (high - low), (0.05 - (high - low)) / 2); // noise is not blown up
  return [Math.max(0, low - margin), Math.min(1, high + margin)];
}

function path(epochs, values, x, y) {
  return epochs.map((epoch, i) => `${i ? "L" : "M"}${x(epoch).toFixed(1)} ${y(values[i]).toFixed(1)}`).join("");
}

function colored(drawn, color) {
  drawn.style.setProperty("--series", color);
  return drawn;
}

function drawAxes(svg, frame, epochs, values, title) {
  for (const value of values) {
    const at = frame.y(value);
    svg.append(shape("line", { class: "gridline", x1: frame.left, x2: frame.right, y1: at, y2: at }));
    svg.append(shape("text", { x: frame.left - 8, y: at + 4, "text-anchor": "end" }, String(value)));
  }
  for (const epoch of epochs) {
    svg.append(shape("text", { x: frame.x(epoch), y: frame.bottom + 18, "text-anchor": "middle" }, String(epoch)));
  }
  svg.append(shape("text", { class: "title", x: 0, y: 13 }, title));
  svg.append(shape("text", { x: frame.right, y: frame.bottom + 34, "text-anchor": "end" }, "Epoch"));
}

function drawModel(svg, frame, model, name) {
  for (const run of model.runs.length > 1 ? model.runs : []) {
    const thin = shape("path", { class: "curve thin series", d: path(run.epochs, run[`val_${name}`], frame.x, frame.y) });
    svg.append(colored(thin, model.color));
  }
  for (const split of ["train", "val"]) {
    const points = averaged(model, `${split}_${name}`);
    const d = path([...points.keys()], [...points.values()], frame.x, frame.y);
    svg.append(colored(shape("path", { class: `curve series ${split}`, d }), model.color));
  }
  for (const run of model.runs) {
    const kept = run.epochs.indexOf(run.kept);
    if (kept < 0) continue;
    const at = { cx: frame.x(run.kept), cy: frame.y(run[`val_${name}`][kept]) };
    svg.append(colored(shape("circle", { class: "ring series", r: 4, ...at }), model.color));
  }
}

/** Draw one quantity; return the function that marks an epoch, and the one that finds the epoch at a pointer. */
function drawChart(holder, dataset, { name, title }) {
  const [width, height] = [Math.max(260, holder.clientWidth || 480), 270];
  const epochs = [...new Set(dataset.trainings.flatMap((run) => run.epochs))].sort((a, b) => a - b);
  const [first, last] = [epochs[0], epochs.at(-1)];
  const [low, high] = range(dataset, name);
  const frame = { left: 40, right: width - 10, top: 28, bottom: height - 40 };
  frame.x = (epoch) => frame.left + 8 + ((epoch - first) / (last - first || 1)) * (frame.right - frame.left - 16);
  frame.y = (value) => frame.bottom - ((value - low) / (high - low || 1)) * (frame.bottom - frame.top);
  const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
  const whole = ticks(first, last, 6).filter((epoch) => Number.isInteger(epoch) && epoch >= first);
  drawAxes(svg, frame, whole.length ? whole : [first], ticks(low, high, 4), title);
  for (const model of dataset.models) drawModel(svg, frame, model, name);
  const marks = shape("g");
  svg.append(marks);
  holder.replaceChildren(svg);
  const mark = (epoch) => {
    const at = frame.x(epoch);
    marks.replaceChildren(shape("line", { class: "hairline", x1: at, x2: at, y1: frame.top, y2: frame.bottom }));
    for (const model of dataset.models) {
      const value = averaged(model, `val_${name}`).get(epoch);
      if (value === undefined) continue;
      marks.append(colored(shape("circle", { class: "dot", r: 4, cx: at, cy: frame.y(value) }), model.color));
    }
  };
  const epochAt = (clientX) => {
    const box = svg.getBoundingClientRect();
    const x = ((clientX - box.left) * width) / box.width;
    return epochs.reduce((best, epoch) => (Math.abs(frame.x(epoch) - x) < Math.abs(frame.x(best) - x) ? epoch : best));
  };
  return { mark, epochAt, svg, epochs };
}

const fixed = (value) => (value === undefined ? "—" : value.toFixed(3));

function showReadout(dataset, epoch, last) {
  const columns = QUANTITIES.flatMap(({ name }) => ["val", "train"].map((split) => `${split}_${name}`));
  const head = element("tr", {}, element("th", { scope: "col", rowspan: 2 }, `Epoch ${epoch} of ${last}`));
  for (const { name } of QUANTITIES) head.append(element("th", { scope: "colgroup", colspan: 2, class: "number" }, name));
  const parts = ["val.", "train.", "val.", "train."];
  const cells = parts.map((part) => element("th", { scope: "col", class: "number part" }, part));
  const body = dataset.models.map((model) => {
    const row = element("tr", {}, element("th", { scope: "row" }, swatch(model.color), named(model.label)));
    for (const key of columns) row.append(element("td", { class: "number" }, fixed(averaged(model, key).get(epoch))));
    return row;
  });
  find("readout").replaceChildren(element("thead", {}, head, element("tr", {}, ...cells)), element("tbody", {}, ...body));
  return body.map((row) => `${row.cells[0].textContent}: ${row.cells[1].textContent}, ${row.cells[3].textContent}`);
}

let curves = null; // of the data set that is shown: {choose, move}

function showCurves(dataset) {
  const slider = find("curves");
  const holders = QUANTITIES.map(() => element("div"));
  slider.replaceChildren(...holders);
  const charts = QUANTITIES.map((quantity, i) => drawChart(holders[i], dataset, quantity));
  const epochs = charts[0].epochs;
  let chosen = Math.min(...dataset.trainings.map((run) => run.epochs.at(-1))); // the last that all of them have
  const choose = (epoch) => {
    chosen = epoch;
    for (const chart of charts) chart.mark(epoch);
    const words = showReadout(dataset, epoch, epochs.at(-1));
    slider.setAttribute("aria-valuenow", epoch);
    slider.setAttribute("aria-valuetext", `Epoch ${epoch}, validation loss and accuracy. ${words.join("; ")}`);
  };
  slider.setAttribute("aria-valuemin", epochs[0]);
  slider.setAttribute("aria-valuemax", epochs.at(-1));
  for (const { svg, epochAt } of charts) {
    for (const event of ["pointermove", "pointerdown"]) {
      svg.addEventListener(event, ({ clientX }) => epochAt(clientX) !== chosen && choose(epochAt(clientX)));
    }
  }
  const move = (steps) => {
    const to = Math.min(epochs.length - 1, Math.max(0, epochs.indexOf(chosen) + steps));
    choose(epochs[to]);
  };
  curves = { move };
  choose(epochs.includes(chosen) ? chosen : epochs.at(-1));
}

const STEPS = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, Home: -Infinity, End: Infinity };

find("curves").addEventListener("keydown", (event) => {
  if (!(event.key in STEPS)) return;
  event.preventDefault();
  curves.move(STEPS[event.key]);
});
