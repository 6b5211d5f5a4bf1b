// Resize 8-bit pixels with antialiasing: the same numbers as torch's and Pillow's resizing of uint8 images.
//
// Both filter one axis after the other with integer weights, and round to 8 bits in between. They differ in how many
// fractional bits a weight has. Pixels are interleaved: row, column, channel.

const FILTERS = {
  bilinear: { support: 1, weight: (x) => Math.max(0, 1 - Math.abs(x)) },
  bicubic: { support: 2, weight: cubic },
};
const PILLOW_BITS = 22;
const MAX_TORCH_WEIGHT = 2 ** 15; // its weights are int16
const ROWS_PER_READ = 128;

function cubic(x) {
  const a = -0.5;
  const distance = Math.abs(x);
  if (distance < 1) return ((a + 2) * distance - (a + 3)) * distance * distance + 1;
  if (distance < 2) return (((distance - 5) * distance + 8) * distance - 4) * a;
  return 0;
}

/**
 * Weights for resizing one axis, for the outputs `first` to `first + count`.
 *
 * Output i is the sum of `weights[i * taps + j] * input[starts[i] + j]` over j < taps, divided by 2 ** bits.
 */
export function axisWeights(size, newSize, first, count, interpolation, rounding) {
  if (interpolation === "nearest") return nearestWeights(size, newSize, first, count);
  const filter = FILTERS[interpolation];
  if (!filter) throw new Error(`unknown interpolation "${interpolation}"`);
  const scale = size / newSize;
  const stretch = Math.max(scale, 1);
  const support = filter.support * stretch;
  const taps = Math.ceil(support) * 2 + 1;
  const real = new Float64Array(newSize * taps);
  const starts = new Int32Array(newSize);
  let largest = 0;
  for (let i = 0; i < newSize; i++) {
    const center = scale * (i + 0.5);
    const start = Math.max(Math.trunc(center - support + 0.5), 0);
    const used = Math.min(Math.trunc(center + support + 0.5), size) - start;
    let total = 0;
    for (let j = 0; j < used; j++) {
      real[i * taps + j] = filter.weight((j + start - center + 0.5) / stretch);
      total += real[i * taps + j];
    }
    for (let j = 0; j < used; j++) {
      real[i * taps + j] /= total;
      largest = Math.max(largest, real[i * taps + j]);
    }
    starts[i] = start;
  }
  const bits = rounding === "pillow" ? PILLOW_BITS : torchBits(largest);
  const weights = Int32Array.from(real.subarray(first * taps, (first + count) * taps), (weight) =>
    Math.trunc(weight * 2 ** bits + (weight < 0 ? -0.5 : 0.5)),
  );
  return { starts: starts.slice(first, first + count), weights, taps, bits };
}

function torchBits(largest) {
  let bits = 0;
  while (bits < PILLOW_BITS && Math.trunc(0.5 + largest * 2 ** (bits + 1)) < MAX_TORCH_WEIGHT) bits++;
  return bits;
}

function nearestWeights(size, newSize, first, count) {
  const scale = Math.fround(size / newSize);
  const starts = Int32Array.from({ length: count }, (_, i) =>
    Math.min(Math.floor(Math.fround((first + i + 0.5) * scale)), size - 1),
  );
  return { starts, weights: new Int32Array(count).fill(2), taps: 1, bits: 1 };
}

/** Filter along rows: (rows, width, channels) becomes (rows, outputs of the plan, channels). */
export function filterRows(pixels, rows, width, channels, plan, left = 0) {
  const { starts, weights, taps, bits } = plan;
  const result = new Uint8ClampedArray(rows * starts.length * channels);
  const half = 2 ** (bits - 1);
  let position = 0;
  for (let row = 0; row < rows; row++) {
    const rowStart = (row * width + left) * channels;
    const rowEnd = (row + 1) * width * channels;
    for (let i = 0; i < starts.length; i++) {
      const start = rowStart + starts[i] * channels;
      for (let channel = 0; channel < channels; channel++) {
        let sum = half;
        let source = start + channel;
        for (let j = i * taps; j < (i + 1) * taps && source < rowEnd; j++, source += channels) {
          sum += pixels[source] * weights[j];
        }
        result[position++] = sum >> bits;
      }
    }
  }
  return result;
}

/** Filter along columns: (rows, row length) becomes (outputs of the plan, row length); row 0 of the pixels is `top`. */
export function filterColumns(pixels, rowLength, plan, top = 0) {
  const { starts, weights, taps, bits } = plan;
  const result = new Uint8ClampedArray(starts.length * rowLength);
  const half = 2 ** (bits - 1);
  const sums = new Int32Array(rowLength);
  for (let i = 0; i < starts.length; i++) {
    sums.fill(half);
    // Row by row, in the order of the memory
    for (let j = 0; j < taps; j++) {
      const weight = weights[i * taps + j];
      if (!weight) continue;
      const start = (starts[i] - top + j) * rowLength;
      for (let x = 0; x < rowLength; x++) sums[x] += pixels[start + x] * weight;
    }
    for (let x = 0; x < rowLength; x++) result[i * rowLength + x] = sums[x] >> bits;
  }
  return result;
}

/** The span of input positions that a plan reads. */
function span(plan, size) {
  const last = plan.starts[plan.starts.length - 1] + plan.taps;
  return [plan.starts[0], Math.min(last, size)];
}

/**
 * Resize a part of an image and crop the result: Uint8ClampedArray (crop.height, crop.width, channels).
 *
 * @param source image with `width`, `channels` and `readRows(top, count)`, which returns (count, width, channels)
 * @param part {top, left, height, width}: what is resized
 * @param size {height, width}: of the part, after resizing
 * @param crop {top, left, height, width}: what is kept of the resized part
 * @param options interpolation: "bilinear", "bicubic" or "nearest"; rounding: "torch" or "pillow"; columnsFirst
 */
export function resizeAndCrop(source, part, size, crop, { interpolation, rounding, columnsFirst = false }) {
  const { width, channels } = source;
  const across = axisWeights(part.width, size.width, crop.left, crop.width, interpolation, rounding);
  const down = axisWeights(part.height, size.height, crop.top, crop.height, interpolation, rounding);
  if (columnsFirst) {
    const narrow = filterColumnsInPieces(source, part, down);
    return filterRows(narrow, crop.height, width, channels, across, part.left);
  }
  // Only the rows that the crop needs, a few at a time: large photos are never in memory as a whole
  const [first, end] = span(down, part.height);
  const filtered = new Uint8ClampedArray((end - first) * crop.width * channels);
  for (let row = first; row < end; row += ROWS_PER_READ) {
    const count = Math.min(ROWS_PER_READ, end - row);
    const rows = source.readRows(part.top + row, count);
    filtered.set(filterRows(rows, count, width, channels, across, part.left), (row - first) * crop.width * channels);
  }
  return filterColumns(filtered, crop.width * channels, down, first);
}

/** Filter the columns of tall and narrow images, for a few output rows at a time. */
function filterColumnsInPieces(source, part, down) {
  const rowLength = source.width * source.channels;
  const result = new Uint8ClampedArray(down.starts.length * rowLength);
  for (let i = 0; i < down.starts.length; i++) {
    const plan = {
      starts: down.starts.subarray(i, i + 1),
      weights: down.weights.subarray(i * down.taps, (i + 1) * down.taps),
      taps: down.taps,
      bits: down.bits,
    };
    const [first, end] = span(plan, part.height);
    const rows = source.readRows(part.top + first, end - first);
    result.set(filterColumns(rows, rowLength, plan, first), i * rowLength);
  }
  return result;
}
