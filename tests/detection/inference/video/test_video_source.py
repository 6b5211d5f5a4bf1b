"""Names of videos, cameras and streams."""

import pytest

from fbnetv3.detection.inference.video.video_source import VideoSource, parse_video_source
from fbnetv3.errors import UsageError


@pytest.mark.parametrize(
    ("text", "address", "name"),
    [
        ("0", 0, "camera_0"),
        ("webcam:2", 2, "camera_2"),
        ("/dev/null", "/dev/null", "camera_null"),
        ("rtsp://me:secret@10.0.0.5:554/door/1", "rtsp://me:secret@10.0.0.5:554/door/1", "10.0.0.5_door_1"),
        ("https://host/live/a.m3u8?key=1", "https://host/live/a.m3u8?key=1", "host_live_a.m3u8"),
        ("stream:http://host/camera", "http://host/camera", "host_camera"),
    ],
)
def test_live_sources(text, address, name):
    assert parse_video_source(text) == VideoSource(address, name, is_live=True)


def test_files(tmp_path):
    clip = tmp_path / "clip.MP4"
    assert parse_video_source(clip) == VideoSource(str(clip), "clip.MP4", is_live=False)
    url = "https://host/clip.mp4?size=2"
    assert parse_video_source(url) == VideoSource(url, "host_clip.mp4", is_live=False)


def test_others_are_no_videos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "7").mkdir()  # a folder, not the seventh camera
    for text in ("a.png", "7", "-", "photos/*.jpg", "https://host/a.jpg", "~/clips"):
        assert parse_video_source(text) is None


def test_a_camera_needs_a_number():
    with pytest.raises(UsageError, match="webcam:front: the number of a camera must follow"):
        parse_video_source("webcam:front")
