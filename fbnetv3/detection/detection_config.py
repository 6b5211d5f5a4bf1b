"""The keys that FBNetV3 adds to detectron2's config, and the configs that come along."""

from __future__ import annotations

from detectron2.config import CfgNode, get_cfg

from fbnetv3.arch.detector_settings import list_detector_configs
from fbnetv3.errors import UnknownNameError, UsageError, suggest


def add_fbnetv3_config(cfg: CfgNode) -> None:
    """Add our keys, with their defaults, to a detectron2 config, before files are merged."""
    cfg.MODEL.FBNETV3 = CfgNode()
    # Architecture of trunk, RPN head and box head: a registered name, the path of a YAML file, or a classifier's.
    cfg.MODEL.FBNETV3.ARCH = "fbnetv3_a_det"
    # Maps that build_fbnetv3_backbone returns: "res4" for C4. Pyramids take MODEL.FPN.IN_FEATURES instead.
    cfg.MODEL.FBNETV3.OUT_FEATURES = ["res4"]
    # Norm of trunk, RPN head and box head: BN, SyncBN, naiveSyncBN, naiveSyncBN_N, FrozenBN, GN, LN.
    cfg.MODEL.FBNETV3.NORM = "BN"
    # Blocks of the RPN head; 0 means as many as the last row of the C4 trunk has.
    cfg.MODEL.FBNETV3.RPN_BLOCKS = 0
    # A classifier's weights to start trunk and box head from: a file, a URL or "zoo://" and a model zoo entry. They
    # must be of the same architecture. "" starts afresh. Not read where MODEL.WEIGHTS names a detector's weights.
    cfg.MODEL.FBNETV3.WEIGHTS = ""
    # NHWC memory order, which is faster on CPUs and on GPUs with tensor cores.
    cfg.MODEL.FBNETV3.CHANNELS_LAST = True

    cfg.MODEL_EMA = CfgNode()
    # Average the weights and BatchNorm's statistics over training, and evaluate the average.
    cfg.MODEL_EMA.ENABLED = False
    # Weight of the past in each step.
    cfg.MODEL_EMA.DECAY = 0.9998

    # A data set of one's own: COCO's files of annotations, and the folders that hold the images. They are known as
    # "own_train" and "own_test", and take the place of DATASETS.TRAIN and TEST.
    cfg.DATASETS.OWN = CfgNode()
    # Annotations to train on; "" for DATASETS.TRAIN and TEST as they are.
    cfg.DATASETS.OWN.TRAIN_JSON = ""
    # Folder of their images.
    cfg.DATASETS.OWN.TRAIN_IMAGES = ""
    # Annotations to evaluate on; "" evaluates on nothing.
    cfg.DATASETS.OWN.TEST_JSON = ""
    # Folder of their images.
    cfg.DATASETS.OWN.TEST_IMAGES = ""

    # "SGD", or "AdamW", which takes neither SOLVER.MOMENTUM nor SOLVER.NESTEROV.
    cfg.SOLVER.OPTIMIZER = "SGD"
    # Checkpoints to keep: the newest so many.
    cfg.SOLVER.CHECKPOINTS = 2


def config_file(name: str) -> str:
    """Path of a config that comes along, for `cfg.merge_from_file`.

    Args:
        name: such as "faster_rcnn_fbnetv3_a_C4"; ".yaml" may follow.

    Raises:
        UnknownNameError: no such config; the text suggests close names.
    """
    files = list_detector_configs()
    stem = name.removesuffix(".yaml")
    if stem not in files:
        raise UnknownNameError(f"no detection config '{name}': {suggest(stem, files)}")
    return str(files[stem])


def get_config(name: str) -> CfgNode:
    """detectron2's config with our keys and the values of a config that comes along; see `config_file`."""
    cfg = get_cfg()
    add_fbnetv3_config(cfg)
    cfg.merge_from_file(config_file(name))
    return cfg


def settings(cfg: CfgNode) -> CfgNode:
    """`MODEL.FBNETV3` of a config.

    Raises:
        UsageError: the config has no such keys.
    """
    if "FBNETV3" not in cfg.MODEL:
        raise UsageError(
            "the config has no MODEL.FBNETV3: call fbnetv3.detection.add_fbnetv3_config(cfg) before merging files"
        )
    return cfg.MODEL.FBNETV3


def classifier_weights(cfg: CfgNode) -> str:
    """The classifier's weights to start from; none where a detector's are going to be loaded."""
    return "" if cfg.MODEL.WEIGHTS else settings(cfg).WEIGHTS
