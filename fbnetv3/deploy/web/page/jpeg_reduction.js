// Read a large JPEG at 1/2, 1/4 or 1/8 of its size, as Python does when it will be shrunk by a multiple of that.
//
// What the JPEG library then returns are the means of squares of pixels, up to rounding.

const SCALES = [8, 4, 2];
const REDUCING_GAP = 2; // how many times larger than the result the image still is

/** By how much a JPEG is reduced that will be shrunk by a factor of `downscale`. */
export function reductionOf(downscale) {
  return SCALES.find((scale) => downscale >= REDUCING_GAP * scale) ?? 1;
}

/**
 * The pixels of a picture, reduced by `scale`; see `Picture.pixels`.
 *
 * Squares begin at the first stored pixel, which is on the right or at the bottom of mirrored pictures; at the other
 * end, the last pixel is repeated.
 */
export function reducedPixels(picture, channels, scale) {
  const source = picture.pixels(channels);
  const width = Math.ceil(source.width / scale);
  const height = Math.ceil(source.height / scale);
  const left = picture.mirrored.x ? source.width - width * scale : 0;
  const top = picture.mirrored.y ? source.height - height * scale : 0;
  const readRows = (row, count) => {
    const reduced = new Uint8ClampedArray(count * width * channels);
    for (let i = 0; i < count; i++) {
      const start = top + (row + i) * scale;
      const first = Math.max(start, 0);
      const pixels = source.readRows(first, Math.min(start + scale, source.height) - first);
      const means = meansOfSquares(pixels, source, { top: start - first, left, width, scale });
      reduced.set(means, i * width * channels);
    }
    return reduced;
  };
  return { width, height, channels, readRows };
}

/** Means of a row of squares; `top` and `left` are where the first one begins, at most 0. */
function meansOfSquares(pixels, source, { top, left, width, scale }) {
  const { channels } = source;
  const sums = new Float64Array(width * channels);
  const rows = pixels.length / (channels * source.width);
  for (let dy = 0; dy < scale; dy++) {
    const rowStart = clamp(top + dy, rows) * source.width;
    for (let column = 0; column < width; column++) {
      for (let dx = 0; dx < scale; dx++) {
        const start = (rowStart + clamp(left + column * scale + dx, source.width)) * channels;
        for (let channel = 0; channel < channels; channel++) {
          sums[column * channels + channel] += pixels[start + channel];
        }
      }
    }
  }
  return sums.map((sum) => Math.floor(sum / (scale * scale) + 0.5));
}

function clamp(index, length) {
  return Math.min(Math.max(index, 0), length - 1);
}
