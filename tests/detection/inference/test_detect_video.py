"""Detection in videos: in Python, and with the tool's outputs."""

import csv
import json

import numpy as np
import pytest

from fbnetv3.deploy.input_sources import InputImage
from fbnetv3.detection.inference.detection_inputs import DetectionInput, find_inputs
from fbnetv3.detection.inference.detection_run import detect_video, run_detection
from fbnetv3.detection.inference.outputs import OutputSettings, build_outputs
from fbnetv3.detection.inference.score_selection import DetectionSelection, parse_score_thresholds
from fbnetv3.errors import UsageError
from tests.detection.inference.squares import (
    COLORS,
    SquareDetector,
    moving_squares,
    picture,
    read_video,
    save_video,
)

pytest.importorskip("cv2", reason="pip install opencv-python-headless")


@pytest.fixture
def clip(tmp_path):
    """A video of ten frames, 10 per second, in which red moves to the right and blue to the left."""
    return save_video(tmp_path / "in" / "clip.mp4", moving_squares())


def run(tmp_path, sources, *names, detector=None, selection=None, **arguments):
    """Detect with the tool's outputs."""
    detector = detector or SquareDetector()
    settings = OutputSettings(tmp_path / "out", detector.classes())
    selection = selection or DetectionSelection(settings.names)
    inputs = find_inputs([str(source) for source in sources])
    return run_detection(detector, inputs, selection, build_outputs(settings, names), **arguments)


def table(folder):
    with (folder / "out" / "detections.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_boxes_follow_the_objects(clip):
    frames = list(detect_video(SquareDetector(), str(clip)))
    assert [image.name for image in frames[:2]] == ["clip.mp4/000000", "clip.mp4/000001"]
    assert [image.image_id for image in frames] == list(range(1, 11))
    for i, image in enumerate(frames):
        assert image.frame.seconds == pytest.approx(i / 10)
        assert image.pixels.shape == (48, 64, 3)
        (red, blue) = image.detections.pred_boxes.tensor
        assert red.tolist() == pytest.approx([2 + 3 * i, 4, 14 + 3 * i, 16], abs=1)
        assert blue.tolist() == pytest.approx([48 - 3 * i, 28, 60 - 3 * i, 40], abs=1)


def test_frames_are_read_in_the_format_of_the_detector(clip):
    formats = {}
    for name in ("RGB", "BGR", "L"):
        seen = []

        class Recorder(SquareDetector):
            input_format = name

            def __call__(self, images, seen=seen):
                seen += [image.copy() for image in images]
                return super().__call__([np.zeros((48, 64, 3), np.uint8)] * len(images))

        next(detect_video(Recorder(), str(clip)))
        formats[name] = seen[0]
    assert np.array_equal(formats["RGB"], formats["BGR"][:, :, ::-1])
    assert formats["L"].shape == (48, 64, 1)
    assert abs(formats["RGB"][8, 8].astype(int) - COLORS["red"]).max() < 30


def test_batches_and_skipped_frames(clip):
    detector = SquareDetector()
    frames = list(detect_video(detector, str(clip), every=3, batch_size=3))
    assert [image.frame.number for image in frames] == [0, 3, 6, 9]
    assert detector.batches == [3, 1]
    detector = SquareDetector()
    list(detect_video(detector, f"stream:{clip}", batch_size=3))
    assert set(detector.batches) == {1}  # live sources are not to wait


def test_not_a_video():
    with pytest.raises(
        UsageError, match="http://host/x: is not the name of a video; for a stream, write stream:"
    ):
        next(detect_video(SquareDetector(), "http://host/x"))


def test_tracks(clip):
    pytest.importorskip("trackers", reason="pip install trackers")
    frames = list(detect_video(SquareDetector(), str(clip), track=True))
    tracks = [image.shown.track_ids.tolist() for image in frames]
    assert tracks[0] == [-1, -1]
    assert sorted(tracks[1]) == [1, 2] and tracks[1:] == [tracks[1]] * 9


def test_a_hidden_object_is_shown_as_long_as_it_is_tracked(clip):
    """Blue has too low a score to be shown, but red has not; then red's score falls."""
    pytest.importorskip("trackers", reason="pip install trackers")

    class Fading(SquareDetector):
        def __call__(self, images):
            self.scores = (0.9 if len(self.batches) < 5 else 0.3, 0.3)
            return super().__call__(images)

    shown = [len(image.shown) for image in detect_video(Fading(), str(clip), track=True)]
    assert shown == [1] * 10
    shown = [len(image.shown) for image in detect_video(Fading(), str(clip))]
    assert shown == [1] * 5 + [0] * 5


def test_all_outputs(tmp_path, clip):
    pytest.importorskip("trackers", reason="pip install trackers")
    result = run(tmp_path, [clip], "csv", "yolo", "crops", track=True, every=2)
    assert (result.num_images, result.num_frames, result.num_detections) == (0, 5, 10)
    assert result.images_per_second > 0
    rows = table(tmp_path)
    assert [(row["frame"], row["seconds"]) for row in rows[::2]] == [
        (str(i), f"{i / 10:.3f}") for i in (0, 2, 4, 6, 8)
    ]
    assert {row["class"]: row["track"] for row in rows[:2]} == {"red": "", "blue": ""}
    assert {row["track"] for row in rows[2:]} == {"1", "2"}
    out = tmp_path / "out"
    results = json.loads((out / "coco_instances_results.json").read_text())
    assert [r.get("track_id") for r in results] == [int(row["track"] or 0) or None for row in rows]
    assert len(list((out / "labels" / "clip.mp4").iterdir())) == 5
    assert len(list((out / "crops" / "blue").iterdir())) == 5
    frames, fps = read_video(out / "videos" / "clip.mp4")
    assert (len(frames), fps) == (5, 5)  # as fast as the original


def test_the_video_shows_the_boxes(tmp_path):
    """At a size that is odd, and with the frames of the original around the boxes."""
    frames = moving_squares(4, height=121, width=161)
    run(tmp_path, [save_video(tmp_path / "odd.avi", [np.pad(f, ((0, 1), (0, 1), (0, 0))) for f in frames])])
    drawn, fps = read_video(tmp_path / "out" / "videos" / "odd.avi.mp4")
    assert fps == 10 and len(drawn) == 4
    for image, original in zip(drawn, frames, strict=True):
        difference = np.abs(image[:121, :161].astype(int) - original).max(2) > 60
        assert 50 < difference.sum() < 6000  # boxes and labels
        assert not difference[60:].any()


def test_images_and_videos_together(tmp_path, clip):
    from PIL import Image

    for name in ("a.png", "z.png"):
        Image.fromarray(picture(red=(5, 5))).save(clip.parent / name)
    (clip.parent / "broken.mp4").write_text("no video")
    result = run(tmp_path, [clip.parent, tmp_path / "nowhere.png"], "csv", batch_size=4)
    assert (result.num_images, result.num_frames) == (2, 10)
    assert [error.split(": ")[0].rpartition("/")[2] for error in result.errors] == [
        "broken.mp4",
        "nowhere.png",
    ]
    listed = json.loads((tmp_path / "out" / "images.json").read_text())["images"]
    ids = [image["id"] for image in listed]
    assert len(set(ids)) == 12
    assert sorted(path.name for path in (tmp_path / "out" / "pictures").iterdir()) == ["a.png", "z.png"]


def test_classes_and_thresholds(tmp_path, clip):
    selection = DetectionSelection(list(COLORS), parse_score_thresholds(["red=0.95"]), None)
    run(tmp_path, [clip], "csv", selection=selection)
    assert {row["class"] for row in table(tmp_path)} == {"blue"}


def test_an_interrupt_leaves_a_playable_video(tmp_path, clip):
    class Interrupted(SquareDetector):
        def __call__(self, images):
            if len(self.batches) == 4:
                raise KeyboardInterrupt
            return super().__call__(images)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, [clip], "csv", detector=Interrupted())
    frames, _ = read_video(tmp_path / "out" / "videos" / "clip.mp4")
    assert len(frames) == 4
    assert len(table(tmp_path)) == 8
    assert len(json.loads((tmp_path / "out" / "images.json").read_text())["images"]) == 4


def test_a_stream_that_drops_leaves_its_results(tmp_path, clip, caplog):
    caplog.set_level("INFO", "fbnetv3")
    result = run(tmp_path, [f"stream:{clip}"])
    assert result.num_frames >= 1 and not result.errors
    assert "clip.mp4: the stream has ended after 10 frames" in caplog.text
    assert len(read_video(tmp_path / "out" / "videos" / "clip.mp4")[0]) >= 1


def test_an_output_that_fails_does_not_keep_others_from_closing(tmp_path, clip):
    detector = SquareDetector()
    settings = OutputSettings(tmp_path / "out", detector.classes())
    json_output, pictures = build_outputs(settings)

    def fail():
        raise OSError("no space left")

    pictures.close = fail
    inputs = [DetectionInput(InputImage(str(clip.with_suffix(".png"))), "x.png")]
    with pytest.raises(OSError, match="no space"):
        run_detection(detector, inputs, DetectionSelection(settings.names), [json_output, pictures])
    assert (tmp_path / "out" / "images.json").exists()
