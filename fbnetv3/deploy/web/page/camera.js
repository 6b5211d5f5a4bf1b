// Frames of the device's camera.

const PROBLEMS = {
  NotAllowedError: "The camera may not be used: allow it in the browser's settings for this page.",
  NotFoundError: "This device has no camera.",
  NotReadableError: "The camera is used by another program.",
};

/** Open the camera, on phones the one at the back: {frames, an async iterable of ImageBitmap, stop()}. */
export async function openCamera() {
  if (!navigator.mediaDevices) {
    throw new Error("Browsers give the camera only to pages from https:// addresses or from localhost.");
  }
  const video = document.createElement("video");
  video.muted = true;
  video.playsInline = true;
  try {
    video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  } catch (error) {
    throw new Error(PROBLEMS[error.name] ?? `The camera cannot be opened: ${error.message}`);
  }
  await video.play();
  const stop = () => {
    video.srcObject?.getTracks().forEach((track) => track.stop());
    video.srcObject = null;
  };
  return { frames: framesOf(video), stop };
}

async function* framesOf(video) {
  while (video.srcObject) {
    await new Promise((resolve) => requestAnimationFrame(resolve));
    if (video.srcObject && video.videoWidth) yield await createImageBitmap(video);
  }
}
