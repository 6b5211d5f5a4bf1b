"""Scenes of handwritten digits: what is in them, and one folder for all processes."""

import json
import multiprocessing

import numpy as np
import pytest
from PIL import Image

from fbnetv3.data import build_dataset, digit_scenes
from fbnetv3.data.digit_scenes import digit_scenes as make
from fbnetv3.data.digit_scenes import digit_scenes_folder, draw_scene, write_digit_scenes
from fbnetv3.errors import OutputError


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_same_scenes_each_time(tmp_path):
    for name in ("once", "again"):
        write_digit_scenes(tmp_path / name, train=5, test=2)
    once = files(tmp_path / "once")
    assert len(once) == 5 + 2 + 2
    assert once == files(tmp_path / "again")


def test_annotations_are_cocos(tmp_path):
    write_digit_scenes(tmp_path, train=12, test=1)
    content = json.loads((tmp_path / "train.json").read_text())
    assert [(c["id"], c["name"]) for c in content["categories"]] == [(d + 1, str(d)) for d in range(10)]
    sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    for image in content["images"]:
        with Image.open(tmp_path / "train" / image["file_name"]) as picture:
            assert (picture.size, picture.mode) == (sizes[image["id"]], "RGB")
        assert min(sizes[image["id"]]) == 160
    assert {a["image_id"] for a in content["annotations"]} == set(sizes)
    assert len({a["id"] for a in content["annotations"]}) == len(content["annotations"]) > 20
    for a in content["annotations"]:
        x, y, width, height = a["bbox"]
        assert a["area"] == width * height > 0
        assert 0 <= x <= sizes[a["image_id"]][0] - width and 0 <= y <= sizes[a["image_id"]][1] - height


def test_boxes_hold_the_digits(monkeypatch):
    """Without noise and lines, what differs from the background lies in the boxes, and fills them to the edge."""
    digits = build_dataset("digits", "", "train")
    monkeypatch.setattr(digit_scenes, "_background", lambda random, h, w: (np.full((h, w, 3), 100.0), 100.0))
    monkeypatch.setattr(digit_scenes, "_ink_colour", lambda random, brightness: np.full(3, 250.0))

    class Quiet:
        """A generator whose normal noise is none."""

        def __init__(self, seed):
            self.random_state = np.random.default_rng(seed)

        def __getattr__(self, name):
            return getattr(self.random_state, name)

        def normal(self, mean, deviation, shape):
            return np.zeros(shape)

    for seed in range(20):
        scene, drawn = draw_scene(digits, Quiet(seed))
        ink = scene[..., 0] > 100 + 150 * 0.2
        inside = np.zeros_like(ink)
        assert drawn
        for _, (x, y, width, height) in drawn:
            box = ink[y : y + height, x : x + width]
            assert box[0].any() and box[-1].any() and box[:, 0].any() and box[:, -1].any()
            inside[y : y + height, x : x + width] = True
        assert not (ink & ~inside).any()


def test_training_and_test_have_no_digit_in_common(tmp_path, monkeypatch):
    used = {}

    def watched(digits, random):
        used.setdefault(digits.name, digits)
        return draw_scene(digits, random)

    monkeypatch.setattr(digit_scenes, "draw_scene", watched)
    write_digit_scenes(tmp_path, train=1, test=1)
    train, test = ({image.tobytes() for image in digits.images} for digits in used.values())
    assert len(train) > 1000 and len(test) > 300
    assert not train & test


def _make(results):
    results.put(str(make()))


def test_two_processes_make_one_folder(monkeypatch, cache):
    monkeypatch.setattr(digit_scenes, "SCENES", {"train": 20, "test": 2})
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    both = [context.Process(target=_make, args=(results,)) for _ in range(2)]
    for process in both:
        process.start()
    assert [results.get(timeout=60) for _ in both] == [str(digit_scenes_folder())] * 2
    for process in both:
        process.join(timeout=60)
        assert process.exitcode == 0
    assert len(list((digit_scenes_folder() / "train").iterdir())) == 20
    assert [path.name for path in cache.iterdir() if path.is_dir()] == [digit_scenes_folder().name]


def test_half_a_folder_is_none(monkeypatch, cache):
    monkeypatch.setattr(digit_scenes, "SCENES", {"train": 2, "test": 2})
    (left := cache / f".partial_{digit_scenes_folder().name}_killed").mkdir(parents=True)

    def full(folder, train, test):
        (folder / "train").mkdir()
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OutputError, match=r"No space left on device.*FBNETV3_CACHE"):
        patch.setattr(digit_scenes, "write_digit_scenes", full)
        make()
    assert not digit_scenes_folder().exists() and not left.exists()
    assert sorted(path.name for path in make().iterdir()) == ["test", "test.json", "train", "train.json"]
