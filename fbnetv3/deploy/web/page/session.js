// Open the network in ONNX Runtime: on the GPU where that is possible and pays off, otherwise in WebAssembly.

const RUNTIMES = {
  wasm: { script: "ort.wasm.min.mjs", label: "WebAssembly" },
  webgpu: { script: "ort.webgpu.min.mjs", label: "WebGPU" },
};
const MAX_THREADS = 4;

/**
 * Open model.onnx of a folder: {run(feeds), Tensor, backend, threads, description}.
 *
 * @param base URL of the folder
 * @param files the manifest's list of files
 * @param example inputs for a first run, which shows whether the backend works: a function of the Tensor class
 * @param backend "auto", "wasm" or "webgpu"
 */
export async function openSession(base, files, example, backend = "auto") {
  if (backend !== "auto" && !RUNTIMES[backend]) {
    throw new Error(`backend "${backend}" must be "auto", "wasm" or "webgpu"`);
  }
  const model = await fetchModel(new URL("model.onnx", base));
  const hasRuntime = `runtime/${RUNTIMES.webgpu.script}` in files;
  if (backend === "webgpu" && !hasRuntime) {
    throw new Error("This folder has no runtime for WebGPU: use the backend wasm.");
  }
  if (backend === "webgpu" || (backend === "auto" && hasRuntime && (await hasGpu()))) {
    try {
      return await openBackend(base, model, example, "webgpu");
    } catch (error) {
      if (backend === "webgpu") throw error;
      console.warn("WebGPU failed, so WebAssembly is used:", error);
    }
  }
  return openBackend(base, model, example, "wasm");
}

async function fetchModel(url) {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${url.pathname}: the server returned ${response.status}.`);
  return new Uint8Array(await response.arrayBuffer());
}

/** Whether there is a GPU; WebGPU emulated by the CPU is slower than WebAssembly. */
async function hasGpu() {
  const adapter = await navigator.gpu?.requestAdapter().catch(() => null);
  return Boolean(adapter) && !(adapter.info?.isFallbackAdapter ?? adapter.isFallbackAdapter);
}

// ONNX Runtime starts once; a second network waits
const openBackend = inOrder(startBackend);

async function startBackend(base, model, example, backend) {
  const { script, label } = RUNTIMES[backend];
  const folder = new URL("runtime/", base);
  const ort = await import(new URL(script, folder).href).catch((error) => {
    throw new Error(`The runtime cannot be loaded, copy the whole folder again: ${error.message}`);
  });
  // Threads share memory, which browsers allow only on cross-origin isolated pages
  const threads = globalThis.crossOriginIsolated ? Math.min(MAX_THREADS, navigator.hardwareConcurrency || 1) : 1;
  ort.env.wasm.wasmPaths = folder.href;
  ort.env.wasm.numThreads = threads;
  ort.env.logLevel = "error";
  const session = await ort.InferenceSession.create(model, { executionProviders: [backend], logSeverityLevel: 3 });
  await session.run(example(ort.Tensor));
  const description = backend === "wasm" ? `${label}, ${threads} thread${threads > 1 ? "s" : ""}` : label;
  return { run: inOrder((feeds) => session.run(feeds)), Tensor: ort.Tensor, backend, threads, description };
}

/** Let calls of a function wait for one another: a session runs one at a time. */
function inOrder(call) {
  let previous = Promise.resolve();
  return (...values) => {
    const result = previous.then(() => call(...values));
    previous = result.catch(() => {});
    return result;
  };
}
