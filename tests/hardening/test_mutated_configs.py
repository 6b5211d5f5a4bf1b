"""Training configs and recipes with something wrong: an error that says what, or a training that can begin."""

import math

import pytest
import torch
import yaml
from hypothesis import event, given
from hypothesis import strategies as st

from fbnetv3.config import get_cfg, is_detection_config, load_config
from fbnetv3.config.loading import flat_keys
from fbnetv3.config.recipe import RecipeError, dump_recipe, load_recipe
from fbnetv3.errors import UserError
from fbnetv3.training.builders import (
    build_arch,
    build_device,
    build_inputs,
    build_mixup,
    build_model,
    build_objective,
    optimizer_of,
    schedule_of,
)
from tests.hardening.conftest import examples
from tests.hardening.mutations import NASTY, mutated_yaml, nudged
from tests.hardening.victims import TINY

RECIPE = {
    "optimizer": "sgd",
    "lr": "2e-2",
    "weight_decay": 1e-5,
    "mixup": 0.1,
    "drop_rate": 0.1,
    "drop_path_rate": 0.1,
    "ema": True,
}
DEFAULTS = flat_keys(get_cfg())
KEYS = sorted(DEFAULTS)
WORDS = {
    "DATA.NAME": ["digits", "imagefolder", "shards", "imagelist", "cifar10"],
    "SOLVER.OPTIMIZER": ["sgd", "rmsprop", "adam"],
    "SOLVER.SCHEDULE": ["cosine", "exponential"],
    "SOLVER.PRECISION": ["float32", "bfloat16", "float16"],
    "INPUT.CROP": ["random_resized", "padded", "none"],
    "INPUT.AUTO_AUGMENT": ["none", "autoaugment", "randaugment"],
    "DEVICE": ["cpu", "meta", "mps", "cuda:9", "cpu:1", "xla", "vulkan"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("configs")
    (found / "tiny.yaml").write_text(TINY)
    (found / "base.yaml").write_text("SOLVER: {EPOCHS: 3, WARMUP_EPOCHS: 0}\n")
    return found


CONFIG = {
    "_BASE_": "base.yaml",
    "SEED": 3,
    "MODEL": {"ARCH": "tiny.yaml", "IN_CHANS": 1, "NUM_CLASSES": 10, "DROP_RATE": 0.1},
    "DATA": {"NAME": "digits", "WORKERS": 0},
    "INPUT": {"MEAN": [0.5], "STD": [0.5], "CROP": "padded", "CROP_PADDING": 2, "MIXUP": 0.1, "RESIZE": 9},
    "SOLVER": {"OPTIMIZER": "rmsprop", "LR": "1e-2", "BATCH_SIZE": 32, "SCHEDULE": "cosine", "LABEL_SMOOTHING": 0.1},
    "EMA": {"ENABLED": True, "DECAY": 0.99},
    "EVAL": {"PERIOD": 2},
    "OUTPUT_DIR": "out",
}


def begun(cfg):
    """As much of a training as comes before its second step."""
    device = build_device(cfg.DEVICE)
    arch = build_arch(cfg, cfg.MODEL.ARCH)
    inputs = build_inputs(cfg, arch, device)
    model = build_model(cfg, arch, inputs.train.classes, device, cfg.MODEL.WEIGHTS)
    objective = build_objective(cfg, model.num_classes, inputs.preprocessing.resolution, device)
    optimizer, schedule = optimizer_of(cfg, model), schedule_of(cfg)
    assert all(math.isfinite(schedule(i / 10)) and schedule(i / 10) >= 0 for i in range(10))
    assert len(inputs.train_loader) >= 1
    mixup = build_mixup(cfg, model.num_classes)
    if inputs.preprocessing.resize > 64 or cfg.SOLVER.BATCH_SIZE > 64 or cfg.DATA.WORKERS or device.type != "cpu":
        return
    batch = next(iter(inputs.train_loader))
    images, targets = batch.on(device, torch.channels_last)
    loss = objective(model, *((images, targets) if mixup is None else mixup(images, targets)))
    assert loss.isfinite()
    loss.backward()
    optimizer.step()


def judged(path, overrides=()):
    try:
        is_detection_config(path)
        cfg = load_config(path, overrides)
        begun(cfg)
    except UserError as error:
        assert str(error)
        return
    except OSError as error:  # the tools print this in one line too
        assert error.strerror and error.filename
        return
    event("accepted")
    again = path.with_name("again.yaml")
    again.write_text(cfg.dump())
    assert load_config(again) == cfg


@examples(80)
@given(text=mutated_yaml(CONFIG))
def test_config_files(folder, text):
    path = folder / "mutated.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    judged(path)


@st.composite
def pairs(draw):
    key = draw(st.one_of(st.sampled_from(KEYS), st.sampled_from([*KEYS, *WORDS]), st.text(max_size=8)))
    odd = st.sampled_from(["{[]: 1}", "(" * 300, "-" * 5000, "9" * 5000, "0x" + "f" * 5000, "1e999", "[nan]", "a\0b"])
    near = nudged(DEFAULTS[key]).map(str) if key in DEFAULTS else st.just("1")
    text = draw(st.one_of(near, near, st.sampled_from(WORDS.get(key, ["1", "2", "0.5"])), NASTY.map(str), odd))
    return [key, text]


@examples(100)
@given(chosen=st.lists(pairs(), min_size=1, max_size=2), odd=st.integers(0, 9))
def test_pairs(folder, chosen, odd):
    path = folder / "valid.yaml"
    path.write_text(yaml.safe_dump(CONFIG))
    overrides = [part for pair in chosen for part in pair]
    judged(path, overrides[: len(overrides) - (odd == 0)])


@examples(60)
@given(text=mutated_yaml(RECIPE))
def test_recipes(folder, text):
    path = folder / "recipe.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        recipe = load_recipe(path)
    except UserError as error:
        assert isinstance(error, RecipeError) and str(error)
        return
    event("accepted")
    path.write_text(dump_recipe(recipe))
    assert load_recipe(path) == recipe
    assert 0 <= recipe.initial_lr < math.inf


def test_the_valid_ones_are_accepted(folder):
    path = folder / "valid.yaml"
    path.write_text(yaml.safe_dump(CONFIG))
    torch.manual_seed(0)
    begun(load_config(path))
