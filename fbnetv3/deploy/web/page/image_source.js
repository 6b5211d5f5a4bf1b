// Open anything that shows an image, and read its pixels a few rows at a time: upright, on white, in gray or RGB.

import { findOrientation } from "./exif.js";

// Pixels as they are stored, without color management
const BITMAP_OPTIONS = { imageOrientation: "from-image", colorSpaceConversion: "none" };
const JPEG_START = [0xff, 0xd8];
// Rotation and mirroring of each EXIF orientation, as a, b, c, d of a canvas transform
const TURNS = {
  1: [1, 0, 0, 1],
  2: [-1, 0, 0, 1],
  3: [-1, 0, 0, -1],
  4: [1, 0, 0, -1],
  5: [0, 1, 1, 0],
  6: [0, 1, -1, 0],
  7: [0, -1, -1, 0],
  8: [0, -1, 1, 0],
};

/** A decoded image: its upright `width` and `height`, and whether it `isJpeg`. `close()` frees its memory. */
export class Picture {
  constructor(drawable, { orientation = 1, isJpeg = false, owned = false } = {}) {
    const width = drawable.videoWidth ?? drawable.displayWidth ?? drawable.width;
    const height = drawable.videoHeight ?? drawable.displayHeight ?? drawable.height;
    if (!width || !height) throw new Error("The image has no pixels: wait until it has loaded.");
    this.drawable = drawable;
    this.isJpeg = isJpeg;
    this.owned = owned;
    this.turn = TURNS[orientation];
    this.width = orientation < 5 ? width : height;
    this.height = orientation < 5 ? height : width;
  }

  /** Whether the stored columns or rows run from right to left, or from bottom to top. */
  get mirrored() {
    const [a, b, c, d] = this.turn;
    return { x: a + c < 0, y: b + d < 0 };
  }

  /** Draw the image upright into a 2D context, enlarged by `scale`, with its row `top` at the upper edge. */
  draw(context, { top = 0, scale = 1 } = {}) {
    const { x, y } = this.mirrored;
    const [left, upper] = [x ? this.width : 0, (y ? this.height : 0) - top];
    context.setTransform(...this.turn.map((value) => value * scale), left * scale, upper * scale);
    context.drawImage(this.drawable, 0, 0);
    context.resetTransform();
  }

  /** For `resizeAndCrop`: {width, height, channels, readRows(top, count)}; one channel is gray, three are RGB. */
  pixels(channels) {
    const convert = channels === 1 ? toGray : toRgb;
    let context;
    const readRows = (top, count) => {
      if (!context || context.canvas.height < count) context = createContext(this.width, count);
      context.fillStyle = "white";
      context.fillRect(0, 0, this.width, count);
      this.draw(context, { top });
      return convert(readPixels(context, this.width, count));
    };
    return { width: this.width, height: this.height, channels, readRows };
  }

  close() {
    if (this.owned) this.drawable.close();
  }
}

/**
 * Decode an image.
 *
 * @param image a Blob or File, a URL, an <img>, <canvas> or <video>, an ImageBitmap, OffscreenCanvas, VideoFrame,
 *     ImageData or Picture
 */
export async function openImage(image) {
  if (image instanceof Picture) return image;
  if (typeof image === "string" || image instanceof URL) {
    const response = await fetch(image);
    if (!response.ok) throw new Error(`${image}: the server returned ${response.status}.`);
    image = await response.blob();
  }
  if (image instanceof Blob) return decodeFile(image);
  const isElement = typeof HTMLImageElement !== "undefined" && image instanceof HTMLImageElement;
  if (isElement) await image.decode();
  if (isElement || image instanceof ImageData) {
    return new Picture(await createImageBitmap(image, BITMAP_OPTIONS), { owned: true });
  }
  return new Picture(image);
}

/** Decode a file; JPEG and WebP are turned here, since not every browser turns both. */
async function decodeFile(file) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  const isJpeg = JPEG_START.every((value, i) => bytes[i] === value);
  const { orientation, position } = findOrientation(bytes);
  if (orientation !== 1) {
    // Of the two bytes of the value, one is zero in either byte order
    bytes[position] = bytes[position] && 1;
    bytes[position + 1] = bytes[position + 1] && 1;
  }
  try {
    const bitmap = await createImageBitmap(new Blob([bytes], { type: file.type }), BITMAP_OPTIONS);
    return new Picture(bitmap, { orientation, isJpeg, owned: true });
  } catch {
    const name = file.name || "The file";
    throw new Error(`${name} is not an image that this browser can read. Try a JPEG, PNG or WebP file.`);
  }
}

function createContext(width, height) {
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  if (!context) throw new Error(`An image ${width} pixels wide is too large for this browser.`);
  context.imageSmoothingEnabled = false;
  return context;
}

function readPixels(context, width, height) {
  try {
    return context.getImageData(0, 0, width, height).data;
  } catch (error) {
    if (error.name !== "SecurityError") throw error;
    throw new Error("The image is from another site, which does not let this page read its pixels (CORS).");
  }
}

function toRgb(rgba) {
  const rgb = new Uint8ClampedArray((rgba.length / 4) * 3);
  for (let i = 0, j = 0; i < rgba.length; i += 4, j += 3) {
    rgb[j] = rgba[i];
    rgb[j + 1] = rgba[i + 1];
    rgb[j + 2] = rgba[i + 2];
  }
  return rgb;
}

/** Luma of ITU-R 601 in integers, as Pillow computes it. */
function toGray(rgba) {
  const gray = new Uint8ClampedArray(rgba.length / 4);
  for (let i = 0, j = 0; i < rgba.length; i += 4, j++) {
    gray[j] = (rgba[i] * 19595 + rgba[i + 1] * 38470 + rgba[i + 2] * 7471 + 32768) >> 16;
  }
  return gray;
}
