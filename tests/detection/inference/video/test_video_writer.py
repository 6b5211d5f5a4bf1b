"""Videos of pictures."""

import numpy as np
import pytest

from fbnetv3.detection.inference.video.video_writer import VideoWriter
from fbnetv3.errors import OutputError, UsageError
from tests.detection.inference.squares import moving_squares, picture, read_video

pytest.importorskip("cv2", reason="pip install opencv-python-headless")


@pytest.mark.parametrize("size", [(48, 64), (49, 65), (100, 177)])
def test_frames_are_the_pictures_with_even_sides(tmp_path, size):
    pictures = moving_squares(5, height=size[0], width=size[1])
    writer = VideoWriter(tmp_path / "below" / "a.mp4", 12.5)
    for image in pictures:
        writer.write(image)
    writer.close()
    frames, fps = read_video(tmp_path / "below" / "a.mp4")
    assert fps == 12.5 and len(frames) == 5
    height, width = size
    assert frames[0].shape == (height + height % 2, width + width % 2, 3)
    for frame, expected in zip(frames, pictures, strict=True):
        assert np.abs(frame[:height, :width].astype(int) - expected).mean() < 6
    assert [path.name for path in (tmp_path / "below").iterdir()] == ["a.mp4"]


def test_a_live_video_has_the_length_of_its_recording(tmp_path):
    """Frames at 0, 0.1, 0.5 and 1 seconds, written at 10 per second: those before a gap are repeated."""
    writer = VideoWriter(tmp_path / "a.mp4", 10, is_live=True)
    for x, seconds in enumerate((3.0, 3.1, 3.5, 4.0)):
        writer.write(picture(red=(10 * x, 4)), seconds)
    writer.close()
    frames, _ = read_video(tmp_path / "a.mp4")
    assert len(frames) == 11


def test_a_stream_that_changes_its_size_keeps_the_first(tmp_path):
    writer = VideoWriter(tmp_path / "a.mp4", 10)
    writer.write(picture(48, 64))
    writer.write(picture(96, 128))
    writer.close()
    frames, _ = read_video(tmp_path / "a.mp4")
    assert [frame.shape for frame in frames] == [(48, 64, 3)] * 2


def test_codecs(tmp_path):
    writer = VideoWriter(tmp_path / "a.mp4", 10, codec="vp09")
    writer.write(picture())
    writer.close()
    assert len(read_video(tmp_path / "a.mp4")[0]) == 1
    with pytest.raises(UsageError, match="codec 'h264!' must have four characters"):
        VideoWriter(tmp_path / "b.mp4", 10, codec="h264!")
    with pytest.raises(
        OutputError, match="b.mp4: OpenCV cannot write a video of 64 x 48 pixels with the codec zzzz"
    ):
        VideoWriter(tmp_path / "b.mp4", 10, codec="zzzz").write(picture())
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file: cannot be written"):
        VideoWriter(tmp_path / "file" / "c.mp4", 10).write(picture())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "file"]
