// From an image to the network's input, with the same numbers as the Python package.

import { reducedPixels, reductionOf } from "./jpeg_reduction.js";
import { resizeAndCrop } from "./resample.js";

const MAX_ASPECT_RATIO = 8; // of images that are resized as a whole before the center is cropped
const MAX_VALUES_BETWEEN = 2 ** 24; // after the width is resized and before the height is

/** Round to the nearest integer, halves to even, as Python does. */
export function roundHalfEven(value) {
  const floor = Math.floor(value);
  const rest = value - floor;
  if (rest !== 0.5) return Math.round(value);
  return floor % 2 === 0 ? floor : floor + 1;
}

/**
 * Plan how one side is resized so that the short side becomes `resize`, and how the center is cropped.
 *
 * Of a narrow image, which could be huge after resizing, only the squares around the crop are taken, with two more at
 * each end for the filter.
 */
export function planSide(side, shortSide, resize, resolution) {
  const newSide = side === shortSide ? resize : Math.trunc((resize * side) / shortSide);
  const cropStart = roundHalfEven((newSide - resolution) / 2);
  if (side <= MAX_ASPECT_RATIO * shortSide) return { start: 0, length: side, newLength: newSide, cropStart };
  const first = Math.max(0, Math.floor(cropStart / resize) - 2);
  const last = Math.min(Math.floor(side / shortSide), Math.floor((cropStart + resolution) / resize) + 3);
  const squares = last - first;
  return {
    start: first * shortSide,
    length: squares * shortSide,
    newLength: squares * resize,
    cropStart: cropStart - first * resize,
  };
}

/** Resize the short side of a picture and crop the center: Uint8ClampedArray (resolution, resolution, channels). */
export function cropCenter(picture, { resize, resolution, interpolation, mean }) {
  const shortSide = Math.min(picture.width, picture.height);
  const x = planSide(picture.width, shortSide, resize, resolution);
  const y = planSide(picture.height, shortSide, resize, resolution);
  let source = picture.pixels(mean.length);
  let part = { top: y.start, left: x.start, height: y.length, width: x.length };
  const scale = picture.isJpeg ? reductionOf(Math.min(y.length / y.newLength, x.length / x.newLength)) : 1;
  if (scale > 1) {
    source = reducedPixels(picture, mean.length, scale);
    part = scalePart(part, source.width / picture.width, source.height / picture.height);
  }
  const size = { height: y.newLength, width: x.newLength };
  const crop = { top: y.cropStart, left: x.cropStart, height: resolution, width: resolution };
  const columnsFirst = part.height > size.height && part.height * size.width > MAX_VALUES_BETWEEN;
  return resizeAndCrop(source, part, size, crop, { interpolation, rounding: "torch", columnsFirst });
}

function scalePart({ top, left, height, width }, scaleX, scaleY) {
  return {
    top: roundHalfEven(top * scaleY),
    left: roundHalfEven(left * scaleX),
    height: Math.max(1, roundHalfEven(height * scaleY)),
    width: Math.max(1, roundHalfEven(width * scaleX)),
  };
}

/** Normalize pixels (height, width, channels) to Float32Array (channels, height, width). */
export function normalize(pixels, mean, std) {
  const channels = mean.length;
  const area = pixels.length / channels;
  const result = new Float32Array(pixels.length);
  for (let channel = 0; channel < channels; channel++) {
    // One multiplication and one subtraction in single precision
    const scale = Math.fround(1 / (255 * std[channel]));
    const shift = Math.fround(mean[channel] / std[channel]);
    const table = Float32Array.from({ length: 256 }, (_, value) => Math.fround(value * scale) - shift);
    for (let i = 0; i < area; i++) result[channel * area + i] = table[pixels[i * channels + channel]];
  }
  return result;
}

/** Height and width of a detector's input: as detectron2's ResizeShortestEdge. */
export function shortSideSize(height, width, { shortest, longest }) {
  if (!shortest) return { height, width };
  const scale = shortest / Math.min(height, width);
  const sides = height < width ? [shortest, scale * width] : [scale * height, shortest];
  const shrink = Math.min(1, longest / Math.max(...sides));
  const [newHeight, newWidth] = sides.map((side) => Math.max(1, Math.trunc(side * shrink + 0.5)));
  return { height: newHeight, width: newWidth };
}

/** Resize a picture for a detector: {pixels: Uint8ClampedArray (height, width, 3), height, width}. */
export function resizeForDetector(picture, limits) {
  const size = shortSideSize(picture.height, picture.width, limits);
  const part = { top: 0, left: 0, height: picture.height, width: picture.width };
  const crop = { top: 0, left: 0, ...size };
  const options = { interpolation: "bilinear", rounding: "pillow" };
  return { pixels: resizeAndCrop(picture.pixels(3), part, size, crop, options), ...size };
}
