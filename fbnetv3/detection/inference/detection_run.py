"""Detect objects in images and videos, and hand them to the outputs."""

from __future__ import annotations

import contextlib
import itertools
import logging
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar, cast

import numpy as np
from detectron2.data.detection_utils import convert_image_to_rgb, convert_PIL_to_numpy
from PIL import Image
from tqdm import tqdm

from fbnetv3.deploy.input_sources import InputImage
from fbnetv3.detection.inference.array_predictors import ArrayPredictor
from fbnetv3.detection.inference.detected_image import DetectedImage, FrameInfo
from fbnetv3.detection.inference.detection_inputs import DetectionInput
from fbnetv3.detection.inference.outputs.detection_outputs import DetectionOutput
from fbnetv3.detection.inference.score_selection import DetectionSelection
from fbnetv3.detection.inference.video.object_tracker import ObjectTracker
from fbnetv3.detection.inference.video.video_reader import VideoFrame, VideoReader
from fbnetv3.detection.inference.video.video_source import VideoSource, parse_video_source
from fbnetv3.errors import DataError, UsageError

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass
class DetectionRun:
    """What a run did."""

    num_images: int = 0
    num_frames: int = 0
    num_detections: int = 0  # in COCO results
    num_shown: int = 0  # in all other outputs
    errors: list[str] = field(default_factory=list)  # about inputs that could not be read
    seconds: float = 0.0

    def add(self, result: DetectedImage) -> None:
        """Count an image or frame."""
        self.num_detections += len(result.detections)
        self.num_shown += len(result.shown)
        if result.frame is None:
            self.num_images += 1
        else:
            self.num_frames += 1

    @property
    def images_per_second(self) -> float:
        """Images and frames per second, including reading and writing."""
        return (self.num_images + self.num_frames) / max(self.seconds, 1e-9)


def run_detection(
    predictor: ArrayPredictor,
    inputs: Sequence[DetectionInput],
    selection: DetectionSelection,
    outputs: Sequence[DetectionOutput],
    *,
    batch_size: int = 1,
    every: int = 1,
    track: bool = False,
) -> DetectionRun:
    """Detect objects in images and videos, and write all outputs.

    Inputs that cannot be read are skipped with a warning. Even after an error or Ctrl-C, the outputs have everything so
    far.

    Args:
        predictor: the detector.
        inputs: images and videos.
        selection: which detections count.
        outputs: what to write.
        batch_size: images per call of the predictor.
        every: use every n-th frame of videos.
        track: whether to track objects through each video.
    """
    run = DetectionRun()
    start = time.monotonic()
    detector = _InputDetector(predictor, selection, run.errors, batch_size, every, track)
    try:
        with _Progress(len(inputs)) as progress, contextlib.closing(detector.detect(inputs)) as results:
            for result in results:
                for output in outputs:
                    output.write(result)
                run.add(result)
                progress.show(result)
    finally:
        run.seconds = time.monotonic() - start
        # Also after an error or interrupt, and all of them even if one fails
        with contextlib.ExitStack() as stack:
            for output in reversed(outputs):
                stack.callback(output.close)
    return run


class _Progress:
    """A progress bar that counts images and frames, with their number per second; a context manager."""

    def __init__(self, num_inputs: int) -> None:
        self._bar = tqdm(total=num_inputs, unit="image", leave=False, disable=None)
        self._video = ""

    def show(self, result: DetectedImage) -> None:
        """Count an image or a frame."""
        frame = result.frame
        if frame is not None and frame.video != self._video:
            # From now on, the video counts by its frames
            self._video = frame.video
            self._bar.unit = "frame"
            self._bar.set_description(frame.video, refresh=False)
            if frame.num_frames is None:
                self._bar.total = None
            elif self._bar.total is not None:
                self._bar.total += frame.num_frames - 1
        self._bar.update()

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()


@dataclass
class _InputDetector:
    """A detector that goes on past inputs that cannot be read."""

    predictor: ArrayPredictor
    selection: DetectionSelection
    errors: list[str]  # about inputs that could not be read
    batch_size: int
    every: int  # n-th frame of videos
    track: bool
    ids: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def detect(self, inputs: Iterable[DetectionInput]) -> Generator[DetectedImage]:
        """Yield the detections in images and frames; consecutive images form batches."""
        for is_video, group in itertools.groupby(
            inputs, lambda entry: isinstance(entry.source, VideoSource)
        ):
            if is_video:
                for entry in group:
                    yield from self._detect_in_video(entry)
            else:
                for batch in batches(group, self.batch_size):
                    yield from self._detect_in_images(batch)

    def _detect_in_images(self, batch: Sequence[DetectionInput]) -> Iterator[DetectedImage]:
        pixels: list[np.ndarray] = []
        readable: list[tuple[str, int | str]] = []
        for entry in batch:
            number = next(self.ids)
            try:
                image = cast("InputImage", entry.source).read().render()
            except DataError as error:
                self._report(error)
                continue
            pixels.append(convert_PIL_to_numpy(image, self.predictor.input_format))
            readable.append((entry.name, number if entry.image_id is None else entry.image_id))
        detections = self.predictor(pixels) if pixels else []
        for (name, image_id), array, instances in zip(readable, pixels, detections, strict=True):
            results, shown = self.selection.select(instances)
            rgb = np.ascontiguousarray(convert_image_to_rgb(array, self.predictor.input_format))
            yield DetectedImage(name, image_id, rgb, results, shown)

    def _detect_in_video(self, entry: DetectionInput) -> Iterator[DetectedImage]:
        try:
            yield from detect_video(
                self.predictor,
                cast("VideoSource", entry.source),
                selection=self.selection,
                batch_size=self.batch_size,
                every=self.every,
                track=self.track,
                name=entry.name,
                ids=self.ids,
            )
        except DataError as error:
            self._report(error)

    def _report(self, error: DataError) -> None:
        self.errors.append(str(error))
        logger.warning("%s", error)


def detect_video(
    predictor: ArrayPredictor,
    source: str | int | VideoSource,
    *,
    selection: DetectionSelection | None = None,
    batch_size: int = 1,
    every: int = 1,
    track: bool = False,
    name: str = "",
    ids: Iterator[int] | None = None,
) -> Iterator[DetectedImage]:
    """Yield the objects in each frame of a video as it is read.

    Args:
        predictor: the detector.
        source: a file, the number of a camera, or the address of a stream; see `parse_video_source`.
        selection: which detections count; default: all, and those with a score of at least 0.5 are `shown`.
        batch_size: frames per call of the predictor; always 1 for live sources.
        every: use every n-th frame.
        track: whether to add `track_ids` to the detections, which needs the package `trackers`.
        name: name of the video; default: that of the source.
        ids: ids of the frames; default: from 1.

    Raises:
        DataError: the video cannot be read.
        MissingPackageError: OpenCV, or the package `trackers`, is not installed.
        UsageError: the source is not a video.
    """
    video = source if isinstance(source, VideoSource) else parse_video_source(source)
    if video is None:
        raise UsageError(f"{source}: is not the name of a video; for a stream, write stream:{source}")
    selection = selection or DetectionSelection(list(predictor.classes().values()))
    ids = itertools.count(1) if ids is None else ids
    name = name or video.name
    with VideoReader(video, every) as reader:
        tracker = ObjectTracker(reader.fps) if track else None
        for batch in batches(reader, 1 if video.is_live else batch_size):
            detections = predictor([_in_format(frame.pixels, predictor.input_format) for frame in batch])
            for frame, instances in zip(batch, detections, strict=True):
                results, shown = selection.select(instances, tracker)
                rgb = np.ascontiguousarray(frame.pixels[:, :, ::-1])
                info = _frame_info(name, frame, reader)
                yield DetectedImage(f"{name}/{frame.number:06d}", next(ids), rgb, results, shown, info)


def _frame_info(name: str, frame: VideoFrame, reader: VideoReader) -> FrameInfo:
    return FrameInfo(
        video=name,
        number=frame.number,
        seconds=frame.seconds,
        fps=reader.fps,
        num_frames=reader.num_frames,
        is_live=reader.source.is_live,
    )


def _in_format(frame: np.ndarray, input_format: str) -> np.ndarray:
    """Convert a frame from BGR."""
    if input_format == "BGR":
        return frame
    return convert_PIL_to_numpy(Image.fromarray(frame[:, :, ::-1]), input_format)


def batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield lists of up to `size` items."""
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
