"""Files of a detection run: tables, labels, crops, results, pictures."""

import csv
import json

import numpy as np
import pytest
import torch
import yaml
from detectron2.structures import Boxes, Instances
from PIL import Image

from fbnetv3.data.classes.keypoint_skeleton import KeypointSkeleton
from fbnetv3.detection.inference.detected_image import DetectedImage, FrameInfo
from fbnetv3.detection.inference.outputs import DETECTION_OUTPUTS, OutputSettings, build_outputs
from fbnetv3.detection.inference.visualize import class_color
from fbnetv3.errors import UnknownNameError

CLASSES = {7: "cat", 3: "traffic light/red"}


def detections(boxes, scores, classes, tracks=None):
    instances = Instances((50, 100))
    instances.pred_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
    instances.scores = torch.tensor(scores)
    instances.pred_classes = torch.tensor(classes, dtype=torch.int64)
    if tracks is not None:
        instances.track_ids = torch.tensor(tracks)
    return instances


def detected(name="a/x.png", number=None, tracks=None):
    """Return an image of 100 x 50 pixels, or a frame, with three objects, of which two are shown."""
    rows = np.arange(50, dtype=np.uint8)[:, None, None]
    pixels = np.broadcast_to(rows, (50, 100, 3)).copy()
    objects = detections(
        [[10.0, 20.0, 30.0, 40.0], [50.5, 0.0, 100.0, 9.2], [0.0, 0.0, 5.0, 5.0]],
        [0.9, 0.75, 0.2],
        [0, 1, 0],
        tracks,
    )
    frame = None
    if number is not None:
        frame = FrameInfo("clip.avi", number, number / 10, 10.0, 5, is_live=False)
    return DetectedImage(name, 4, pixels, objects, objects[:2], frame)


def write(folder, name, *images, **settings):
    output = DETECTION_OUTPUTS.get(name)(OutputSettings(folder, CLASSES, **settings))
    for image in images:
        output.write(image)
    output.close()
    return list(output.paths().values())


def test_pictures_have_the_lines_between_keypoints(tmp_path):
    image = detected("x.png")
    image.shown.pred_keypoints = torch.tensor([[[12.0, 25.0, 1.0], [28.0, 25.0, 1.0]]] * 2)
    skeleton = KeypointSkeleton(("nose", "tail"), lines=(("nose", "tail"),))
    drawn = []
    for settings in ({}, {"skeleton": skeleton}):
        (folder,) = write(tmp_path / str(len(settings)), "pictures", image, **settings)
        drawn.append(tuple(np.asarray(Image.open(folder / "x.png"))[25, 20]))
    assert drawn[0] == (25, 25, 25) and drawn[1] in (class_color(0), class_color(1))


def test_csv(tmp_path):
    images = detected(), detected(number=12, tracks=[5, -1, -1])
    (path,) = write(tmp_path / "out", "csv", *images)
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["image", "frame", "seconds", "class", "score", "x0", "y0", "x1", "y1", "track"],
        ["a/x.png", "", "", "cat", "0.9000", "10.00", "20.00", "30.00", "40.00", ""],
        ["a/x.png", "", "", "traffic light/red", "0.7500", "50.50", "0.00", "100.00", "9.20", ""],
        ["clip.avi", "12", "1.200", "cat", "0.9000", "10.00", "20.00", "30.00", "40.00", "5"],
        ["clip.avi", "12", "1.200", "traffic light/red", "0.7500", "50.50", "0.00", "100.00", "9.20", ""],
    ]


def test_rows_are_in_the_table_at_once(tmp_path):
    output = DETECTION_OUTPUTS.get("csv")(OutputSettings(tmp_path, CLASSES))
    output.write(detected())
    assert len((tmp_path / "detections.csv").read_text().splitlines()) == 3
    output.close()


def test_yolo_labels(tmp_path):
    nothing = DetectedImage("b.jpg", 5, np.zeros((50, 100, 3), np.uint8), *[detections([], [], [])] * 2)
    (folder,) = write(tmp_path, "yolo", detected(), nothing, detected("clip.avi/000012", 12))
    assert (folder / "a" / "x.txt").read_text() == (
        "0 0.200000 0.600000 0.200000 0.400000\n1 0.752500 0.092000 0.495000 0.184000\n"
    )
    assert (folder / "b.txt").read_text() == ""
    assert (folder / "clip.avi" / "000012.txt").exists()
    assert yaml.safe_load((folder / "classes.yaml").read_text()) == {
        "names": {0: "cat", 1: "traffic light/red"}
    }
    write(tmp_path / "scores", "yolo", detected(), yolo_scores=True)
    lines = (tmp_path / "scores" / "labels" / "a" / "x.txt").read_text().splitlines()
    assert [line.split()[5] for line in lines] == ["0.900000", "0.750000"]


def test_crops_are_in_folders_of_their_classes(tmp_path):
    (folder,) = write(tmp_path, "crops", detected(), detected("clip.avi/000012", 12))
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.jpg")) == [
        "cat/a_x_1.jpg",
        "cat/clip.avi_000012_1.jpg",
        "traffic light_red/a_x_2.jpg",
        "traffic light_red/clip.avi_000012_2.jpg",
    ]
    with Image.open(folder / "cat" / "a_x_1.jpg") as crop:
        assert crop.size == (20, 20)
        assert abs(int(np.asarray(crop)[0, 0, 0]) - 20) <= 2  # the row in the image
    with Image.open(folder / "traffic light_red" / "a_x_2.jpg") as crop:
        assert crop.size == (50, 10)  # 50.5 to 100 and 0 to 9.2, rounded outwards


def test_coco_results_of_frames(tmp_path):
    write(tmp_path, "json", detected("clip.avi/000012", 12, tracks=[5, -1, -1]))
    results = json.loads((tmp_path / "coco_instances_results.json").read_text())
    assert [(r["category_id"], r.get("track_id")) for r in results] == [(7, 5), (3, None), (7, None)]
    assert results[0]["bbox"] == [10, 20, 20, 20]
    listed = json.loads((tmp_path / "images.json").read_text())
    expected = {"id": 4, "file_name": "clip.avi/000012", "width": 100, "height": 50}
    assert listed["images"] == [{**expected, "video": "clip.avi", "frame": 12, "seconds": 1.2}]
    assert listed["categories"] == [{"id": 7, "name": "cat"}, {"id": 3, "name": "traffic light/red"}]


def test_pictures_have_different_names(tmp_path):
    names = ("x.png", "x.png", "x.gif", "x.gif.png", "a/x.png")
    (folder,) = write(tmp_path, "pictures", *map(detected, names))
    paths = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    assert paths == ["a/x.png", "x.gif.png", "x.gif_2.png", "x.png", "x_2.png"]


def test_frames_become_a_video(tmp_path):
    pytest.importorskip("cv2", reason="pip install opencv-python-headless")
    frames = [detected(f"clip.avi/{i:06d}", i) for i in range(3)]
    assert write(tmp_path, "pictures", detected(), *frames) == [tmp_path / "pictures", tmp_path / "videos"]
    assert [path.name for path in (tmp_path / "videos").iterdir()] == ["clip.avi.mp4"]


def test_outputs_by_name(tmp_path):
    settings = OutputSettings(tmp_path, CLASSES)

    def kinds(*names, **arguments):
        outputs = build_outputs(settings, names, **arguments)
        for output in outputs:
            output.close()
        return [type(output).__name__ for output in outputs]

    assert kinds() == ["CocoResults", "Pictures"]
    assert kinds("csv", "json", "csv", pictures=False) == ["CocoResults", "CsvTable"]
    with pytest.raises(
        UnknownNameError, match="unknown detection output 'xml': available: crops, csv, json"
    ):
        build_outputs(settings, ["xml"])
