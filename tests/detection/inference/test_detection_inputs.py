"""Images and videos that a command line names, and their ids in annotation files."""

import io
import json
import sys
from pathlib import Path

import pytest

from fbnetv3.detection.inference.detection_inputs import (
    find_inputs,
    match_annotations,
    require_video_packages,
)
from fbnetv3.errors import DataError, MissingPackageError, UsageError
from tests.detection.coco_files import save_image


@pytest.fixture
def cameras(tmp_path, monkeypatch):
    """A folder, also the current one, with files of the same name in two folders."""
    for name in ("camera1/0.png", "camera2/0.png", "camera2/1.png"):
        save_image(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(*sources, **arguments):
    return [entry.name for entry in find_inputs([str(source) for source in sources], **arguments)]


def image_ids(sources, *file_names):
    """Return the ids of the inputs in an annotation file that lists images with the ids 101, 102 and so on."""
    size = {"width": 64, "height": 48}
    images = [{"id": id, "file_name": name, **size} for id, name in enumerate(file_names, 101)]
    Path("boxes.json").write_text(
        json.dumps({"images": images, "annotations": [], "categories": [{"id": 1, "name": "cat"}]})
    )
    inputs, categories = match_annotations(find_inputs(sources), "boxes.json")
    assert categories == [{"id": 1, "name": "cat"}]
    return {entry.source.name: entry.image_id for entry in inputs}


def test_folders_are_searched_for_images_and_videos(tmp_path):
    for name in ("b.PNG", "a/c.png", "a/d.jpeg", "out/pictures/b.png"):
        save_image(tmp_path / name)
    for name in ("a/clip.mp4", "notes.txt", "out/videos/clip.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text("")
    (tmp_path / "folder.png").mkdir()
    excluded = [tmp_path / "out" / "pictures", tmp_path / "out" / "videos"]
    # Each file once
    sources = (tmp_path, tmp_path / "b.PNG", tmp_path / "a" / "c.png")
    assert names(*sources, exclude=excluded) == ["a/c.png", "a/clip.mp4", "a/d.jpeg", "b.PNG"]
    assert names(tmp_path / "a", tmp_path / "a" / "clip.mp4") == ["c.png", "clip.mp4", "d.jpeg"]
    assert names(tmp_path / "**" / "*.png", exclude=excluded) == ["a/c.png"]
    assert names("webcam:0", "rtsp://host/door", tmp_path / "b.PNG") == ["camera_0", "host_door", "b.PNG"]


def test_standard_input(tmp_path, monkeypatch):
    save_image(tmp_path / "a.png")
    text = f"{tmp_path / 'a.png'}\n{tmp_path / 'clip.mp4'}\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    assert names("-") == ["a.png", "clip.mp4"]
    data = (tmp_path / "a.png").read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    (entry,) = find_inputs(["-"])
    assert (entry.name, entry.source.data) == ("standard_input", data)


def test_inputs_of_the_same_name_get_more_of_their_paths(cameras):
    assert names("camera1", "camera2") == ["camera1/0.png", "camera2/0.png", "1.png"]
    assert names("camera1/0.png", "camera1/../camera2/0.png") == ["camera1/0.png", "camera2/0.png"]
    assert names("http://a/x.png?k=1", "http://b/x.png") == ["a/x.png", "b/x.png"]
    # Without passwords, even if nothing else differs
    assert names("rtsp://me:secret@a/x", "rtsp://you:secret@a/x") == ["a/x", "a/x"]


def test_packages_are_needed_for_videos_only(cameras, monkeypatch):
    require_video_packages(find_inputs(["camera1"]), track=False)
    with pytest.raises(UsageError, match="--track needs a video: images are not tracked"):
        require_video_packages(find_inputs(["camera1"]), track=True)
    (cameras / "clip.mp4").write_text("")
    monkeypatch.setitem(sys.modules, "trackers", None)
    with pytest.raises(MissingPackageError, match="tracking needs"):
        require_video_packages(find_inputs(["clip.mp4"]), track=True)
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(MissingPackageError, match="videos need OpenCV"):
        require_video_packages(find_inputs(["clip.mp4"]), track=False)


def test_missing_files_are_left_to_the_run_if_there_are_others(cameras):
    assert names("camera1", "nowhere.png") == ["0.png", "nowhere.png"]
    with pytest.raises(UsageError, match="^nowhere.png, no.mp4: no such file or folder"):
        names("nowhere.png", "no.mp4")


def test_files_of_the_same_name_are_different_images(cameras):
    listed = ("camera1/0.png", "camera2/0.png")
    first, second = (str(cameras / name) for name in listed)
    assert image_ids([str(cameras)], *listed) == {first: 101, second: 102}
    # By the end of the path if the path in the folder is not listed
    assert image_ids(["camera1", "camera2"], *listed) == {"camera1/0.png": 101, "camera2/0.png": 102}
    assert image_ids(["camera2/0.png"], *listed) == {"camera2/0.png": 102}
    assert image_ids(["camera2"], *(f"{cameras.name}/{name}" for name in listed)) == {"camera2/0.png": 102}


def test_the_file_at_the_top_is_meant_by_its_name_alone(cameras):
    save_image(cameras / "0.png")
    assert image_ids([str(cameras)], "0.png") == {str(cameras / "0.png"): 101}


def test_ambiguous_names_are_refused(cameras):
    with pytest.raises(
        DataError, match=r"boxes.json: 0.png may be camera1/0.png and camera2/0.png; name the folder"
    ):
        image_ids(["camera1", "camera2"], "0.png", "1.png")
    with pytest.raises(DataError, match=r"boxes.json: lists 0.png 2 times \(ids 101, 102\)"):
        image_ids(["camera1"], "0.png", "0.png")
    with pytest.raises(UsageError, match="--annotations lists images, but clip.mp4 is a video"):
        image_ids(["camera1", "clip.mp4"], "0.png")
