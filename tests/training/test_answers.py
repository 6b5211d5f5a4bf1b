"""A teacher's answers on disk: the same loss as with the teacher beside, whole or refused, resumed."""

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
from fbnetv3.errors import OutputError, UsageError
from fbnetv3.training import cache_answers, train
from fbnetv3.training.builders import answer_files, build_arch, build_inputs
from fbnetv3.training.distillation.teacher_logits import AnswerFiles, TargetWithAnswer, blended
from fbnetv3.training.losses import Distillation
from fbnetv3.utils.downloads import local_path

TEACHER = ["DISTILL.ARCH", "fbnetv3_digits", "DISTILL.WEIGHTS", "zoo://digits/fbnetv3_digits"]
SHORT = ["SOLVER.EPOCHS", "1", "SOLVER.WARMUP_EPOCHS", "0", "SOLVER.BATCH_SIZE", "128", "EVAL.BATCH_SIZE", "360"]


def config(tmp_path, *overrides):
    places = ["DISTILL.CACHE", str(tmp_path / "answers"), "OUTPUT_DIR", str(tmp_path / "run")]
    overrides = [*TEACHER, *SHORT, *places, "DISTILL.VIEWS", "2", *overrides]
    return load_config(configs_folder() / "digits" / "fbnetv3_digits.yaml", overrides)


@pytest.fixture(scope="module")
def answered(tmp_path_factory):
    folder = tmp_path_factory.mktemp("answers")
    return folder, cache_answers(config(folder))


@pytest.mark.parametrize("epoch", [0, 1, 2, 5])
def test_targets_give_the_loss_of_the_teacher_itself(answered, epoch):
    """In every epoch, on the very images that the student sees."""
    cfg = config(answered[0])
    loader = build_inputs(cfg, build_arch(cfg, "fbnetv3_digits"), torch.device("cpu")).train_loader
    loader.sampler.epoch = epoch
    batch = next(iter(loader))
    images, targets = batch.on(torch.device("cpu"), torch.contiguous_format)
    teacher = model_zoo.get("digits/fbnetv3_digits.yaml", trained=True)
    student = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(32 * 32, 10))
    classes = torch.tensor([loader.dataset.dataset[number][1] for number in batch.numbers])
    expected = Distillation(teacher, 32, 32, cfg.DISTILL.WEIGHT, cfg.SOLVER.LABEL_SMOOTHING)(student, images, classes)
    assert F.cross_entropy(student(images), targets).item() == pytest.approx(expected.item(), rel=1e-3)


def test_the_views_come_in_turns(answered):
    cfg = config(answered[0])
    loader = build_inputs(cfg, build_arch(cfg, "fbnetv3_digits"), torch.device("cpu")).train_loader
    views = [loader.dataset[epoch, 5][0] for epoch in range(4)]
    assert torch.equal(views[0], views[2]) and torch.equal(views[1], views[3])
    assert not torch.equal(views[0], views[1])


def test_a_run_learns_from_them(answered, tmp_path):
    curve = train(config(answered[0], "SOLVER.EPOCHS", "8", "OUTPUT_DIR", str(tmp_path / "run")))
    assert curve[-1]["top1"] > 60


def test_what_was_cut_short_goes_on(answered, tmp_path, monkeypatch):
    """It asks for what is missing alone, and ends with the same."""
    cfg, asked = config(tmp_path), []

    def cut(self, answers, done, save_every=100):
        def some():
            for number, item in enumerate(answers):
                asked.extend(item[1])
                yield item
                if number == 4 and not done:
                    raise KeyboardInterrupt

        return original(self, some(), done)

    original = AnswerFiles.write
    monkeypatch.setattr(AnswerFiles, "write", cut)
    with pytest.raises(KeyboardInterrupt):
        cache_answers(cfg)
    with pytest.raises(UsageError, match=r"answers: is incomplete: make it with tools/cache_teacher\.py"):
        train(cfg)
    before = len(asked)
    files = cache_answers(cfg)
    assert 0 < before < len(asked) <= 2 * 1437 + 360
    np.testing.assert_allclose(files.open(), answered[1].open(), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["SEED", "1"], r"answers: holds answers for another SEED: 0, not 1; set another DISTILL\.CACHE"),
        (["INPUT.FLIP", "True"], r"for another INPUT\.FLIP"),
        (["DISTILL.VIEWS", "3"], "for another shape"),
        (["DISTILL.RESOLUTION", "64"], r"INPUT\.CROP padded: falls otherwise at the teacher's 64 pixels than at 32"),
        (["INPUT.MIXUP", "0.2"], r"INPUT\.MIXUP 0\.2: no answer in DISTILL\.CACHE is to a mixture"),
        (["DISTILL.ARCH", "", "DISTILL.WEIGHTS", ""], r"DISTILL\.CACHE holds a teacher's answers"),
        (["DISTILL.CACHE", "nowhere"], "nowhere: is not there"),
    ],
)
def test_answers_to_something_else_are_refused(answered, tmp_path, overrides, message):
    with pytest.raises(UsageError, match=message):
        train(config(answered[0], "OUTPUT_DIR", str(tmp_path / "run"), *overrides))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("content", [b"", b"nonsense", None])
def test_damaged_answers(answered, tmp_path, content):
    shutil.copytree(answered[0] / "answers", tmp_path / "answers")
    logits = tmp_path / "answers" / "logits.npy"
    logits.write_bytes(logits.read_bytes()[:5000] if content is None else content)
    with pytest.raises(UsageError, match=r"logits\.npy: is damaged; remove its folder"):
        train(config(tmp_path))


def test_answers_to_other_images_or_of_another_teacher(answered, tmp_path, monkeypatch):
    """As many images, the same first and last; the same path of the weights."""
    original = ArrayDataset.image_name
    monkeypatch.setattr(ArrayDataset, "image_name", lambda s, i: "other" if i == 7 else original(s, i))
    with pytest.raises(UsageError, match="for another SHA-256 of the images' names"):
        train(config(answered[0], "OUTPUT_DIR", str(tmp_path / "run")))
    monkeypatch.undo()
    monkeypatch.setattr("fbnetv3.training.builders.file_sha256", lambda path: "0")
    with pytest.raises(UsageError, match=r"for another SHA-256 of DISTILL\.WEIGHTS"):
        train(config(answered[0], "OUTPUT_DIR", str(tmp_path / "run")))


def test_the_same_teacher_from_another_place(answered, tmp_path):
    """Its weights are compared by their content, its architecture by what it is."""
    shutil.copy(local_path("zoo://digits/fbnetv3_digits"), tmp_path / "teacher.pth")
    arch = get_arch("fbnetv3_digits")
    (tmp_path / "teacher.yaml").write_text(dump_arch(arch))
    teacher = ["DISTILL.ARCH", str(tmp_path / "teacher.yaml"), "DISTILL.WEIGHTS", str(tmp_path / "teacher.pth")]
    cfg = config(answered[0], *teacher)
    dataset = build_dataset("digits", "", "train")
    assert answer_files(cfg, dataset).about == answer_files(config(answered[0]), dataset).about
    (tmp_path / "teacher.yaml").write_text(dump_arch(replace(arch, resize=arch.resize + 1)))
    with pytest.raises(UsageError, match=r"for another DISTILL\.ARCH: fbnetv3_digits"):
        train(config(answered[0], *teacher, "OUTPUT_DIR", str(tmp_path / "run")))


def test_a_run_with_answers_does_not_go_on_without(answered, tmp_path):
    out = ["OUTPUT_DIR", str(tmp_path / "run")]
    train(config(answered[0], *out))
    with pytest.raises(UsageError, match=r"another DISTILL\.CACHE True, not False"):
        train(config(answered[0], *out, "DISTILL.CACHE", ""), resume=True)


def test_targets_travel_to_other_processes(answered):
    target = TargetWithAnswer(answered[1], 0.8, 0.1)
    sent = pickle.dumps(target)
    assert len(sent) < 10_000
    assert torch.equal(pickle.loads(sent)(1, 5, 3), target(1, 5, 3))


def test_a_folder_that_holds_something_else(tmp_path):
    (tmp_path / "about.json").write_text("[]")
    with pytest.raises(UsageError, match=r"about\.json: is not of a teacher's answers"):
        AnswerFiles(tmp_path, {}, (1, 2, 3)).done()


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        AnswerFiles(tmp_path / "file" / "answers", {}, (1, 2, 3)).write([], 0)


def test_blending():
    target = blended(np.zeros(4, np.float16), 1, 0.8, 0.2)
    torch.testing.assert_close(target, torch.tensor([0.21, 0.2 + 0.2 * 0.85, 0.21, 0.21]))
