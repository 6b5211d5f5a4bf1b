// The page: pictures from files, the clipboard, the camera or a drawing go to the network, and its results are shown.

import { openCamera } from "./camera.js";
import { DrawingPad } from "./drawing_pad.js";
import { load } from "./fbnetv3.js";
import { openImage } from "./image_source.js";
import { drawBoxes, showClasses, showObjects } from "./results.js";

const SHOWN_SIDE = 1280; // pixels of the long side of a picture
const MAX_ENLARGEMENT = 4;
const MAX_DRAWN_SIDE = 64; // pixels of networks that are drawn for

const element = (id) => document.getElementById(id);
const canvas = element("picture");

let predict;
let camera;
let shown; // {results, width, height} of the picture that is shown
let newest = 0; // number of the newest picture; results of older ones are not shown

start();

async function start() {
  try {
    await reportSizes();
    predict = await load("./", { backend: new URLSearchParams(location.search).get("backend") ?? "auto" });
  } catch (error) {
    element("status").textContent = "";
    return showError(error);
  }
  const count = predict.classes.length;
  const isDetector = predict.network.task === "detection";
  element("status").textContent = `Ready: ${predict.description}`;
  element("minimum").hidden = !isDetector;
  element("choose").disabled = false;
  connectFiles();
  connectThreshold();
  if (isDrawnFor(predict.preprocessing)) connectPad();
  else connectCamera();
  document.title = predict.network.network;
  element("title").textContent = predict.network.network;
  element("about").textContent =
    `${isDetector ? "A detector" : "A classifier"} with ${count} class${count > 1 ? "es" : ""}. ` +
    "Nothing leaves this device: the network runs in this page.";
}

async function reportSizes() {
  const response = await fetch("manifest.json");
  if (!response.ok) return;
  const { files } = await response.json();
  const bytes = (files["model.onnx"]?.bytes ?? 0) + (files["runtime/ort-wasm-simd-threaded.wasm"]?.bytes ?? 0);
  element("status").textContent = `Loading the network and its runtime, ${(bytes / 1e6).toFixed(0)} MB…`;
}

/** Whether a network takes small gray images, as of handwriting. */
function isDrawnFor({ mean, resolution }) {
  return mean?.length === 1 && resolution <= MAX_DRAWN_SIDE;
}

function showError(error) {
  element("error").hidden = !error;
  element("error").textContent = error ? (error.message ?? String(error)) : "";
}

/** Run the network on an image, and show both. */
async function show(image, { keepView = false } = {}) {
  const number = ++newest;
  let picture;
  try {
    picture = await openImage(image);
    const results = await predict(picture, { threshold: 0 });
    if (number !== newest) return;
    showError(null);
    shown = { results, width: picture.width, height: picture.height };
    if (!keepView) showPicture(picture);
    showResults();
  } catch (error) {
    if (number === newest) showError(error);
  } finally {
    if (picture !== image) picture?.close();
  }
}

function showPicture(picture) {
  const scale = Math.min(MAX_ENLARGEMENT, SHOWN_SIDE / Math.max(picture.width, picture.height));
  canvas.width = Math.max(1, Math.round(picture.width * scale));
  canvas.height = Math.max(1, Math.round(picture.height * scale));
  picture.draw(canvas.getContext("2d"), { scale });
  shown.background = predict.network.task === "detection" ? copyOf(canvas) : null;
  showView("picture");
}

function copyOf(source) {
  const copy = new OffscreenCanvas(source.width, source.height);
  copy.getContext("2d").drawImage(source, 0, 0);
  return copy;
}

function showResults() {
  const { results, background, width, height } = shown;
  const list = element("results");
  if (predict.network.task !== "detection") {
    showClasses(list, results.slice(0, 5));
  } else {
    const threshold = Number(element("threshold").value);
    const objects = results.filter(({ score }) => score >= threshold);
    showObjects(list, objects);
    if (background) drawBoxes(canvas, background, objects, { width, height });
    canvas.setAttribute("aria-label", `The picture, with ${objects.length} objects`);
  }
  const { preprocess, run } = predict.milliseconds;
  element("status").textContent =
    `${format(run)} ms for the network, ${format(preprocess)} ms before it · ${predict.description}`;
}

function format(milliseconds) {
  return milliseconds.toFixed(milliseconds < 10 ? 1 : 0);
}

/** Show the "picture" or the "pad", or neither. */
function showView(view) {
  element("hint").hidden = Boolean(view);
  canvas.hidden = view !== "picture";
  element("pad").hidden = view !== "pad";
  element("clear").hidden = view !== "pad";
  element("draw").setAttribute("aria-pressed", view === "pad");
}

function connectFiles() {
  const stage = element("stage");
  const open = (files, problem) => {
    const file = Array.from(files ?? []).find(({ type }) => type.startsWith("image/")) ?? files?.[0];
    if (!file) return problem && showError(problem);
    stopCamera();
    show(file);
  };
  element("choose").addEventListener("click", () => element("file").click());
  element("file").addEventListener("change", ({ target }) => {
    open(target.files);
    target.value = ""; // so that the same file can be chosen again
  });
  document.addEventListener("paste", ({ clipboardData }) => open(clipboardData?.files));
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    stage.classList.add("dragging");
  });
  document.addEventListener("dragleave", ({ relatedTarget }) => {
    if (!relatedTarget) stage.classList.remove("dragging");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    stage.classList.remove("dragging");
    open(event.dataTransfer.files, "That is not a file: save the picture, and drop the file.");
  });
}

function connectThreshold() {
  element("threshold").addEventListener("input", ({ target }) => {
    target.nextElementSibling.value = Number(target.value).toFixed(2);
    if (shown) showResults();
  });
}

function connectPad() {
  // Bright pixels are ink if most pixels of the training images are dark
  const isInkBright = predict.preprocessing.mean[0] <= 0.5;
  const pad = new DrawingPad(element("pad"), isInkBright, (drawing) => show(drawing, { keepView: true }));
  const open = () => {
    newest++;
    pad.clear();
    element("results").replaceChildren();
    element("status").textContent = `Draw something that the network knows · ${predict.description}`;
    showView("pad");
  };
  element("draw").hidden = false;
  element("draw").addEventListener("click", open);
  element("clear").addEventListener("click", open);
  open();
}

function connectCamera() {
  element("camera").hidden = false;
  element("camera").addEventListener("click", async () => {
    if (camera) return stopCamera();
    try {
      camera = await openCamera();
    } catch (error) {
      return showError(error);
    }
    element("camera").setAttribute("aria-pressed", "true");
    element("results").setAttribute("aria-live", "off"); // not to be read out for every frame
    for await (const frame of camera.frames) {
      await show(frame);
      frame.close();
    }
  });
}

function stopCamera() {
  camera?.stop();
  camera = null;
  element("camera").setAttribute("aria-pressed", "false");
  element("results").setAttribute("aria-live", "polite");
}
