"""All keys of a training config: default, meaning and range of each.

docs/hooks/config_reference.py generates the config reference from these declarations and the comments above them.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from typing import Any

from fvcore.common.config import CfgNode

from fbnetv3.utils.nested_keys import nest


@dataclass(frozen=True)
class ConfigKey:
    """A config key: its default, which also determines the type, and the values that it accepts."""

    default: Any
    low: float | None = None
    high: float | None = None
    above: float | None = None  # exclusive alternative to `low`
    below: float | None = None  # exclusive alternative to `high`
    choices: tuple[Any, ...] = ()
    item_type: type = float  # of a list: float, which also accepts integers, or str
    auto: bool = False  # whether an integer may be left to the program, by "auto"

    @property
    def types(self) -> tuple[type, ...]:
        """The types that a value may have."""
        return (int, str) if self.auto else (type(self.default),)

    def accepts(self, value: Any) -> bool:
        """Return whether a value of the right type is allowed."""
        if isinstance(value, list):
            if self.item_type is str:
                return all(type(item) is str for item in value)
            return all(type(item) in (int, float) and abs(item) < math.inf for item in value)
        if self.choices:
            return value in self.choices
        if self.auto and isinstance(value, str):
            return value == "auto"
        # These comparisons are False for NaN
        return (
            (self.low is None or value >= self.low)
            and (self.high is None or value <= self.high)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def describe(self) -> str:
        """Describe the allowed values, as in "at least 0", "in [0, 1)", "one of 1, 3" or "auto, or at least 0"."""
        if self.auto:
            return f"auto, or {replace(self, auto=False).describe()}"
        if isinstance(self.default, list):
            return f"a list of {'text' if self.item_type is str else 'finite numbers'}"
        if self.choices:
            return f"one of {', '.join(str(choice) or 'empty' for choice in self.choices)}"
        bounds = {"at least": self.low, "above": self.above, "at most": self.high, "below": self.below}
        texts = [f"{words} {bound:,}" for words, bound in bounds.items() if bound is not None]
        if len(texts) < 2:
            return "".join(texts)
        lower = f"[{self.low:,}" if self.above is None else f"({self.above:,}"
        upper = f"{self.high:,}]" if self.below is None else f"{self.below:,})"
        return f"in {lower}, {upper}"


KEYS: dict[str, ConfigKey] = {}


def declare(name: str, default: Any, **limits: Any) -> None:
    """Declare a config key; `limits` are fields of `ConfigKey`, and the comment above is its description."""
    KEYS[name] = ConfigKey(default, **limits)


def get_cfg() -> CfgNode:
    """Return a config with all defaults, for `merge_from_file` and `merge_from_list`."""
    return CfgNode(nest({name: copy.deepcopy(key.default) for name, key in KEYS.items()}))


# Random seed for initial weights, image order, augmentation and dropout
declare("SEED", 0, low=0, high=2**32 - 1)
# Recipe file (docs/training.md); its values replace those of the corresponding keys. Empty for none. A relative path is
# first looked up next to the config file that sets it, as with MODEL.ARCH.
declare("RECIPE", "")
# Folder for checkpoints, logs, metrics and figures
declare("OUTPUT_DIR", "output/run")
# Python modules to import first, such as my_package.datasets, which register your own datasets, blocks, losses,
# optimizers and so on. The current folder is searched too.
declare("IMPORTS", [], item_type=str)
# A torch device such as "cpu" or "cuda:1"; "auto" uses a GPU if there is one, else the CPU
declare("DEVICE", "auto")

# Registered name of an architecture (tools/analyze_net.py lists them), path of its YAML file, or one of torchvision's
# networks, such as torchvision/resnet50. Empty for that of MODEL.WEIGHTS, whose checkpoint records it.
declare("MODEL.ARCH", "fbnetv3_a")
# Folders of architecture files (*.yaml) that this run can use by name
declare("MODEL.ARCH_DIRS", [], item_type=str)
# Number of classes; 0 to use the dataset's
declare("MODEL.NUM_CLASSES", 0, low=0)
# Channels of the input: 3 for RGB, 1 for grayscale, 4 for RGBA, others for pages of TIFF files or arrays
# (docs/training.md); 0 for those of MODEL.WEIGHTS
declare("MODEL.IN_CHANS", 3, low=0, high=1024)
# Dropout before the classifier's last layer
declare("MODEL.DROP_RATE", 0.0, low=0, below=1)
# Stochastic depth of the last block; it grows linearly from 0 at the first
declare("MODEL.DROP_PATH_RATE", 0.0, low=0, below=1)
# Weights to start from or to evaluate: a file, a URL, or "zoo://" followed by a model zoo entry. Empty for random
# initialization. If they have other classes, the head's rows of classes with the same names are kept.
declare("MODEL.WEIGHTS", "")
# Part of the network to freeze, for fine-tuning: none, stem, trunk (all but the head), or a number of stages, such
# as 3: the stem and the next two. Frozen parts stay in evaluation mode: their BatchNorm statistics do not
# change.
declare("MODEL.FREEZE", "none")
# Freeze all BatchNorm layers (statistics, scales and shifts), for example when batches are small
declare("MODEL.FREEZE_NORM", False)
# NHWC memory format, which is faster on CPUs and on GPUs with tensor cores
declare("MODEL.CHANNELS_LAST", True)
# In distributed training, compute BatchNorm statistics over the images of all processes, so results do not depend on
# the number of processes
declare("MODEL.SYNC_BN", True)
# Compile the network with torch.compile: a minute or two at the start, then faster steps. With several processes, this
# needs SYNC_BN False.
declare("MODEL.COMPILE", False)

# Registered name of a dataset: digits, cifar10, csv, imagefolder, imagelist, shards
declare("DATA.NAME", "imagefolder")
# Folder of the dataset. For imagefolder, it has train/ and val/ (or test/) with one folder per class; for csv,
# train.csv and val.csv (or test.csv); for imagelist, this is the subset file; for shards, the folder of the tar files.
declare("DATA.ROOT", "")
# Images of an epoch in training: uniform (each image once) or balanced (all classes equally often, by repeating images
# of rare classes and leaving out images of frequent ones)
declare("DATA.SAMPLING", "uniform", choices=("uniform", "balanced"))
# Processes that load images, per training process; 0 to load in the training process. "auto" divides the CPUs among the
# training processes of the machine, keeps one for each of these, and uses the others, at most 16; for a GPU, at least
# one process loads images.
declare("DATA.WORKERS", "auto", auto=True, low=0)
# Keep the images in the device's memory and augment them there: always, never, or auto (on a GPU, if they take at most
# 2 GiB). Only padded crops and flips can be augmented there, and without DISTILL.CACHE; the random numbers are others.
declare("DATA.ON_DEVICE", "auto", choices=("auto", "always", "never"))
# Maximum number of corrupt images to skip; one more ends the run with an error that names them
declare("DATA.MAX_CORRUPT", 0, low=0)

# Side of the network's square input in pixels; 0 for the architecture's own
declare("INPUT.RESOLUTION", 0, low=0, high=8192)
# In evaluation, short side of the image in pixels before the center crop; 0 keeps the architecture's ratio to the
# resolution
declare("INPUT.RESIZE", 0, low=0, high=16384)
# Mean to subtract from pixels in [0, 1], one value per channel; [] for that of MODEL.WEIGHTS
declare("INPUT.MEAN", [0.485, 0.456, 0.406])
# Standard deviation to divide by, one value per channel; [] for that of MODEL.WEIGHTS
declare("INPUT.STD", [0.229, 0.224, 0.225])
# Interpolation used for all resizing: bilinear, bicubic or nearest; empty for that of MODEL.WEIGHTS
declare("INPUT.INTERPOLATION", "bilinear", choices=("", "bilinear", "bicubic", "nearest"))
# Crop in training, by registered name: random_resized (ImageNet), padded (pad, then crop at random), or none (resize
# and center crop, as in evaluation)
declare("INPUT.CROP", "random_resized")
# Smallest and largest fraction of the image's area for random_resized
declare("INPUT.CROP_SCALE", [0.08, 1.0])
# Pixels that padded adds on each side
declare("INPUT.CROP_PADDING", 4, low=0)
# During training, flip half of the images horizontally
declare("INPUT.FLIP", True)
# Largest relative change of brightness, contrast and saturation in training; 0 for none
declare("INPUT.COLOR_JITTER", 0.0, low=0, high=1)
# Augmentation after the crop, by registered name: none, autoaugment (ImageNet's policy) or randaugment
declare("INPUT.AUTO_AUGMENT", "none")
# Probability of erasing a random rectangle of a training image
declare("INPUT.RANDOM_ERASING", 0.0, low=0, high=1)
# Alpha of mixup's Beta distribution; 0 for no mixup
declare("INPUT.MIXUP", 0.0, low=0)
# Alpha of CutMix's Beta distribution; 0 for no CutMix. With mixup, each batch gets one of them, with equal probability.
declare("INPUT.CUTMIX", 0.0, low=0)

# Registered name of an optimizer: sgd, adamw, rmsprop (torch's), rmsprop_tf (timm's); or any of timm's by its name
# there, such as timm/lion, with timm's own settings besides LR, WEIGHT_DECAY, MOMENTUM and ADAM_BETAS
declare("SOLVER.OPTIMIZER", "sgd")
# Registered name of a loss: cross_entropy, focal (cross-entropy with less weight on easy images), binary_cross_entropy
# and sigmoid_focal (one decision per class), or your own
declare("SOLVER.LOSS", "cross_entropy")
# Exponent of focal and sigmoid_focal: the larger, the less weight easy images have
declare("SOLVER.FOCAL_GAMMA", 2.0, low=0)
# Weights of classes in the loss: none, or balanced (in inverse proportion to the numbers of training images)
declare("SOLVER.CLASS_WEIGHTING", "none", choices=("none", "balanced"))
# Factors of class weights by name, such as ["cat=2", "dog=0.5"]. All weights are scaled so that the mean weight of the
# training images is 1.
declare("SOLVER.CLASS_WEIGHTS", [], item_type=str)
# Learning rate after the warmup; see LR_BATCH_SIZE
declare("SOLVER.LR", 0.1, low=0)
# Batch size that LR is meant for: LR is multiplied by BATCH_SIZE / LR_BATCH_SIZE; 0 for no scaling
declare("SOLVER.LR_BATCH_SIZE", 0, low=0)
# With LR_BATCH_SIZE: multiply LR by the ratio of batch sizes (linear, for sgd) or by its square root (sqrt, for adamw)
declare("SOLVER.LR_SCALING", "linear", choices=("linear", "sqrt"))
# Factor of the learning rate in the trunk, usually below 1 for fine-tuning; to freeze the trunk, use MODEL.FREEZE
declare("SOLVER.TRUNK_LR_FACTOR", 1.0, above=0)
# Factor of the learning rate in the head, the layer with one output per class
declare("SOLVER.HEAD_LR_FACTOR", 1.0, above=0)
# Layer-wise decay: factor of the learning rate from each block of the trunk to the one before it, counted from the head
declare("SOLVER.LAYER_DECAY", 1.0, above=0, high=1)
# Momentum of the optimizer
declare("SOLVER.MOMENTUM", 0.9, low=0, below=1)
# Nesterov momentum, for sgd
declare("SOLVER.NESTEROV", True)
# Decays of AdamW's moving averages of gradients and squared gradients
declare("SOLVER.ADAM_BETAS", [0.9, 0.999])
# Constant in AdamW's denominator
declare("SOLVER.ADAM_EPS", 1e-8, above=0)
# Decay of RMSProp's moving average of squared gradients. The paper does not list it.
declare("SOLVER.RMSPROP_ALPHA", 0.9, low=0, below=1)
# Constant in RMSProp's denominator, which the paper does not state: rmsprop (torch) adds it to the root of the mean
# squared gradient, rmsprop_tf (timm's RMSpropTF) adds it inside the root. Set it to 0.001 with rmsprop_tf;
# docs/training.md gives the reason for 0.25.
declare("SOLVER.RMSPROP_EPS", 0.25, above=0, high=1)
# Weight decay: an L2 penalty with sgd and rmsprop
declare("SOLVER.WEIGHT_DECAY", 1e-5, low=0)
# Apply weight decay also to biases, and to scales and shifts of norm layers
declare("SOLVER.DECAY_NORM_BIAS", True)
# Passes over the training images; 0 to fit the number of images, for fine-tuning (docs/training.md)
declare("SOLVER.EPOCHS", 400, low=0)
# Early stopping: end the run after this many evaluations without a better accuracy; 0 for never. The best weights are
# in model_best.pth.
declare("SOLVER.PATIENCE", 0, low=0)
# Images per step over all processes; at least 2, for BatchNorm. 0 to fit the number of images, for fine-tuning.
declare("SOLVER.BATCH_SIZE", 256, low=0)
# On a GPU, halve BATCH_SIZE until a step fits in memory, which takes a few trial steps at the start; LR follows it if
# LR_BATCH_SIZE is set
declare("SOLVER.FIT_MEMORY", False)
# Split each step's batch into this many parts, processed in sequence, to save memory. BatchNorm computes its
# statistics over one part at a time.
declare("SOLVER.ACCUMULATE", 1, low=1)
# Arithmetic of forward and backward pass: float32, autocast to bfloat16 or float16 (with loss scaling), or auto, which
# is bfloat16 on GPUs that have it and float32 elsewhere. A resumed run keeps its own.
declare("SOLVER.PRECISION", "float32", choices=("auto", "float32", "bfloat16", "float16"))
# On a GPU, use only deterministic algorithms, which are slower; otherwise cuDNN takes those that it finds fastest
declare("SOLVER.DETERMINISTIC", False)
# Learning-rate schedule, by registered name: cosine (down to 0) or exponential (times DECAY each epoch)
declare("SOLVER.SCHEDULE", "exponential")
# Factor per epoch of the exponential schedule: 0.9875 in the paper's final training runs, 0.963 in its search
declare("SOLVER.DECAY", 0.9875, above=0, high=1)
# Epochs over which the learning rate rises linearly from WARMUP_FACTOR * LR to LR; -1 for a tenth of the run
declare("SOLVER.WARMUP_EPOCHS", 5.0, low=-1)
# Learning rate at the start of the warmup, as a fraction of LR
declare("SOLVER.WARMUP_FACTOR", 0.1, above=0, high=1)
# Fraction of the target that is spread evenly over all classes
declare("SOLVER.LABEL_SMOOTHING", 0.0, low=0, below=1)

# Average weights and BatchNorm statistics over training; evaluate and save both raw and averaged weights
declare("EMA.ENABLED", False)
# Weight of the previous average in each step
declare("EMA.DECAY", 0.9998, low=0, below=1)

# Architecture of the teacher, as in MODEL.ARCH; empty for no distillation
declare("DISTILL.ARCH", "")
# Weights of the teacher, as in MODEL.WEIGHTS
declare("DISTILL.WEIGHTS", "")
# Side of the teacher's input in pixels; 0 for its architecture's own
declare("DISTILL.RESOLUTION", 0, low=0, high=8192)
# Weight of the teacher loss; the label loss has weight 1 - ALPHA (Sec. 4.2)
declare("DISTILL.ALPHA", 0.8, above=0, high=1)
# Folder of cached teacher logits, written by tools/cache_teacher.py; training then does not run the teacher, but ARCH
# and WEIGHTS must still be set. Cannot be combined with mixup.
declare("DISTILL.CACHE", "")
# With cached logits: number of fixed augmented views per image, used in turn instead of a new one each epoch
declare("DISTILL.VIEWS", 1, low=1)

# Quantization-aware training: fine-tune MODEL.WEIGHTS while layers round as in an int8 export, which then uses the
# trained weights and the ranges of feature maps that this run has observed. BatchNorm statistics stay constant.
declare("QAT.ENABLED", False)
# Bits of the weights: 8, or 7 for exports with --reduce-range
declare("QAT.WEIGHT_BITS", 8, choices=(7, 8))
# Share of the weights in the first layers that stay float
declare("QAT.FLOAT_SHARE", 0.01, low=0, below=1)
# Part of the run in which ranges follow the feature maps; they stay constant in the rest
declare("QAT.OBSERVE", 0.5, above=0, high=1)

# Epochs between evaluations; the last epoch is always evaluated
declare("EVAL.PERIOD", 1, low=1)
# Test-time augmentation: average the probabilities over flip (the image and its mirror image), five_crop (corners and
# center of the resized image, see INPUT.RESIZE) or ten_crop (both)
declare("EVAL.TTA", "none", choices=("none", "flip", "five_crop", "ten_crop"))
# Images per step in evaluation, per process
declare("EVAL.BATCH_SIZE", 256, low=1)
# Folder for the report: tables and figures of the last evaluation. "auto" is evaluation/ in OUTPUT_DIR for a training
# run, and for --eval-only if it evaluates the run in OUTPUT_DIR; other weights are then evaluated without writing
# anything. "off" for none, and no picture of augmented images.
declare("EVAL.REPORT", "auto")

# Epochs between checkpoints; the last epoch always has one
declare("CHECKPOINT.PERIOD", 1, low=1)
# Steps between additional checkpoints, for long epochs; 0 for none
declare("CHECKPOINT.STEPS", 0, low=0)
# Number of checkpoints to keep; older ones are deleted
declare("CHECKPOINT.KEEP", 3, low=1)

# Steps between entries of the metrics file
declare("LOG.PERIOD", 20, low=1)
# Registered names of experiment trackers: tensorboard, wandb (Weights & Biases), mlflow, or your own
declare("LOG.TRACKERS", ["tensorboard"], item_type=str)
# Keep a table of all runs, results.csv, in the folder that contains OUTPUT_DIR
declare("LOG.RESULTS", True)
