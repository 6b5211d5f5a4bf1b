// Show classes as bars, and objects as boxes on the picture.

const GOLDEN_ANGLE = 137.5; // degrees, so that neighboring classes have different hues
const MAX_LISTED = 30; // objects

function color(classIndex) {
  return `hsl(${(20 + classIndex * GOLDEN_ANGLE) % 360} 75% 45%)`;
}

/** Fill a list with classes: [{label, probability}]. */
export function showClasses(list, classes) {
  const items = classes.map(({ label, probability }, i) => {
    const item = createItem(label, percent(probability), i === 0 && probability >= 0.5);
    const bar = create("div", "bar");
    const filled = document.createElement("span");
    filled.style.width = percent(probability);
    bar.append(filled);
    item.append(bar);
    return item;
  });
  list.replaceChildren(...items);
}

/** Fill a list with objects: [{label, score, classIndex}]. */
export function showObjects(list, objects) {
  const items = objects.slice(0, MAX_LISTED).map(({ label, score, classIndex }) => {
    const item = createItem(label, percent(score), false);
    const swatch = create("span", "swatch");
    swatch.style.background = color(classIndex);
    item.firstChild.prepend(swatch);
    return item;
  });
  if (objects.length > MAX_LISTED) items.push(createItem(`and ${objects.length - MAX_LISTED} more`, "", false));
  list.replaceChildren(...(items.length ? items : [createItem("No objects", "", false)]));
}

/** Draw a picture with boxes; their coordinates are in pixels of an image of the `size`. */
export function drawBoxes(canvas, background, objects, { width, height }) {
  const context = canvas.getContext("2d");
  context.drawImage(background, 0, 0);
  const [scaleX, scaleY] = [canvas.width / width, canvas.height / height];
  const unit = Math.max(canvas.width, canvas.height) / 100;
  context.lineWidth = Math.max(1, unit * 0.4);
  context.font = `600 ${Math.max(9, unit * 2.2)}px system-ui, sans-serif`;
  context.textBaseline = "bottom";
  // The best ones last, on top
  for (const { label, score, box, classIndex } of objects.toReversed()) {
    const [x0, y0, x1, y1] = box.map((value, i) => value * (i % 2 ? scaleY : scaleX));
    context.strokeStyle = context.fillStyle = color(classIndex);
    context.strokeRect(x0, y0, x1 - x0, y1 - y0);
    const text = `${label} ${percent(score)}`;
    const textWidth = context.measureText(text).width + unit;
    const textHeight = Math.max(12, unit * 2.8);
    const x = Math.min(x0, Math.max(canvas.width - textWidth, 0));
    const y = Math.max(y0, textHeight);
    context.fillRect(x, y - textHeight, textWidth, textHeight);
    context.fillStyle = "white";
    context.fillText(text, x + unit / 2, y - textHeight * 0.1);
  }
}

function createItem(label, value, isBest) {
  const item = create("li", isBest ? "best" : "");
  const labelText = create("span", "label");
  labelText.append(label);
  const valueText = create("span", "value");
  valueText.append(value);
  item.append(labelText, valueText);
  return item;
}

function create(tag, className) {
  const node = document.createElement(tag);
  node.className = className;
  return node;
}

function percent(fraction) {
  return `${(100 * fraction).toFixed(1)}%`;
}
