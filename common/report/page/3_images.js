// One data set, unpacked when it is first looked at, and its test images as cards.

const opened = new Map();

function open(number) {
  if (!opened.has(number)) opened.set(number, unpackedDataset(report.datasets[number]));
  return opened.get(number);
}

function unpackedDataset(packed) {
  const runs = packed.models.flatMap((model) =>
    model.tested.map((run) => ({
      name: `${isolated(model.label)}, ${run.name}`,
      label: model.label,
      color: model.color,
      predicted: unpacked(run.predicted, Uint16Array),
      confidence: unpacked(run.confidence, Uint16Array),
    })),
  );
  return {
    ...packed,
    runs,
    trainings: packed.models.flatMap((model) => model.runs),
    labels: packed.labels && unpacked(packed.labels, Uint16Array),
    indices: packed.indices && unpacked(packed.indices, Uint32Array),
    sheet: packed.sheet && openedSheet(packed.sheet),
  };
}

function openedSheet(sheet) {
  const picture = new Image();
  picture.src = sheet.uri;
  const tiles = new Map(Array.from(unpacked(sheet.pictured, Uint32Array), (position, tile) => [position, tile]));
  return { ...sheet, picture, tiles };
}

const share = (run, position) => run.confidence[position] / report.full;

function thumbnail(dataset, position, description) {
  const tile = dataset.sheet?.tiles.get(position);
  if (tile === undefined) return element("span", { class: "blank" }, dataset.sheet ? "no picture" : "");
  const { side, columns, picture } = dataset.sheet;
  const canvas = element("canvas", { width: side, height: side, role: "img", "aria-label": description });
  if (side < 48) canvas.classList.add("pixels"); // few pixels are shown as they are
  const [x, y] = [(tile % columns) * side, Math.floor(tile / columns) * side];
  picture.decode().then(() => canvas.getContext("2d").drawImage(picture, x, y, side, side, 0, 0, side, side));
  return canvas;
}

function line(...parts) {
  return element("div", { class: "line" }, ...parts);
}

function said(mark, name, confidence) {
  return line(`${mark} `, named(name), element("span", { class: "quiet" }, ` ${sureness(confidence)}`));
}

/** Show the images at `positions`, a dozen at a time; `lines(position)` are a card's lines of text. */
function showCards(panel, dataset, positions, lines, kind = "") {
  const list = element("ul", { class: `cards ${kind}` });
  const more = element("button", { class: "more", type: "button" });
  const extend = () => {
    const from = list.children.length;
    for (const position of positions.slice(from, from + report.shown_at_once)) {
      const number = `Test image ${dataset.indices[position]}`;
      const text = lines(position);
      const words = text.map((part) => part.textContent).join(", ");
      const card = element("li", { "data-index": dataset.indices[position], title: number });
      card.append(thumbnail(dataset, position, `${number}: ${words}`), ...text);
      card.append(line(element("span", { class: "quiet" }, `no. ${dataset.indices[position]}`)));
      list.append(card);
    }
    const left = positions.length - list.children.length;
    more.textContent = `Show ${Math.min(left, report.shown_at_once)} more of ${left.toLocaleString("en")}`;
    more.hidden = left === 0;
  };
  more.addEventListener("click", extend);
  extend();
  panel.append(list, more);
}

/** Return the positions at which `condition` holds, the most confident of `run` first and of equals the earlier. */
function ordered(dataset, run, condition) {
  const found = [];
  for (let position = 0; position < dataset.labels.length; position++) if (condition(position)) found.push(position);
  return found.sort((a, b) => run.confidence[b] - run.confidence[a] || a - b);
}
