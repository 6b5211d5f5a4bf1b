// Run an exported network in a page:
//
//   import { load } from "./fbnetv3.js";
//   const predict = await load("./");
//   const results = await predict(image);

import { openImage } from "./image_source.js";
import { cropCenter, normalize, resizeForDetector } from "./preprocessing.js";
import { openSession } from "./session.js";

const DEFAULT_TOP = 5; // classes of an image that has one
const DEFAULT_THRESHOLD = 0.5; // probability from which a label is returned for images that have several
const INPUT = "images";

/**
 * Load an exported folder.
 *
 * @param folder URL of the folder, relative to the page
 * @param options backend: "auto" (default), "wasm" or "webgpu"
 * @returns a function `predict(image, options)`, which returns the most likely classes, best first:
 *     [{label, probability, classIndex}], or the objects that a detector finds: [{label, score, box, classIndex}] with
 *     the box [x0, y0, x1, y1] in pixels of the upright image. Options are `top`, the number of classes, and
 *     `threshold`, the minimum probability or score. For the image, see `openImage`.
 *
 *     It has the properties `network` (manifest.json), `classes`, `preprocessing`, `backend`, `threads`, `description`
 *     (of the backend), `milliseconds` ({preprocess, run} of the last call), and the function `preprocess(image)`,
 *     which returns the input {data, dims}.
 */
export async function load(folder = "./", { backend = "auto" } = {}) {
  const base = new URL(folder.endsWith("/") ? folder : `${folder}/`, globalThis.document?.baseURI ?? import.meta.url);
  const [network, preprocessing, classes] = await Promise.all(
    ["manifest.json", "preprocessing.json", "classes.json"].map((name) => fetchJson(new URL(name, base))),
  );
  const task = network.task === "detection" ? detection(preprocessing) : classification(network, preprocessing);
  const session = await openSession(base, network.files, (Tensor) => toFeeds(Tensor, task.example), backend);

  async function predict(image, options = {}) {
    const start = performance.now();
    const { input, ...sizes } = await prepare(image);
    const middle = performance.now();
    const outputs = await session.run(toFeeds(session.Tensor, input));
    predict.milliseconds = { preprocess: middle - start, run: performance.now() - middle };
    return task.read(outputs, classes, options, sizes);
  }

  async function prepare(image) {
    const picture = await openImage(image);
    try {
      return { ...task.prepare(picture), width: picture.width, height: picture.height };
    } finally {
      if (picture !== image) picture.close();
    }
  }

  const { description, threads } = session;
  const preprocess = async (image) => (await prepare(image)).input;
  const properties = { network, classes, preprocessing, preprocess, description, threads, backend: session.backend };
  return Object.assign(predict, properties, { milliseconds: null });
}

async function fetchJson(url) {
  const response = await fetch(url).catch((error) => {
    throw new Error(`${url.href} cannot be read (${error.message}). Is the folder served by a web server?`);
  });
  if (!response.ok) throw new Error(`${url.pathname}: the server returned ${response.status}.`);
  return response.json();
}

function toFeeds(Tensor, { type, data, dims }) {
  return { [INPUT]: new Tensor(type, data, dims) };
}

function classification(network, preprocessing) {
  const { mean, std, resolution } = preprocessing;
  const channels = mean.length;
  if (channels !== 1 && channels !== 3) {
    throw new Error(`The network takes ${channels} channels; a browser reads gray (1) or RGB (3).`);
  }
  const dims = [1, channels, resolution, resolution];
  const toInput = (data) => ({ type: "float32", data, dims });
  return {
    example: toInput(new Float32Array(channels * resolution * resolution)),
    prepare: (picture) => ({ input: toInput(normalize(cropCenter(picture, preprocessing), mean, std)) }),
    read: (outputs, classes, options) => rankClasses(outputs.logits.data, classes, network.output.activation, options),
  };
}

/** Return the most likely classes, best first. */
export function rankClasses(logits, classes, activation, { top, threshold } = {}) {
  if (!logits.every(Number.isFinite)) throw new Error("The network's outputs are NaN or infinite.");
  const isSigmoid = activation === "sigmoid";
  const probabilities = isSigmoid ? Array.from(logits, (logit) => 1 / (1 + Math.exp(-logit))) : softmax(logits);
  return probabilities
    .map((probability, classIndex) => ({ label: classes[classIndex], probability, classIndex }))
    .sort((a, b) => b.probability - a.probability)
    .slice(0, top ?? (isSigmoid ? classes.length : DEFAULT_TOP))
    .filter(({ probability }) => probability >= (threshold ?? (isSigmoid ? DEFAULT_THRESHOLD : 0)));
}

function softmax(logits) {
  const largest = logits.reduce((a, b) => Math.max(a, b));
  const exponentials = Array.from(logits, (logit) => Math.exp(logit - largest));
  const sum = exponentials.reduce((a, b) => a + b);
  return exponentials.map((value) => value / sum);
}

function detection(preprocessing) {
  const toInput = (pixels, height, width) => ({
    type: "uint8",
    data: new Uint8Array(pixels.buffer),
    dims: [1, height, width, 3],
  });
  return {
    example: toInput(new Uint8Array(64 * 64 * 3), 64, 64),
    prepare(picture) {
      const { pixels, height, width } = resizeForDetector(picture, preprocessing);
      return { input: toInput(pixels, height, width), resized: { height, width } };
    },
    read: readDetections,
  };
}

/** Scale boxes back to the image, clip them, and drop those that are then empty. */
export function readDetections({ boxes, scores, classes: indices }, classes, { top, threshold = 0 }, sizes) {
  const { width, height, resized } = sizes;
  const limits = [width, height, width, height];
  const scales = [width / resized.width, height / resized.height].map(Math.fround);
  return Array.from(scores.data, (score, row) => {
    const box = limits.map((limit, i) => {
      const value = Math.fround(boxes.data[4 * row + i] * scales[i % 2]);
      return Math.min(Math.max(value, 0), limit);
    });
    const classIndex = Number(indices.data[row]);
    return { label: classes[classIndex], score, box, classIndex };
  })
    .filter(({ box: [x0, y0, x1, y1], score }) => score >= threshold && x1 > x0 && y1 > y0)
    .slice(0, top);
}
