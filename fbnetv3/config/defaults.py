"""All keys of a training config: default, meaning and range of each."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from fvcore.common.config import CfgNode

from fbnetv3.utils.nested_keys import nest


@dataclass(frozen=True)
class ConfigKey:
    """A config key with its default, which determines its type, its description and the values that it accepts."""

    default: Any
    help: str
    low: int | None = None
    high: int | None = None
    above: int | None = None  # exclusive, in place of `low`
    below: int | None = None  # exclusive, in place of `high`
    choices: tuple[Any, ...] = ()
    items: str = "numbers"  # of a list; or "text"

    def accepts(self, value: Any) -> bool:
        """Return whether a value of the right type is allowed."""
        if isinstance(value, list):
            kinds = (str,) if self.items == "text" else (int, float)
            return all(type(item) in kinds for item in value)
        if self.choices:
            return value in self.choices
        # These comparisons are False for NaN
        return (
            (self.low is None or value >= self.low)
            and (self.high is None or value <= self.high)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def describe(self) -> str:
        """Describe the allowed values, as in "at least 0", "in [0, 1)" or "one of 1, 3"."""
        if isinstance(self.default, list):
            return f"a list of {self.items}"
        if self.choices:
            return f"one of {', '.join(map(str, self.choices))}"
        lower = f"[{self.low}" if self.above is None else f"({self.above}"
        if self.high is not None or self.below is not None:
            upper = f"{self.high:,}]" if self.below is None else f"{self.below:,})"
            return f"in {lower}, {upper}"
        return "" if self.low is None else f"at least {self.low}"


KEYS: dict[str, ConfigKey] = {}


def declare(name: str, default: Any, help: str, **limits: Any) -> None:
    """Declare a config key; `limits` are fields of `ConfigKey`."""
    KEYS[name] = ConfigKey(default, help, **limits)


def get_cfg() -> CfgNode:
    """Return a config with all defaults, for `merge_from_file` and `merge_from_list`."""
    return CfgNode(nest({name: copy.deepcopy(key.default) for name, key in KEYS.items()}))


# The run
declare("SEED", 0, "Random seed of weights, order of the images, augmentation and dropout.", low=0, high=2**32 - 1)
declare(
    "RECIPE",
    "",
    "A recipe file (docs/training.md), whose values replace those of the keys that it covers; empty for none. "
    "A relative path is first looked up next to the config file that sets it, as with MODEL.ARCH.",
)
declare("OUTPUT_DIR", "output/run", "Folder for checkpoints, logs, metrics and figures.")
declare(
    "IMPORTS",
    [],
    "Python modules to import first, such as my_package.datasets, which register your own datasets, blocks, losses, "
    "optimizers and so on. The current folder is searched too.",
    items="text",
)
declare("DEVICE", "auto", 'A torch device such as "cpu" or "cuda:1"; "auto" uses a GPU if there is one, else the CPU.')

# The network
declare(
    "MODEL.ARCH",
    "fbnetv3_a",
    "Registered name of an architecture (tools/analyze_net.py lists them), path of its YAML file, or one of "
    "torchvision's networks, such as torchvision/resnet50.",
)
declare("MODEL.ARCH_DIRS", [], "Folders of architecture files (*.yaml) that this run can use by name.", items="text")
declare("MODEL.NUM_CLASSES", 0, "Outputs of the classifier; 0 for the number of the dataset's classes.", low=0)
declare("MODEL.IN_CHANS", 3, "Channels of the input: 3 for RGB, 1 for grayscale.", choices=(1, 3))
declare("MODEL.DROP_RATE", 0.0, "Dropout before the classifier's last layer.", low=0, below=1)
declare("MODEL.DROP_PATH_RATE", 0.0, "Stochastic depth of the last block, rising from 0 at the first.", low=0, below=1)
declare(
    "MODEL.WEIGHTS",
    "",
    'Weights to start from or to evaluate: a file, a URL, or "zoo://" and a model zoo entry; empty for random weights.',
)
declare("MODEL.CHANNELS_LAST", True, "NHWC memory format, which is faster on CPUs and on GPUs with tensor cores.")
declare(
    "MODEL.SYNC_BN",
    True,
    "Compute BatchNorm statistics over the images of all processes, so that results do not depend on their number.",
)
declare("MODEL.COMPILE", False, "Compile the network: a minute or two at the start, then faster steps.")

# The dataset
declare("DATA.NAME", "imagefolder", "Registered name of a dataset: digits, cifar10, imagefolder, imagelist, shards.")
declare(
    "DATA.ROOT",
    "",
    "Folder of the dataset. For imagefolder, it has train/ and val/ (or test/) with one folder per class; for "
    "imagelist, this is the subset file; for shards, the folder of the tar files.",
)
declare("DATA.WORKERS", 2, "Worker processes per training process; 0 to load images in the training process.", low=0)
declare("DATA.MAX_CORRUPT", 0, "Corrupt images to skip; one more ends the run with an error that names them.", low=0)

# Preprocessing and augmentation
declare("INPUT.RESOLUTION", 0, "Side of the square input in pixels; 0 for the architecture's own.", low=0, high=8192)
declare(
    "INPUT.RESIZE",
    0,
    "In evaluation, short side before the center crop, in pixels; 0 keeps the architecture's ratio to the resolution.",
    low=0,
    high=16384,
)
declare("INPUT.MEAN", [0.485, 0.456, 0.406], "Mean to subtract from RGB (or gray) in [0, 1], one value per channel.")
declare("INPUT.STD", [0.229, 0.224, 0.225], "Standard deviation to divide by, one value per channel.")
declare(
    "INPUT.INTERPOLATION",
    "bilinear",
    "Interpolation used for all resizing.",
    choices=("bilinear", "bicubic", "nearest"),
)
declare(
    "INPUT.CROP",
    "random_resized",
    'Registered crop in training: "random_resized" (ImageNet), "padded" (pad, then crop), "none" (as in evaluation).',
)
declare("INPUT.CROP_SCALE", [0.08, 1.0], 'Smallest and largest fraction of the image\'s area for "random_resized".')
declare("INPUT.CROP_PADDING", 4, 'Pixels that "padded" adds on each side.', low=0)
declare("INPUT.FLIP", True, "During training, flip half of the images horizontally.")
declare(
    "INPUT.AUTO_AUGMENT",
    "none",
    "Registered augmentation after the crop: none, autoaugment (ImageNet's policy), randaugment.",
)
declare("INPUT.RANDOM_ERASING", 0.0, "Fraction of training images with a random rectangle erased.", low=0, high=1)
declare("INPUT.MIXUP", 0.0, "Alpha of mixup's Beta distribution; 0 for no mixup.", low=0)

# Optimization
declare("SOLVER.OPTIMIZER", "sgd", "Registered name of an optimizer: sgd, rmsprop (torch's), rmsprop_tf (timm's).")
declare("SOLVER.LOSS", "cross_entropy", "Registered name of a loss.")
declare("SOLVER.LR", 0.1, "Learning rate at the end of the warmup, for a batch of LR_BATCH_SIZE images.", low=0)
declare(
    "SOLVER.LR_BATCH_SIZE", 0, "Scale the learning rate by BATCH_SIZE / LR_BATCH_SIZE; 0 to use LR as it is.", low=0
)
declare("SOLVER.MOMENTUM", 0.9, "Momentum of the optimizer.", low=0, below=1)
declare("SOLVER.NESTEROV", True, "Nesterov momentum, for sgd.")
declare(
    "SOLVER.RMSPROP_ALPHA",
    0.9,
    "Smoothing of RMSProp's mean squared gradient. The paper does not state it.",
    low=0,
    below=1,
)
declare(
    "SOLVER.RMSPROP_EPS",
    0.25,
    "Constant in RMSProp's denominator: rmsprop (torch) adds it to the root of the mean squared gradient, rmsprop_tf "
    "(timm's RMSpropTF) adds it inside the root. The paper does not state it. EfficientNet and MobileNetV3 were "
    "trained with 0.001 inside the root. 0.25 outside the root makes steps for small gradients equal to those of SGD "
    "at four times the learning rate, which is the factor between the two in Table 2; with 0.001 outside the root, no "
    "recipe of Table 2 trained a small FBNetV3 on CIFAR-10.",
    above=0,
    high=1,
)
declare("SOLVER.WEIGHT_DECAY", 1e-5, "L2 penalty on the weights.", low=0)
declare("SOLVER.DECAY_NORM_BIAS", True, "Apply weight decay also to biases, and to scales and shifts of norm layers.")
declare("SOLVER.EPOCHS", 400, "Passes over the training images.", low=1)
declare("SOLVER.BATCH_SIZE", 256, "Images per step over all processes; at least 2, for BatchNorm.", low=2)
declare(
    "SOLVER.ACCUMULATE",
    1,
    "Split each step's batch into this many parts, processed in sequence, to save memory. BatchNorm sees one part.",
    low=1,
)
declare(
    "SOLVER.PRECISION",
    "float32",
    "Arithmetic of forward and backward pass: float32, or autocast to bfloat16 or float16 (with loss scaling).",
    choices=("float32", "bfloat16", "float16"),
)
declare(
    "SOLVER.SCHEDULE",
    "exponential",
    'Learning-rate schedule, by registered name: "cosine" (down to 0) or "exponential" (times DECAY each epoch).',
)
declare(
    "SOLVER.DECAY",
    0.9875,
    "Factor per epoch of the exponential schedule: 0.9875 in the paper's final training runs, 0.963 in its search.",
    above=0,
    high=1,
)
declare("SOLVER.WARMUP_EPOCHS", 5.0, "Epochs of the learning rate's linear rise from WARMUP_FACTOR * LR.", low=0)
declare("SOLVER.WARMUP_FACTOR", 0.1, "Fraction of LR at the start of the warmup.", above=0, high=1)
declare("SOLVER.LABEL_SMOOTHING", 0.0, "Fraction of the target spread evenly over all classes.", low=0, below=1)

# Exponential moving average
declare(
    "EMA.ENABLED", False, "Average weights and BatchNorm statistics; evaluate and save both raw and averaged weights."
)
declare("EMA.DECAY", 0.9998, "Weight of the previous average in each step.", low=0, below=1)

# Distillation
declare("DISTILL.ARCH", "", "Architecture of the teacher, as in MODEL.ARCH; empty for no distillation.")
declare("DISTILL.WEIGHTS", "", "Weights of the teacher, as in MODEL.WEIGHTS.")
declare(
    "DISTILL.RESOLUTION", 0, "Side of the teacher's input in pixels; 0 for its architecture's own.", low=0, high=8192
)
declare("DISTILL.ALPHA", 0.8, "Weight of the teacher loss; the label loss has 1 - ALPHA (Sec. 4.2).", above=0, high=1)
declare(
    "DISTILL.CACHE",
    "",
    "Folder of cached teacher logits, written once by tools/cache_teacher.py, so that training does not have to run "
    "the teacher. Cannot be combined with mixup.",
)
declare(
    "DISTILL.VIEWS",
    1,
    "With cached logits: number of fixed augmented views per image, used in turn instead of a new one each epoch.",
    low=1,
)

# Evaluation, checkpoints, logging
declare("EVAL.PERIOD", 1, "Epochs between evaluations; the last epoch is always evaluated.", low=1)
declare("EVAL.BATCH_SIZE", 256, "Images per step in evaluation, per process.", low=1)
declare("CHECKPOINT.PERIOD", 1, "Epochs between checkpoints; the last epoch always has one.", low=1)
declare("CHECKPOINT.STEPS", 0, "Steps between additional checkpoints, for long epochs; 0 for none.", low=0)
declare("CHECKPOINT.KEEP", 3, "Number of newest checkpoints to keep.", low=1)
declare("LOG.PERIOD", 20, "Steps between entries of the metrics file.", low=1)
