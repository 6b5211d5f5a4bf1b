"""Frames of videos: numbers, times, and videos that end early."""

import sys

import numpy as np
import pytest

from fbnetv3.detection.inference.video.video_reader import VideoReader
from fbnetv3.detection.inference.video.video_source import parse_video_source
from fbnetv3.errors import DataError, MissingPackageError
from tests.detection.inference.squares import moving_squares, save_video

pytest.importorskip("cv2", reason="pip install opencv-python-headless")


def read(source, every=1):
    with VideoReader(parse_video_source(source), every) as reader:
        return reader, list(reader)


def test_frames_have_numbers_times_and_colors(tmp_path):
    frames = moving_squares(7)
    reader, actual = read(save_video(tmp_path / "a.mp4", frames, fps=12.5))
    assert (reader.fps, reader.num_frames) == (12.5, 7)
    assert [frame.number for frame in actual] == list(range(7))
    assert [frame.seconds for frame in actual] == pytest.approx([0.08 * i for i in range(7)])
    for frame, expected in zip(actual, frames, strict=True):
        assert np.abs(frame.pixels[:, :, ::-1].astype(int) - expected).mean() < 6  # MPEG-4 is lossy


def test_every_third_frame(tmp_path):
    reader, frames = read(save_video(tmp_path / "a.mp4", moving_squares(7), fps=12), every=3)
    assert [frame.number for frame in frames] == [0, 3, 6]
    assert (reader.fps, reader.num_frames) == (4, 3)
    assert frames[2].seconds == pytest.approx(0.5)


def test_a_truncated_file_ends_with_what_it_has(tmp_path, caplog):
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (48, 64, 3), np.uint8) for _ in range(20)]
    import cv2

    path = tmp_path / "a.avi"  # whose index is at the end, and not needed
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 48))
    for frame in noise:
        writer.write(frame)
    writer.release()
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    _, frames = read(path)
    assert 5 < len(frames) < 15
    assert f"{path}: ends after {len(frames)} of its 20 frames" in caplog.text


def test_what_is_no_video(tmp_path):
    text = tmp_path / "text.mp4"
    text.write_text("no video")
    for source, message in (
        (text, "text.mp4: cannot be opened (not a video that OpenCV can read)"),
        (tmp_path / "nowhere.mp4", "nowhere.mp4: no such file"),
        ("99", "camera 99 cannot be opened: is it connected"),
        ("rtsp://me:secret@127.0.0.1:9/x", "127.0.0.1_x: cannot be opened (no answer)"),
    ):
        with pytest.raises(DataError) as error:
            read(source)
        assert message in str(error.value) and "secret" not in str(error.value)


def test_a_slow_reader_of_a_live_source_gets_the_newest_frames(tmp_path):
    """A file that is read as a stream arrives at once: the first frame may be seen, and the last one is."""
    save_video(tmp_path / "a.mp4", moving_squares(30))
    reader, frames = read(f"stream:{tmp_path / 'a.mp4'}")
    numbers = [frame.number for frame in frames]
    assert reader.num_frames is None
    assert numbers == sorted(set(numbers)) and numbers[-1] == 29


def test_opencv_is_optional(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(
        MissingPackageError, match="videos need OpenCV .*: pip install .*opencv-python-headless"
    ):
        VideoReader(parse_video_source(tmp_path / "a.mp4"))
