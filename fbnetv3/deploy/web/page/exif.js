// Find the EXIF orientation of JPEG and WebP files.

const NONE = { orientation: 1, position: -1 };
const ORIENTATION_TAG = 0x0112;
const ENTRY_BYTES = 12;
const APP1 = 0xe1;
const START_OF_SCAN = 0xda;

/** Return the orientation, 1 to 8, and the position of its two bytes; 1 and -1 if the file has none. */
export function findOrientation(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  try {
    if (view.getUint16(0) === 0xffd8) return inJpeg(view);
    if (text(view, 0, 4) === "RIFF" && text(view, 8, 4) === "WEBP") return inWebp(view);
  } catch (error) {
    if (!(error instanceof RangeError)) throw error; // truncated data
  }
  return NONE;
}

function inJpeg(view) {
  for (let position = 2; view.getUint8(position) === 0xff; ) {
    const marker = view.getUint8(position + 1);
    if (marker === START_OF_SCAN) break;
    if (marker === APP1 && text(view, position + 4, 6) === "Exif\0\0") return inTiff(view, position + 10);
    position += 2 + view.getUint16(position + 2);
  }
  return NONE;
}

function inWebp(view) {
  for (let position = 12; position < view.byteLength; ) {
    const size = view.getUint32(position + 4, true);
    if (text(view, position, 4) === "EXIF") {
      // Some programs write the header that JPEGs have
      const start = position + 8;
      return inTiff(view, text(view, start, 6) === "Exif\0\0" ? start + 6 : start);
    }
    position += 8 + size + (size % 2);
  }
  return NONE;
}

function inTiff(view, start) {
  const isLittle = text(view, start, 2) === "II";
  const folder = start + view.getUint32(start + 4, isLittle);
  const count = view.getUint16(folder, isLittle);
  for (let i = 0; i < count; i++) {
    const entry = folder + 2 + i * ENTRY_BYTES;
    if (view.getUint16(entry, isLittle) !== ORIENTATION_TAG) continue;
    const orientation = view.getUint16(entry + 8, isLittle);
    return orientation >= 1 && orientation <= 8 ? { orientation, position: entry + 8 } : NONE;
  }
  return NONE;
}

function text(view, position, length) {
  return String.fromCharCode(...Array.from({ length }, (_, i) => view.getUint8(position + i)));
}
