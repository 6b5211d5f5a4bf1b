"""Cached teacher logits: same loss as with the teacher itself, refused if incomplete, resumed if interrupted."""

import pickle
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fbnetv3 import model_zoo
from fbnetv3.arch import configs_folder, dump_arch, get_arch
from fbnetv3.config import load_config
from fbnetv3.data.datasets import ArrayDataset, build_dataset
from fbnetv3.data.loader import build_loader
from fbnetv3.errors import OutputError, UsageError
from fbnetv3.training import cache_teacher_logits, train
from fbnetv3.training.builders import build_inputs, resolve_arch, teacher_logit_cache
from fbnetv3.training.distillation.distillation_loss import Distillation
from fbnetv3.training.distillation.teacher_logits import (
    DistillationTarget,
    TeacherLogitCache,
    blend_targets,
)
from fbnetv3.training.solver import loss_from_config
from fbnetv3.utils.downloads import local_path

CPU = torch.device("cpu")
TEACHER = ["DISTILL.ARCH", "fbnetv3_digits", "DISTILL.WEIGHTS", "zoo://digits/fbnetv3_digits"]
SHORT = [
    "SOLVER.EPOCHS",
    "1",
    "SOLVER.WARMUP_EPOCHS",
    "0",
    "SOLVER.BATCH_SIZE",
    "128",
    "EVAL.BATCH_SIZE",
    "360",
]


def make_config(folder, *overrides):
    folders = ["DISTILL.CACHE", str(folder / "logits"), "OUTPUT_DIR", str(folder / "run")]
    overrides = [*TEACHER, *SHORT, *folders, "DISTILL.VIEWS", "2", *overrides]
    return load_config(configs_folder() / "digits" / "fbnetv3_digits.yaml", overrides)


def make_train_loader(cfg):
    return build_inputs(cfg, resolve_arch(cfg, "fbnetv3_digits"), CPU).train_loader


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Return a folder with the complete cache `logits`, and the cache."""
    folder = tmp_path_factory.mktemp("cache")
    return folder, cache_teacher_logits(make_config(folder))


@pytest.mark.parametrize("epoch", [0, 1, 2, 5])
def test_targets_give_the_loss_of_the_teacher_itself(cache, epoch):
    """The cached logits equal the teacher's in every epoch, on exactly the images that the student sees."""
    cfg = make_config(cache[0])
    loader = make_train_loader(cfg)
    loader.sampler.epoch = epoch
    batch = next(iter(loader))
    images, targets = batch.to(CPU, torch.contiguous_format)
    teacher = model_zoo.get("digits/fbnetv3_digits.yaml", trained=True)
    student = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(32 * 32, 10))
    classes = torch.tensor([loader.dataset.dataset[index][1] for index in batch.indices])
    without_cache = make_config(
        cache[0], "DISTILL.CACHE", "", "SOLVER.LABEL_SMOOTHING", str(cfg.SOLVER.LABEL_SMOOTHING)
    )
    objective = Distillation(teacher, 32, 32, cfg.DISTILL.ALPHA, loss_from_config(without_cache))
    expected = objective(student, images, classes)
    assert F.cross_entropy(student(images), targets).item() == pytest.approx(expected.item(), rel=1e-3)


def test_views_repeat_in_turn(cache):
    loader = make_train_loader(make_config(cache[0]))
    views = [loader.dataset[epoch, 5][0] for epoch in range(4)]
    assert torch.equal(views[0], views[2]) and torch.equal(views[1], views[3])
    assert not torch.equal(views[0], views[1])


def test_a_student_learns_from_the_cache(cache, tmp_path):
    curve = train(make_config(cache[0], "SOLVER.EPOCHS", "8", "OUTPUT_DIR", str(tmp_path / "run")))
    assert curve[-1]["top1"] > 60


def test_an_interrupted_cache_is_continued(cache, tmp_path, monkeypatch):
    """The teacher sees only the missing images, and the cache is the same in the end."""
    cfg = make_config(tmp_path)
    positions_seen = []
    write = TeacherLogitCache.write

    def interrupted_write(self, batches, completed, save_every=100):
        def first_batches():
            for number, batch in enumerate(batches):
                positions_seen.extend(batch[1])
                yield batch
                if number == 4 and not completed:
                    raise KeyboardInterrupt

        return write(self, first_batches(), completed)

    monkeypatch.setattr(TeacherLogitCache, "write", interrupted_write)
    with pytest.raises(KeyboardInterrupt):
        cache_teacher_logits(cfg)
    with pytest.raises(UsageError, match=r"logits: is incomplete; create it with tools/cache_teacher\.py"):
        train(cfg)
    num_seen_first = len(positions_seen)
    completed = cache_teacher_logits(cfg)
    assert 0 < num_seen_first < len(positions_seen) <= 2 * 1437 + 360
    np.testing.assert_allclose(completed.open(), cache[1].open(), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["SEED", "1"],
            r"logits: holds logits made with SEED 0, not 1; choose another DISTILL\.CACHE",
        ),
        (["INPUT.FLIP", "True"], r"made with INPUT\.FLIP False, not True"),
        (["DISTILL.VIEWS", "3"], "made with shape"),
        (
            ["DISTILL.RESOLUTION", "64"],
            r"INPUT\.CROP padded: differs between the teacher's 64 pixels and the student's 32",
        ),
        (
            ["INPUT.MIXUP", "0.2"],
            r"INPUT\.MIXUP 0\.2 does not work with cached logits \(DISTILL\.CACHE\): set it to 0",
        ),
        (
            ["DISTILL.ARCH", "", "DISTILL.WEIGHTS", ""],
            r"DISTILL\.ARCH and DISTILL\.WEIGHTS must be set together",
        ),
        (["DISTILL.CACHE", "nowhere"], "nowhere: does not exist"),
        (["SOLVER.LOSS", "focl"], r"SOLVER\.LOSS: unknown loss 'focl': did you mean focal"),
    ],
)
def test_a_cache_with_another_fingerprint_is_refused(cache, tmp_path, overrides, message):
    with pytest.raises(UsageError, match=message):
        train(make_config(cache[0], "OUTPUT_DIR", str(tmp_path / "run"), *overrides))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("content", [b"", b"nonsense", None])
def test_corrupt_logits(cache, tmp_path, content):
    shutil.copytree(cache[0] / "logits", tmp_path / "logits")
    file = tmp_path / "logits" / "logits.npy"
    file.write_bytes(file.read_bytes()[:5000] if content is None else content)
    with pytest.raises(UsageError, match=r"logits\.npy: is corrupt; delete the folder"):
        train(make_config(tmp_path))


def test_logits_of_other_images_or_of_another_teacher(cache, tmp_path, monkeypatch):
    """The number of images and the path of the weights stay the same; the contents differ."""
    image_name = ArrayDataset.image_name
    monkeypatch.setattr(ArrayDataset, "image_name", lambda s, i: "other" if i == 7 else image_name(s, i))
    with pytest.raises(UsageError, match="made with SHA-256 of the image names"):
        train(make_config(cache[0], "OUTPUT_DIR", str(tmp_path / "run")))
    monkeypatch.undo()
    monkeypatch.setattr("fbnetv3.training.builders.file_sha256", lambda path: "0")
    with pytest.raises(UsageError, match=r"made with SHA-256 of DISTILL\.WEIGHTS"):
        train(make_config(cache[0], "OUTPUT_DIR", str(tmp_path / "run")))


def test_the_same_teacher_in_other_files(cache, tmp_path):
    """Weights are compared by their content, the architecture by its definition."""
    shutil.copy(local_path("zoo://digits/fbnetv3_digits"), tmp_path / "teacher.pth")
    arch = get_arch("fbnetv3_digits")
    (tmp_path / "teacher.yaml").write_text(dump_arch(arch))
    teacher = [
        "DISTILL.ARCH",
        str(tmp_path / "teacher.yaml"),
        "DISTILL.WEIGHTS",
        str(tmp_path / "teacher.pth"),
    ]
    dataset = build_dataset("digits", "", "train")
    fingerprint = teacher_logit_cache(make_config(cache[0], *teacher), dataset, 32).fingerprint
    assert fingerprint == teacher_logit_cache(make_config(cache[0]), dataset, 32).fingerprint
    (tmp_path / "teacher.yaml").write_text(dump_arch(replace(arch, resize=arch.resize + 1)))
    with pytest.raises(UsageError, match=r"made with DISTILL\.ARCH fbnetv3_digits"):
        train(make_config(cache[0], *teacher, "OUTPUT_DIR", str(tmp_path / "run")))


def test_a_run_with_a_cache_does_not_resume_without(cache, tmp_path):
    output = ["OUTPUT_DIR", str(tmp_path / "run")]
    train(make_config(cache[0], *output))
    with pytest.raises(UsageError, match=r"DISTILL\.CACHE has changed: was True, is now False"):
        train(make_config(cache[0], *output, "DISTILL.CACHE", ""), resume=True)


def test_targets_can_be_sent_to_worker_processes(cache):
    target = DistillationTarget(cache[1], 0.8, 0.1)
    pickled = pickle.dumps(target)
    assert len(pickled) < 10_000
    assert torch.equal(pickle.loads(pickled)(1, 5, 3), target(1, 5, 3))


def test_images_that_the_teacher_could_not_read(tmp_path):
    """They have no target, even in a cache that was interrupted just after one of them."""
    cache = TeacherLogitCache(tmp_path / "logits", {}, (1, 6, 10))

    def interrupted():
        yield torch.ones(2, 10), [0, 2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.write(interrupted(), 0)
    cache.write([(torch.ones(1, 10), [4])], cache.completed())
    target = DistillationTarget(cache, 0.8, 0.1)
    loader = build_loader(
        build_dataset("digits", "", "val"),
        lambda image: torch.zeros(1),
        batch_size=6,
        training=False,
        target=target,
    )
    batch = next(iter(loader))
    assert list(batch.indices) == [0, 2, 4]
    assert len(batch.errors) == 3
    assert batch.errors[0].endswith(
        f"[1]: has no logits in {cache.folder}, because it could not be read when they were cached; "
        "delete the folder and run tools/cache_teacher.py again"
    )


@pytest.mark.parametrize("content", ["[]", '{"fingerprint": [], "completed": 0}'])
def test_a_folder_with_other_metadata(tmp_path, content):
    (tmp_path / "metadata.json").write_text(content)
    with pytest.raises(UsageError, match=r"metadata\.json: is corrupt; delete the folder"):
        TeacherLogitCache(tmp_path, {}, (1, 2, 3)).completed()


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        TeacherLogitCache(tmp_path / "file" / "logits", {}, (1, 2, 3)).write([], 0)


def test_blending():
    target = blend_targets(np.zeros(4, np.float16), 1, alpha=0.8, label_smoothing=0.2)
    torch.testing.assert_close(target, torch.tensor([0.21, 0.2 + 0.2 * 0.85, 0.21, 0.21]))
