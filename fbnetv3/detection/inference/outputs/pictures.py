"""Pictures of the images, and videos, with their detections."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fbnetv3.detection.inference.detected_image import DetectedImage
from fbnetv3.detection.inference.outputs.detection_outputs import (
    DETECTION_OUTPUTS,
    DetectionOutput,
    OutputSettings,
    different_path,
)
from fbnetv3.detection.inference.video.video_writer import VideoWriter, check_codec
from fbnetv3.detection.inference.visualize import PICTURE_SUFFIXES, draw_detections, save_picture

PICTURES_FOLDER = "pictures"
VIDEOS_FOLDER = "videos"


@DETECTION_OUTPUTS.register(name="pictures")
class Pictures(DetectionOutput):
    """`pictures/NAME` for each image, and `videos/NAME.mp4` for each video."""

    def __init__(self, settings: OutputSettings) -> None:
        super().__init__(settings)
        check_codec(settings.codec)
        self._taken: set[Path] = set()
        self._video = ""
        self._writer: VideoWriter | None = None

    def write(self, image: DetectedImage) -> None:
        """Write a picture, or a frame of a video."""
        picture = draw_detections(image.pixels, image.shown, self.settings.names, self.settings.skeleton)
        frame = image.frame
        if frame is None:
            save_picture(picture, self._picture_path(image.name))
            return
        if self._writer is None or frame.video != self._video:
            self._close_video()
            self._video = frame.video
            path = self.settings.folder / VIDEOS_FOLDER / f"{frame.video.removesuffix('.mp4')}.mp4"
            self._writer = VideoWriter(
                different_path(path, self._taken),
                frame.fps,
                is_live=frame.is_live,
                codec=self.settings.codec,
            )
        self._writer.write(np.asarray(picture), frame.seconds)

    def _picture_path(self, name: str) -> Path:
        """Return the path for an image's picture: ".png" is appended to names that are neither JPEG nor PNG."""
        suffix = "" if Path(name).suffix.lower() in PICTURE_SUFFIXES else ".png"
        return different_path(self.settings.folder / PICTURES_FOLDER / f"{name}{suffix}", self._taken)

    def _close_video(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def close(self) -> None:
        """Complete the last video."""
        self._close_video()

    def paths(self) -> dict[str, Path]:
        """Return the folders."""
        folder = self.settings.folder
        return {
            name: folder / name
            for name in (PICTURES_FOLDER, VIDEOS_FOLDER)
            if any(folder / name in path.parents for path in self._taken)
        }
