// A canvas to draw on. What is drawn is scaled to fill the image, with lines of a fixed width, as handwriting in datasets.

const SIDE = 256; // pixels of the canvas and of the image
const LINE_WIDTH = 0.14; // of the image's side
const SHOWN_WIDTH = 0.08; // of the canvas's side

export class DrawingPad {
  /** `onDraw` gets an OffscreenCanvas with the drawing, after each change. */
  constructor(canvas, isInkBright, onDraw) {
    this.canvas = canvas;
    this.onDraw = onDraw;
    this.colors = isInkBright ? { paper: "black", ink: "white" } : { paper: "white", ink: "black" };
    this.strokes = [];
    this.pointer = null;
    canvas.width = canvas.height = SIDE * 2; // sharp on dense screens
    canvas.addEventListener("pointerdown", (event) => this.begin(event));
    canvas.addEventListener("pointermove", (event) => this.extend(event));
    for (const type of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(type, () => (this.pointer = null));
    }
    this.clear();
  }

  clear() {
    this.strokes = [];
    this.paint(this.canvas, this.strokes, SHOWN_WIDTH);
  }

  begin(event) {
    if (!event.isPrimary || event.button !== 0) return;
    this.pointer = event.pointerId;
    this.canvas.setPointerCapture(event.pointerId);
    this.strokes.push([]);
    this.extend(event);
  }

  extend(event) {
    if (event.pointerId !== this.pointer) return;
    const box = this.canvas.getBoundingClientRect();
    const point = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
    this.strokes.at(-1).push(point);
    this.paint(this.canvas, this.strokes, SHOWN_WIDTH);
    if (this.isWaiting) return;
    // At most once a frame
    this.isWaiting = true;
    requestAnimationFrame(() => {
      this.isWaiting = false;
      if (this.strokes.length) this.onDraw(this.image());
    });
  }

  /** The drawing, scaled so that its lines reach the upper and lower, or the left and right edge. */
  image() {
    const points = this.strokes.flat();
    const [left, right, top, bottom] = [0, 1].flatMap((axis) => {
      const values = points.map((point) => point[axis]);
      return [Math.min(...values), Math.max(...values)];
    });
    const side = Math.max(right - left, bottom - top, 0.1); // a dot stays a dot
    const scale = (1 - LINE_WIDTH) / side;
    const scaled = this.strokes.map((stroke) =>
      stroke.map(([x, y]) => [(x - (left + right) / 2) * scale + 0.5, (y - (top + bottom) / 2) * scale + 0.5]),
    );
    const image = new OffscreenCanvas(SIDE, SIDE);
    this.paint(image, scaled, LINE_WIDTH);
    return image;
  }

  /** Draw strokes whose coordinates are in [0, 1]. */
  paint(canvas, strokes, lineWidth) {
    const context = canvas.getContext("2d");
    const side = canvas.width;
    context.fillStyle = this.colors.paper;
    context.fillRect(0, 0, side, side);
    context.strokeStyle = this.colors.ink;
    context.lineWidth = lineWidth * side;
    context.lineCap = context.lineJoin = "round";
    for (const stroke of strokes) {
      context.beginPath();
      stroke.forEach(([x, y]) => context.lineTo(x * side, y * side));
      context.lineTo(stroke.at(-1)[0] * side, stroke.at(-1)[1] * side); // of a dot, too
      context.stroke();
    }
  }
}
