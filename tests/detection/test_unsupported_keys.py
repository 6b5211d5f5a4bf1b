"""Every key of detectron2's config is read by training, evaluation or a model, or setting it is an error."""

import contextlib
from unittest import mock

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from detectron2.solver import build_lr_scheduler
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from yacs.config import CfgNode as YacsNode

from fbnetv3.detection import add_fbnetv3_config
from fbnetv3.detection.data.detection_loaders import build_train_loader
from fbnetv3.detection.detection_config import load_detection_config
from fbnetv3.detection.training.detector_evaluation import evaluate_detector
from fbnetv3.detection.training.detector_training import train_detector
from fbnetv3.detection.unsupported_keys import UNSUPPORTED_KEYS, check_supported_keys
from fbnetv3.errors import DataError, UsageError
from fbnetv3.training.processes.distributed import SINGLE_PROCESS
from fbnetv3.utils.nested_keys import flatten

# Derived from detectron2, so that a key of a new version fails until it is read or refused
KEYS = flatten(get_cfg())
# A run that reads as many keys as possible: optional features are on
TRAINING = [
    *("SOLVER.OPTIMIZER", "SGD", "SOLVER.CLIP_GRADIENTS.ENABLED", "True", "SOLVER.MAX_ITER", "2"),
    *("SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", "bfloat16", "INPUT.CROP.ENABLED", "True"),
    *("DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler", "DATALOADER.REPEAT_THRESHOLD", "0.1"),
    *("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "norm", "VIS_PERIOD", "1"),
    *("TEST.AUG.ENABLED", "True", "TEST.AUG.MIN_SIZES", "(64,)"),
]
FEDERATED = ["MODEL.ROI_BOX_HEAD.USE_FED_LOSS", True, "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", True]
FEDERATED += ["DATASETS.TRAIN", ("with_counts",)]
# Models of detectron2 that read the other keys; none of them is trained here
MODELS = {
    "ResNet FPN with masks and keypoints": {
        "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
        "MODEL.FPN.IN_FEATURES": ["res4", "res5"],
        "MODEL.RESNETS.OUT_FEATURES": ["res4", "res5"],
        "MODEL.RPN.IN_FEATURES": ["p4", "p5"],
        "MODEL.ROI_HEADS.IN_FEATURES": ["p4", "p5"],
        "MODEL.ANCHOR_GENERATOR.SIZES": [[64], [128]],
        "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
        "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
        "MODEL.ROI_BOX_HEAD.NUM_FC": 1,
        "MODEL.ROI_BOX_HEAD.NUM_CONV": 1,
        "MODEL.MASK_ON": True,
        "MODEL.KEYPOINT_ON": True,
    },
    "Cascade": {
        "MODEL.ROI_HEADS.NAME": "CascadeROIHeads",
        "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": True,
    },
    "RetinaNet": {
        "MODEL.META_ARCHITECTURE": "RetinaNet",
        "MODEL.BACKBONE.NAME": "build_retinanet_resnet_fpn_backbone",
        "MODEL.RETINANET.IN_FEATURES": ["p5", "p6"],
    },
    "PanopticFPN": {
        "MODEL.META_ARCHITECTURE": "PanopticFPN",
        "MODEL.SEM_SEG_HEAD.IN_FEATURES": ["p4", "p5"],
    },
}


class ReadKeys:
    """The dotted keys that are read from a config and its copies within the block."""

    def __init__(self):
        self.keys = set()

    def tag(self, node, prefix=""):
        """Give each section of a config its dotted name, which copies keep."""
        node.__dict__["section"] = prefix
        for key, value in node.items():
            if isinstance(value, YacsNode):
                self.tag(value, f"{prefix}{key}.")

    def __enter__(self):
        original = YacsNode.__getattr__

        def read(node, name):
            if name in node and "section" in node.__dict__:
                self.keys.add(node.__dict__["section"] + name)
            return original(node, name)

        self._patch = mock.patch.object(YacsNode, "__getattr__", read)
        self._patch.start()
        return self

    def __exit__(self, *exception):
        self._patch.stop()


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("keys") / "run"


@pytest.fixture(scope="module")
def read_keys(digits_config, run_folder):
    """Return the keys that one short training run, its evaluation and the constructors of the models read."""
    cfg = load_detection_config(digits_config, [*TRAINING, "OUTPUT_DIR", str(run_folder)])
    reads = ReadKeys()
    reads.tag(cfg)
    with reads:
        train_detector(cfg)
        evaluate_detector(cfg)
        # Other schedules, a federated loss, and a dataset with keypoints
        cfg = cfg.clone()
        cfg.defrost()
        for cfg.SOLVER.LR_SCHEDULER_NAME in ("WarmupMultiStepLR", "WarmupStepWithFixedGammaLR"):
            build_lr_scheduler(cfg, torch.optim.SGD([torch.zeros(1)], 0.1))
        MetadataCatalog.get("with_counts").class_image_count = [
            {"id": number, "image_count": 3} for number in range(10)
        ]
        cfg.merge_from_list(FEDERATED)
        build_model(cfg)
        cfg.MODEL.KEYPOINT_ON = True
        cfg.DATASETS.TRAIN = ("custom_train",)
        with contextlib.suppress(DataError):  # the scenes have no keypoints
            build_train_loader(cfg, 0, SINGLE_PROCESS)
        values = {"MODEL.DEVICE": "cpu", "MODEL.RESNETS.DEPTH": 18, "MODEL.RESNETS.RES2_OUT_CHANNELS": 64}
        for changes in MODELS.values():
            values |= changes
            model_cfg = get_cfg()
            add_fbnetv3_config(model_cfg)
            model_cfg.merge_from_list([item for pair in values.items() for item in pair])
            reads.tag(model_cfg)
            build_model(model_cfg)
    return reads.keys


def changed(value):
    """Return another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (tuple, list)):
        return type(value)([*value, "x"])
    return value + 1


@pytest.mark.parametrize("key", KEYS)
def test_every_key_is_read_or_refused(key, read_keys):
    if key not in UNSUPPORTED_KEYS:
        assert key in read_keys
        return
    cfg = get_cfg()
    check_supported_keys(cfg)
    section, _, name = key.rpartition(".")
    node = cfg
    for part in filter(None, section.split(".")):
        node = node[part]
    node[name] = changed(KEYS[key])
    with pytest.raises(UsageError, match=f"^{key} ") as error:
        check_supported_keys(cfg)
    assert UNSUPPORTED_KEYS[key] in str(error.value) and "\n" not in str(error.value)


def test_refused_keys_exist():
    assert KEYS.keys() >= UNSUPPORTED_KEYS.keys()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["MODEL.PROPOSAL_GENERATOR.NAME", "RRPN"], "rotated boxes are not supported"),
        (["MODEL.ROI_HEADS.NAME", "RROIHeads"], "rotated boxes are not supported"),
        (["MODEL.ANCHOR_GENERATOR.NAME", "RotatedAnchorGenerator"], "rotated boxes are not supported"),
        (["MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlignRotated"], "rotated boxes are not supported"),
        (["MODEL.RPN.BBOX_REG_WEIGHTS", "(1, 1, 1, 1, 1)"], "rotated boxes are not supported"),
        (
            ["MODEL.PROPOSAL_GENERATOR.NAME", "PrecomputedProposals"],
            "proposals from files are not supported",
        ),
        (
            ["MODEL.META_ARCHITECTURE", "PanopticFPN"],
            "semantic and panoptic segmentation are not supported",
        ),
        (["MODEL.META_ARCHITECTURE", "RetinaNet", "TEST.AUG.ENABLED", "True"], "TEST.AUG.ENABLED True: "),
        (["MODEL.KEYPOINT_ON", "True", "TEST.AUG.ENABLED", "True"], "TEST.AUG.ENABLED True: "),
        (["MODEL.ROI_BOX_HEAD.USE_FED_LOSS", "True"], "needs MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE True"),
        (
            ["MODEL.ROI_BOX_HEAD.USE_FED_LOSS", "True", "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", "True"],
            "needs the number of images of each class, which custom_train does not have",
        ),
    ],
)
def test_values_that_are_refused(digits_config, overrides, message):
    with pytest.raises(UsageError, match=message) as error:
        load_detection_config(digits_config, overrides)
    assert "\n" not in str(error.value)


def test_pictures_of_the_training_are_in_tensorboard(read_keys, run_folder):
    """VIS_PERIOD: detectron2's models draw proposals next to the annotations."""
    events = EventAccumulator(str(run_folder / "tensorboard"))
    events.Reload()
    assert events.Tags()["images"]
