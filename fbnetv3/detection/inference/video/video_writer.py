"""Write pictures as a video."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

import numpy as np

from fbnetv3.detection.inference.video.video_reader import import_cv2
from fbnetv3.errors import OutputError, UsageError
from fbnetv3.utils.files import PARTIAL_PREFIX, as_output_error, make_folder
from fbnetv3.utils.logging_setup import quiet_standard_error

# H.264 plays everywhere, but OpenCV's packages on PyPI cannot write it; MPEG-4 plays everywhere but in browsers
_CODECS = ("avc1", "mp4v")


def check_codec(codec: str) -> None:
    """Raise a UsageError unless a codec has four characters, or none for the default."""
    if len(codec) not in (0, 4):
        raise UsageError(f"codec {codec!r} must have four characters, such as mp4v or vp09")


class VideoWriter:
    """Writes an MP4 file, which appears when it is closed; closing it early leaves a playable video.

    Args:
        path: the file.
        fps: frames per second.
        is_live: whether to repeat pictures until the time of the next one, because they come irregularly.
        codec: four-character code; default: H.264 if OpenCV can write it, otherwise MPEG-4.
    """

    def __init__(self, path: Path, fps: float, *, is_live: bool = False, codec: str = "") -> None:
        self.path = path
        self._fps = fps
        self._is_live = is_live
        check_codec(codec)
        self._codecs = (codec,) if codec else _CODECS
        self._partial = path.with_name(f"{PARTIAL_PREFIX}{secrets.token_hex(8)}{path.suffix}")
        self._writer: Any = None
        self._size = (0, 0)
        self._num_written = 0
        self._start = 0.0

    def write(self, picture: np.ndarray, seconds: float = 0.0) -> None:
        """Write a picture, uint8 (height, width, 3) in RGB; `seconds` is its time, for live sources."""
        cv2 = import_cv2()
        height, width = picture.shape[:2]
        # Encoders need even sides: repeat the last row or column
        frame = np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), "edge")[:, :, ::-1]
        if self._writer is None:
            self._size = frame.shape[1], frame.shape[0]
            self._start = seconds
            self._writer = self._open(cv2)
        elif (frame.shape[1], frame.shape[0]) != self._size:  # a stream may change its size
            frame = cv2.resize(np.ascontiguousarray(frame), self._size)
        frame = np.ascontiguousarray(frame)
        due = round((seconds - self._start) * self._fps) + 1 if self._is_live else 0
        for _ in range(max(1, due - self._num_written)):
            self._writer.write(frame)
            self._num_written += 1

    def _open(self, cv2: Any) -> Any:
        make_folder(self.path.parent)
        with as_output_error(self.path):
            self._partial.touch()  # OpenCV does not say why it cannot write
        for codec in self._codecs:
            with quiet_standard_error():
                writer = cv2.VideoWriter(
                    str(self._partial), cv2.VideoWriter.fourcc(*codec), self._fps, self._size
                )
            if writer.isOpened():
                return writer
            writer.release()
        self._partial.unlink(missing_ok=True)
        width, height = self._size
        raise OutputError(
            f"{self.path}: OpenCV cannot write a video of {width} x {height} pixels with the codec "
            f"{' or '.join(self._codecs)}"
        )

    def close(self) -> None:
        """Complete the file."""
        if self._writer is not None:
            self._writer.release()
            self._writer = None
            with as_output_error(self.path):
                self._partial.replace(self.path)
