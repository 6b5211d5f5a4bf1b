"""Training configs and recipes with mistakes: either a one-line error, or a training run that starts."""

import math

import pytest
import torch
import yaml
from hypothesis import event, given
from hypothesis import strategies as st

from fbnetv3.config import get_cfg, is_detection_config, load_config
from fbnetv3.config.recipe import RecipeError, dump_recipe, load_recipe
from fbnetv3.errors import UserError
from fbnetv3.training.builders import build_inputs, build_model, build_objective, class_weights_from_config
from fbnetv3.training.devices.run_device import select_device
from fbnetv3.training.fine_tuning.freezing import freeze
from fbnetv3.training.recorded_networks import start_from_weights
from fbnetv3.training.solver import build_mixup, optimizer_from_config, schedule_from_config
from fbnetv3.utils.nested_keys import flatten
from tests.hardening.conftest import examples
from tests.hardening.mutations import UNEXPECTED_VALUES, mutated_yaml, nudged
from tests.hardening.process_targets import TINY

RECIPE = {
    "optimizer": "sgd",
    "lr": "2e-2",
    "weight_decay": 1e-5,
    "mixup": 0.1,
    "drop_rate": 0.1,
    "drop_path_rate": 0.1,
    "ema": True,
}
CONFIG = {
    "_BASE_": "base.yaml",
    "SEED": 3,
    "MODEL": {"ARCH": "tiny.yaml", "IN_CHANS": 1, "NUM_CLASSES": 10, "DROP_RATE": 0.1},
    "DATA": {"NAME": "digits", "WORKERS": 0},
    "INPUT": {"MEAN": [0.5], "STD": [0.5], "CROP": "padded", "CROP_PADDING": 2, "MIXUP": 0.1, "RESIZE": 9},
    "SOLVER": {
        "OPTIMIZER": "rmsprop",
        "LR": "1e-2",
        "BATCH_SIZE": 32,
        "SCHEDULE": "cosine",
        "LABEL_SMOOTHING": 0.1,
    },
    "EMA": {"ENABLED": True, "DECAY": 0.99},
    "EVAL": {"PERIOD": 2},
    "OUTPUT_DIR": "out",
}
DEFAULTS = flatten(get_cfg())
CHOICES = {
    "DATA.NAME": ["digits", "imagefolder", "shards", "imagelist", "cifar10"],
    "SOLVER.OPTIMIZER": ["sgd", "rmsprop", "adam", "adamw", "timm/lion", "timm/"],
    "SOLVER.SCHEDULE": ["cosine", "exponential"],
    "SOLVER.LOSS": ["cross_entropy", "focal", "binary_cross_entropy", "sigmoid_focal"],
    "SOLVER.CLASS_WEIGHTS": [[], ["3=2"], ["3=-1"], ["x=1"], ["0=0", "9=1e400"]],
    "MODEL.FREEZE": ["none", "stem", "trunk", "0", "2", "99", "-1"],
    "SOLVER.PRECISION": ["auto", "float32", "bfloat16", "float16"],
    "INPUT.CROP": ["random_resized", "padded", "none"],
    "INPUT.AUTO_AUGMENT": ["none", "autoaugment", "randaugment"],
    "DEVICE": ["cpu", "meta", "mps", "cuda:9", "cpu:1", "xla", "vulkan"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("configs")
    (path / "tiny.yaml").write_text(TINY)
    (path / "base.yaml").write_text("SOLVER: {EPOCHS: 3, WARMUP_EPOCHS: 0}\n")
    return path


def start_training(cfg):
    """Build everything that a training run needs, and run its first step if that is cheap."""
    device = select_device(cfg.DEVICE)
    cfg, arch, record = start_from_weights(cfg)
    inputs = build_inputs(cfg, arch, device)
    cfg = inputs.cfg
    model = build_model(cfg, arch, inputs.train.classes, device, cfg.MODEL.WEIGHTS, record=record)
    freeze(model, cfg.MODEL.FREEZE, norms=cfg.MODEL.FREEZE_NORM)
    weights = class_weights_from_config(cfg, inputs.train)
    objective = build_objective(cfg, inputs.train.classes, inputs.preprocessing.resolution, device, weights)
    optimizer = optimizer_from_config(cfg, model)
    schedule = schedule_from_config(cfg)
    assert all(math.isfinite(schedule(i / 10)) and schedule(i / 10) >= 0 for i in range(10))
    assert len(inputs.train_loader) >= 1
    mixup = build_mixup(cfg, model.num_classes)
    if (
        inputs.preprocessing.resize > 64
        or cfg.SOLVER.BATCH_SIZE > 64
        or cfg.DATA.WORKERS
        or device.type != "cpu"
    ):
        return
    batch = next(iter(inputs.train_loader))
    images, targets = batch.to(device, torch.channels_last)
    if mixup is not None:
        images, targets = mixup(images, targets)
    loss = objective(model, images, targets)
    assert loss.isfinite()
    loss.backward()
    optimizer.step()


def check_config_file(path, overrides=()):
    """Load a config; if it is accepted, training starts, and its dump reads back equal."""
    try:
        is_detection_config(path)
        cfg = load_config(path, overrides)
        start_training(cfg)
    except UserError as error:
        assert str(error)
        return
    except OSError as error:  # the tools print these in one line too
        assert error.strerror and error.filename
        return
    event("accepted")
    dumped = path.with_name("dumped.yaml")
    dumped.write_text(cfg.dump())
    assert load_config(dumped) == cfg


@examples(80)
@given(text=mutated_yaml(CONFIG))
def test_mutated_config_files(folder, text):
    path = folder / "mutated.yaml"
    path.write_text(text)
    check_config_file(path)


@st.composite
def override_pairs(draw):
    key = draw(
        st.one_of(st.sampled_from([*DEFAULTS]), st.sampled_from([*CHOICES]), st.text("ABC._", max_size=8))
    )
    values = [st.sampled_from(CHOICES.get(key, ["1", "2", "0.5"])), UNEXPECTED_VALUES.map(str)]
    if key in DEFAULTS:
        values += [nudged(DEFAULTS[key]).map(str)] * 2
    return [key, draw(st.one_of(values))]


@examples(100)
@given(
    pairs=st.lists(override_pairs(), min_size=1, max_size=2),
    omit_last=st.integers(0, 9).map(lambda n: n == 0),
)
def test_mutated_overrides(folder, pairs, omit_last):
    path = folder / "valid.yaml"
    path.write_text(yaml.safe_dump(CONFIG))
    overrides = [text for pair in pairs for text in pair]
    check_config_file(path, overrides[: len(overrides) - omit_last])


@examples(60)
@given(text=mutated_yaml(RECIPE))
def test_mutated_recipes(folder, text):
    path = folder / "recipe.yaml"
    path.write_text(text)
    try:
        recipe = load_recipe(path)
    except UserError as error:
        assert isinstance(error, RecipeError) and str(error)
        return
    event("accepted")
    path.write_text(dump_recipe(recipe))
    assert load_recipe(path) == recipe
    assert 0 <= recipe.training_lr < math.inf


def test_the_unmutated_config_is_accepted(folder):
    path = folder / "valid.yaml"
    path.write_text(yaml.safe_dump(CONFIG))
    torch.manual_seed(0)
    start_training(load_config(path))
