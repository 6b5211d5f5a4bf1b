"""EMAHook in detectron2's own DefaultTrainer: the average of every step, saved and resumed."""

import pytest
import torch
from detectron2.engine import DefaultTrainer, HookBase
from torch import nn

from fbnetv3.detection import EMAHook, load_detector
from fbnetv3.detection.detection_config import load_detection_config
from fbnetv3.errors import WeightsError


class TinyDetector(nn.Module):
    """A model with weights, BatchNorm statistics and a loss."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
        self.head = nn.Linear(3, 1)

    def forward(self, batch):
        return {"loss": self.head(self.backbone(batch)).square().sum()}


class Trainer(DefaultTrainer):
    """detectron2's trainer with a model that takes no time; step i always has the same batch."""

    @classmethod
    def build_model(cls, cfg):
        torch.manual_seed(0)
        return TinyDetector()

    @classmethod
    def build_train_loader(cls, cfg):
        return [torch.zeros(4, 2)]

    @classmethod
    def build_evaluator(cls, cfg, name):
        return None

    def run_step(self):
        self._trainer._data_loader_iter_obj = iter([batch(self.iter)])
        super().run_step()


class Recorder(HookBase):
    """Keeps the raw weights after each step."""

    def __init__(self):
        self.states = []

    def after_step(self):
        self.states.append({key: value.clone() for key, value in self.trainer.model.state_dict().items()})


def batch(step):
    return torch.randn(4, 2, generator=torch.Generator().manual_seed(step))


def build_trainer(digits_config, folder, steps):
    cfg = load_detection_config(
        digits_config,
        ["OUTPUT_DIR", str(folder), "SOLVER.MAX_ITER", str(steps), "SOLVER.CHECKPOINT_PERIOD", "3"],
    ).clone()
    cfg.defrost()
    cfg.DATASETS.TEST = ()
    folder.mkdir(exist_ok=True)
    return Trainer(cfg)


def hand_computed_average(states, decay):
    """Return the average: a copy of the first step's weights, then steps of min(decay, (1 + n) / (10 + n))."""
    average = dict(states[0])
    for n, state in enumerate(states[1:], 1):
        weight = min(decay, (1 + n) / (10 + n))
        for key, value in state.items():
            is_float = value.is_floating_point()
            average[key] = weight * average[key] + (1 - weight) * value if is_float else value
    return average


@pytest.fixture
def trained(digits_config, tmp_path):
    """Return the average after five steps, the raw weights of each, and the folder."""
    trainer = build_trainer(digits_config, tmp_path / "run", 5)
    ema, recorder = EMAHook(decay=0.25), Recorder()
    trainer.register_hooks([ema, recorder])
    trainer.resume_or_load(resume=False)
    trainer.train()
    return ema.model.state_dict(), recorder.states, tmp_path / "run"


def assert_close(a, b):
    assert a.keys() == b.keys()
    for key in a:
        torch.testing.assert_close(a[key], b[key], msg=key)


def test_the_average_includes_every_step(trained):
    average, states, _ = trained
    assert len(states) == 5
    expected = hand_computed_average(states, 0.25)
    assert_close(average, expected)
    assert not torch.equal(expected["backbone.0.weight"], states[-1]["backbone.0.weight"])


@pytest.mark.parametrize(("name", "steps"), [("model_0000002.pth", 3), ("model_final.pth", 5)])
def test_checkpoints_have_the_average_up_to_their_step(trained, name, steps):
    """detectron2's checkpointer runs before the hook in each step."""
    _, states, folder = trained
    saved = torch.load(folder / name, weights_only=True)
    assert_close(saved["model"], states[steps - 1])
    model = load_detector(TinyDetector(), folder / name)
    assert_close(model.state_dict(), hand_computed_average(states[:steps], 0.25))


@pytest.mark.parametrize("registered_first", [True, False])
def test_a_resumed_run_continues_the_average_exactly(trained, digits_config, registered_first):
    average, _, folder = trained
    (folder / "model_final.pth").unlink()
    (folder / "last_checkpoint").write_text("model_0000002.pth")
    trainer = build_trainer(digits_config, folder, 5)
    ema = EMAHook(decay=0.25)
    if registered_first:
        trainer.register_hooks([ema])
    trainer.resume_or_load(resume=True)
    assert trainer.start_iter == 3
    if not registered_first:
        trainer.register_hooks([ema])
    trainer.train()
    for key, value in ema.model.state_dict().items():
        assert torch.equal(value, average[key]), key


def test_a_checkpoint_without_an_average_cannot_continue_one(digits_config, tmp_path):
    trainer = build_trainer(digits_config, tmp_path / "run", 3)
    trainer.train()
    trainer = build_trainer(digits_config, tmp_path / "run", 6)
    trainer.resume_or_load(resume=True)
    trainer.register_hooks([EMAHook()])
    with pytest.raises(WeightsError, match="model_final.pth: has no average .EMA.: resume without EMAHook"):
        trainer.train()
