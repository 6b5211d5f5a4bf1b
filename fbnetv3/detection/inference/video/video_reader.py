"""Read the frames of video files, cameras and streams with OpenCV."""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from fbnetv3.detection.inference.video.video_source import VideoSource
from fbnetv3.errors import DataError, MissingPackageError
from fbnetv3.utils.downloads import is_url
from fbnetv3.utils.logging_setup import quiet_standard_error

logger = logging.getLogger(__name__)

_DEFAULT_FPS = 30.0  # of sources that do not say, or say nonsense
_MAX_FPS = 1000.0
_TIMEOUT_MS = 10_000  # without a frame, after which a stream counts as dropped
_MIN_DECODED = 0.9  # fraction of the stated frames; containers may state slightly wrong numbers


@dataclass(frozen=True)
class VideoFrame:
    """A frame: its number in the video, from 0, its time in seconds, and its pixels, uint8 (H, W, 3) in BGR."""

    number: int
    seconds: float
    pixels: np.ndarray


def import_cv2() -> Any:
    """Import OpenCV, whose decoders then report problems only through their return values."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # silent
    try:
        import cv2
    except ImportError as error:
        # Also right where opencv-python is installed, which servers may lack the libraries for
        install = "pip install --force-reinstall --no-deps opencv-python-headless"
        raise MissingPackageError(f"videos need OpenCV ({error}): {install}") from None
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    return cv2


class VideoReader:
    """The frames of a video, for one iteration; a context manager.

    A stream that drops, or a truncated file, ends the iteration. Live sources skip frames that arrive while earlier
    ones are processed.

    Args:
        source: the video.
        every: read every n-th frame only.

    Raises:
        DataError: the video cannot be opened.
    """

    fps: float
    """Frames per second that the iteration yields if it keeps up, in the time of the video."""
    num_frames: int | None
    """Number of frames that the iteration will yield; None if it is unknown."""

    def __init__(self, source: VideoSource, every: int = 1) -> None:
        self.source = source
        self.every = every
        self._cv2 = import_cv2()
        self._capture = self._open()
        fps = self._capture.get(self._cv2.CAP_PROP_FPS)
        self._source_fps = fps if math.isfinite(fps) and 0 < fps <= _MAX_FPS else _DEFAULT_FPS
        self.fps = self._source_fps / every
        count = self._capture.get(self._cv2.CAP_PROP_FRAME_COUNT)
        is_counted = not source.is_live and 0 < count < 2**31
        self._stated_frames = int(count) if is_counted else None
        self.num_frames = -(-int(count) // every) if is_counted else None

    def _open(self) -> Any:
        cv2 = self._cv2
        address = self.source.address
        if isinstance(address, int):
            arguments: tuple[Any, ...] = (address,)
        else:
            if not self.source.is_live and not is_url(address) and not os.path.exists(address):
                raise DataError(f"{address}: no such file")
            limits = [
                cv2.CAP_PROP_OPEN_TIMEOUT_MSEC,
                _TIMEOUT_MS,
                cv2.CAP_PROP_READ_TIMEOUT_MSEC,
                _TIMEOUT_MS,
            ]
            is_device = os.path.exists(address) and self.source.is_live
            arguments = (address,) if is_device else (address, cv2.CAP_FFMPEG, limits)
        with quiet_standard_error():
            capture = cv2.VideoCapture(*arguments)
        if not capture.isOpened():
            capture.release()
            if isinstance(address, int):
                raise DataError(f"camera {address} cannot be opened: is it connected, and not in use?")
            noun = "no answer" if self.source.is_live else "not a video that OpenCV can read"
            raise DataError(f"{self._shown_name()}: cannot be opened ({noun})")
        return capture

    def _shown_name(self) -> str:
        """Return the path of a file, or the public name of anything else."""
        address = self.source.address
        is_file = isinstance(address, str) and not self.source.is_live and not is_url(address)
        return str(address) if is_file else self.source.name

    def __iter__(self) -> Iterator[VideoFrame]:
        frames = self._live_frames() if self.source.is_live else self._all_frames()
        last = -1
        for frame in frames:
            last = frame.number
            yield frame
        if last < 0:
            raise DataError(f"{self._shown_name()}: has no frame that can be decoded")
        if self.source.is_live:
            logger.info("%s: the stream has ended after %d frames", self._shown_name(), last + 1)

    def _all_frames(self) -> Iterator[VideoFrame]:
        cv2 = self._cv2
        number = 0
        while self._capture.grab():  # decodes; retrieving converts to BGR
            if number % self.every == 0:
                is_read, pixels = self._capture.retrieve()
                if not is_read:
                    break
                milliseconds = self._capture.get(cv2.CAP_PROP_POS_MSEC)
                seconds = milliseconds / 1000 if milliseconds > 0 else number / self._source_fps
                yield VideoFrame(number, seconds, pixels)
            number += 1
        stated = self._stated_frames
        if number and stated and number < _MIN_DECODED * stated:
            logger.warning("%s: ends after %d of its %d frames", self._shown_name(), number, stated)

    def _live_frames(self) -> Iterator[VideoFrame]:
        frames = _NewestFrame(self._capture, self.every)
        try:
            while (frame := frames.wait()) is not None:
                yield frame
        finally:
            frames.stop()

    def close(self) -> None:
        """Close the file, camera or connection."""
        self._capture.release()

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _NewestFrame:
    """Reads a live source in a thread, and keeps only its newest frame: a queue would fall behind."""

    def __init__(self, capture: Any, every: int) -> None:
        self._capture = capture
        self._every = every
        self._frame: VideoFrame | None = None
        self._has_ended = False
        self._is_stopped = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._read, name="video", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        start = time.monotonic()
        number = 0
        while not self._is_stopped:
            is_read, pixels = self._capture.read()
            if not is_read:
                break
            if number % self._every == 0:
                with self._changed:
                    self._frame = VideoFrame(number, time.monotonic() - start, pixels)
                    self._changed.notify()
            number += 1
        with self._changed:
            self._has_ended = True
            self._changed.notify()

    def wait(self) -> VideoFrame | None:
        """Return the newest frame as soon as there is one that was not returned before; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._frame is not None or self._has_ended)
            frame, self._frame = self._frame, None
            return frame

    def stop(self) -> None:
        """End the thread."""
        self._is_stopped = True
        self._thread.join(timeout=1 + _TIMEOUT_MS / 1000)
