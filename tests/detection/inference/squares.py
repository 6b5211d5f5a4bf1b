"""A video of colored squares, and a detector that finds them exactly."""

import numpy as np
import torch
from detectron2.structures import Boxes, Instances

COLORS = {"red": (230, 20, 20), "blue": (20, 20, 230)}
SIZE = 12  # pixels


class SquareDetector:
    """Finds one square of each color; `scores` are those of the colors."""

    input_format = "RGB"

    def __init__(self, scores=(0.9, 0.6)):
        self.scores = scores
        self.batches = []  # sizes

    def classes(self, categories=None):
        if categories is not None:
            return {category["id"]: category["name"] for category in categories}
        return dict(enumerate(COLORS, 1))

    def __call__(self, images):
        self.batches.append(len(images))
        return [self._detect(image) for image in images]

    def _detect(self, image):
        boxes, scores, classes = [], [], []
        for index, color in enumerate(COLORS.values()):
            rows, columns = np.nonzero(np.abs(image.astype(int) - color).max(2) < 90)
            if len(rows):
                boxes.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
                scores.append(self.scores[index])
                classes.append(index)
        instances = Instances(image.shape[:2])
        instances.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
        instances.scores = torch.tensor(scores)
        instances.pred_classes = torch.tensor(classes, dtype=torch.int64)
        return instances


def picture(height=48, width=64, **corners):
    """Return an image, uint8 (height, width, 3) in RGB, with squares: `picture(red=(8, 10))` is x, y of its corner."""
    pixels = np.full((height, width, 3), 128, np.uint8)
    for name, (x, y) in corners.items():
        pixels[y : y + SIZE, x : x + SIZE] = COLORS[name]
    return pixels


def moving_squares(count=10, **size):
    """Return frames in which red moves to the right and blue to the left."""
    return [picture(**size, red=(2 + 3 * i, 4), blue=(48 - 3 * i, 28)) for i in range(count)]


def save_video(path, frames, fps=10.0):
    """Write frames, uint8 (height, width, 3) in RGB, with OpenCV itself."""
    import cv2

    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = frames[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), fps, (width, height))
    assert writer.isOpened()
    for frame in frames:
        writer.write(np.ascontiguousarray(frame[:, :, ::-1]))
    writer.release()
    return path


def read_video(path):
    """Return the frames, uint8 (height, width, 3) in RGB, and the frames per second, with OpenCV itself."""
    import cv2

    capture = cv2.VideoCapture(str(path))
    frames = []
    while True:
        is_read, pixels = capture.read()
        if not is_read:
            return frames, capture.get(cv2.CAP_PROP_FPS)
        frames.append(pixels[:, :, ::-1])
