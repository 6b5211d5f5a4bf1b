"""Scenes of handwritten digits: reproducible, with exact boxes, drawn once for all processes."""

import json
import multiprocessing

import numpy as np
import pytest
from PIL import Image

from fbnetv3.data import build_dataset, digit_scenes
from fbnetv3.data.digit_scenes import digit_scenes_folder, draw_scene, write_digit_scenes
from fbnetv3.errors import OutputError


def file_contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_same_scenes_each_time(tmp_path):
    for name in ("once", "again"):
        write_digit_scenes(tmp_path / name, num_train=5, num_test=2)
    contents = file_contents(tmp_path / "once")
    assert len(contents) == 5 + 2 + 2
    assert contents == file_contents(tmp_path / "again")


def test_annotations_have_cocos_format(tmp_path):
    write_digit_scenes(tmp_path, num_train=12, num_test=1)
    content = json.loads((tmp_path / "train.json").read_text())
    assert [(c["id"], c["name"]) for c in content["categories"]] == [(d + 1, str(d)) for d in range(10)]
    sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    for image in content["images"]:
        with Image.open(tmp_path / "train" / image["file_name"]) as scene:
            assert (scene.size, scene.mode) == (sizes[image["id"]], "RGB")
        assert min(sizes[image["id"]]) == 160
    assert {a["image_id"] for a in content["annotations"]} == set(sizes)
    assert len({a["id"] for a in content["annotations"]}) == len(content["annotations"]) > 20
    for a in content["annotations"]:
        x, y, width, height = a["bbox"]
        assert a["area"] == width * height > 0
        assert 0 <= x <= sizes[a["image_id"]][0] - width and 0 <= y <= sizes[a["image_id"]][1] - height


def test_boxes_enclose_the_digits(monkeypatch):
    """Without noise and lines, all ink is inside the boxes and reaches their edges."""
    digits = build_dataset("digits", "", "train")
    monkeypatch.setattr(
        digit_scenes, "_draw_background", lambda rng, h, w: (np.full((h, w, 3), 100.0), 100.0)
    )
    monkeypatch.setattr(digit_scenes, "_draw_ink_color", lambda rng, brightness: np.full(3, 250.0))

    class NoiselessGenerator:
        """A generator whose normal noise is zero."""

        def __init__(self, seed):
            self.rng = np.random.default_rng(seed)

        def __getattr__(self, name):
            return getattr(self.rng, name)

        def normal(self, mean, deviation, shape):
            return np.zeros(shape)

    for seed in range(20):
        scene, drawn = draw_scene(digits, NoiselessGenerator(seed))
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

    def record_digits(digits, rng):
        used.setdefault(digits.name, digits)
        return draw_scene(digits, rng)

    monkeypatch.setattr(digit_scenes, "draw_scene", record_digits)
    write_digit_scenes(tmp_path, num_train=1, num_test=1)
    train, test = ({image.tobytes() for image in digits.images} for digits in used.values())
    assert len(train) > 1000 and len(test) > 300
    assert not train & test


def put_folder(results):
    results.put(str(digit_scenes.ensure_digit_scenes()))


def test_two_processes_share_one_folder(monkeypatch, cache):
    monkeypatch.setattr(digit_scenes, "SCENES", {"num_train": 20, "num_test": 2})
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    both = [context.Process(target=put_folder, args=(results,)) for _ in range(2)]
    for process in both:
        process.start()
    assert [results.get(timeout=60) for _ in both] == [str(digit_scenes_folder())] * 2
    for process in both:
        process.join(timeout=60)
        assert process.exitcode == 0
    assert len(list((digit_scenes_folder() / "train").iterdir())) == 20
    assert [path.name for path in cache.iterdir() if path.is_dir()] == [digit_scenes_folder().name]


def test_an_incomplete_folder_is_removed(monkeypatch, cache):
    monkeypatch.setattr(digit_scenes, "SCENES", {"num_train": 2, "num_test": 2})
    (leftover := cache / f".partial_{digit_scenes_folder().name}_killed").mkdir(parents=True)

    def fail(folder, num_train, num_test):
        (folder / "train").mkdir()
        raise OSError(28, "No space left on device")

    with (
        monkeypatch.context() as patch,
        pytest.raises(OutputError, match=r"No space left on device.*FBNETV3_CACHE"),
    ):
        patch.setattr(digit_scenes, "write_digit_scenes", fail)
        digit_scenes.ensure_digit_scenes()
    assert not digit_scenes_folder().exists() and not leftover.exists()
    assert sorted(path.name for path in digit_scenes.ensure_digit_scenes().iterdir()) == [
        "test",
        "test.json",
        "train",
        "train.json",
    ]
