"""Detection configs: users' modules, and one-line errors for wrong values."""

import sys

import pytest
from detectron2.modeling import BACKBONE_REGISTRY, build_backbone

from fbnetv3.detection import FBNetV3Backbone, config_file
from fbnetv3.detection.detection_config import load_detection_config
from fbnetv3.errors import UsageError
from fbnetv3.training.run_state.fingerprint import DETECTOR_IGNORED_KEYS, config_fingerprint

BASE = config_file("faster_rcnn_fbnetv3_digits_C4")
MODULE = """
from detectron2.modeling import BACKBONE_REGISTRY
from fbnetv3.detection import FBNetV3Backbone

@BACKBONE_REGISTRY.register()
def build_users_backbone(cfg, input_shape):
    return FBNetV3Backbone(cfg, input_shape)
"""


@pytest.fixture
def users_module(tmp_path, monkeypatch):
    """Name of a module that registers a backbone."""
    (tmp_path / "users_backbones.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield "users_backbones"
    sys.modules.pop("users_backbones", None)
    BACKBONE_REGISTRY._obj_map.pop("build_users_backbone", None)


def test_imports_make_users_backbones_available(users_module, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(
        f"_BASE_: {BASE}\nIMPORTS: [{users_module}]\nMODEL: {{BACKBONE: {{NAME: build_users_backbone}}, DEVICE: cpu}}\n"
    )
    assert isinstance(build_backbone(load_detection_config(config)), FBNetV3Backbone)


def test_imports_on_the_command_line(users_module):
    cfg = load_detection_config(
        BASE,
        [
            "IMPORTS",
            f"['{users_module}']",
            "MODEL.BACKBONE.NAME",
            "build_users_backbone",
            "MODEL.DEVICE",
            "cpu",
        ],
    )
    assert [users_module] == cfg.IMPORTS and cfg.is_frozen()


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("IMPORTS: [no_such_module]", "IMPORTS 'no_such_module' cannot be imported .ModuleNotFoundError"),
        ("IMPORTS: my_module", "config.yaml: IMPORTS my_module must be a list"),
        (
            "SOLVER: {CHECKPOINTS_TO_KEEP: {A: 1}}",
            "config.yaml: SOLVER.CHECKPOINTS_TO_KEEP .* must be an integer",
        ),
        ("SOLVER: {BASE_LR: fast}", "config.yaml: SOLVER.BASE_LR fast must be a number"),
        ("MODEL: {MASK_ON: 5}", "config.yaml: MODEL.MASK_ON 5 must be True or False"),
        (
            "SOLVER: 3",
            "config.yaml: SOLVER is a single value in this file but a section in its _BASE_ file",
        ),
        ("SOLVER: {MAX_ITR: 3}", "config.yaml: unknown key SOLVER.MAX_ITR: did you mean SOLVER.MAX_ITER"),
    ],
)
def test_errors_name_file_and_key(yaml, message, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(f"_BASE_: {BASE}\n{yaml}\n")
    with pytest.raises(UsageError, match=message) as error:
        load_detection_config(config)
    assert "\n" not in str(error.value)


def test_the_config_file_of_a_run_resumes_it(tmp_path):
    cfg = load_detection_config(BASE)
    (tmp_path / "config.yaml").write_text(cfg.dump())
    again = load_detection_config(tmp_path / "config.yaml")
    fingerprints = [config_fingerprint(config, DETECTOR_IGNORED_KEYS) for config in (cfg, again)]
    assert fingerprints[0] == fingerprints[1]
