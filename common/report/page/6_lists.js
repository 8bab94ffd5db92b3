// Where two runs disagree, and suspected label errors.

function showOnly(panel, dataset, one, other, [mark, otherMark]) {
  const positions = ordered(dataset, other, (position) => {
    const label = dataset.labels[position];
    return one.predicted[position] === label && other.predicted[position] !== label;
  });
  panel.replaceChildren(
    element("h4", {}, `${mark} right, ${otherMark} wrong: ${counted(positions.length, "image", "images")}`),
  );
  if (!positions.length) return 0;
  panel.append(element("p", { class: "caption" }, `Where ${otherMark} is the most confident first.`));
  const order = mark < otherMark ? [[mark, one], [otherMark, other]] : [[otherMark, other], [mark, one]];
  showCards(
    panel,
    dataset,
    positions,
    (position) => [
      line("true ", named(dataset.classes[dataset.labels[position]])),
      ...order.map(([letter, run]) => said(`${letter}:`, dataset.classes[run.predicted[position]], share(run, position))),
    ],
    "wide",
  );
  return positions.length;
}

function showDisagreement(dataset, a, b) {
  const onlyA = showOnly(find("only-a"), dataset, a, b, ["A", "B"]);
  const onlyB = showOnly(find("only-b"), dataset, b, a, ["B", "A"]);
  const rights = dataset.labels.filter((label, position) => a.predicted[position] === label).length;
  const total = dataset.labels.length;
  const [both, neither] = [rights - onlyA, total - rights - onlyB];
  find("agreement").textContent = `Of ${counted(total, "test image", "test images")}, both are right on ${both.toLocaleString("en")} and both wrong on ${neither.toLocaleString("en")}.`;
}

function showSuspects(dataset) {
  const panel = find("suspects");
  const found = new Map(dataset.suspects.map((suspect) => [suspect.position, suspect]));
  const by = counted(dataset.runs.length, "run", "runs");
  const all = found.size < dataset.suspected ? `The ${found.size} most confident of ${dataset.suspected.toLocaleString("en")} images` : "";
  const some = found.size ? counted(found.size, "image", "images") : "None";
  panel.replaceChildren(element("p", {}, `${all || some}, by ${by}.`));
  showCards(
    panel,
    dataset,
    [...found.keys()],
    (position) => {
      const { predicted, mean: average, lowest } = found.get(position);
      return [
        line("label ", named(dataset.classes[dataset.labels[position]])),
        line("all say ", named(dataset.classes[predicted])),
        line(element("span", { class: "quiet" }, `mean ${sureness(average)}`)),
        line(element("span", { class: "quiet" }, `lowest ${sureness(lowest)}`)),
      ];
    },
    "wide",
  );
}
