"""Create networks by name, and list the names."""

from __future__ import annotations

import fnmatch
import os
from typing import TYPE_CHECKING

from fbnetv3.arch import ARCHS, ArchDef, get_arch, list_archs
from fbnetv3.arch.detector_cost import is_detection_variant
from fbnetv3.errors import UsageError
from fbnetv3.modeling.network import FBNetV3, FeatureExtractor, build_network
from fbnetv3.modeling.timm_conventions.feature_levels import Indices
from fbnetv3.modeling.timm_conventions.global_pool import pooled_width
from fbnetv3.modeling.weights import load_weights

if TYPE_CHECKING:
    from fbnetv3.model_zoo import ClassifierEntry


def create_model(
    arch: ArchDef | str | os.PathLike,
    pretrained: bool = False,
    num_classes: int | None = None,
    in_chans: int | None = None,
    features_only: bool = False,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    *,
    out_indices: Indices = None,
    output_stride: int = 32,
    global_pool: str = "avg",
    checkpoint_path: str | os.PathLike | None = None,
) -> FBNetV3 | FeatureExtractor:
    """Create a network. Arguments, methods and attributes have timm's names and meaning.

    Args:
        arch: a registered name (`list_models()`), the path of an architecture's YAML file, or an architecture. A name
            may end in a tag, which selects among pretrained weights, as in "fbnetv3_d.ra2_in1k".
        pretrained: load the model zoo's weights, which are downloaded on first use.
        num_classes: outputs of the classifier; 0 for pooled features. Default: 1000, or as many as the pretrained
            weights have. With a different number, the pretrained trunk is kept and the head is randomly initialized.
        in_chans: channels of the input. Default: 3, or as many as the pretrained weights have. With a different number,
            the first convolution's pretrained weight is adapted: summed for one channel, else repeated and scaled.
        features_only: return feature maps at strides 2 to 32 instead of logits; the attributes `feature_channels`,
            `feature_strides` and `feature_info` describe them. `num_classes`, `drop_rate` and `global_pool` have no
            effect then.
        drop_rate: dropout before the head.
        drop_path_rate: stochastic depth of the last block; it grows linearly from 0 at the first.
        out_indices: with `features_only`, the maps to return, in this order: indices, of which negative ones count from
            the end, or the number of last maps; default: all.
        output_stride: 8, 16 or 32; the strides after it become dilations, so that maps do not get smaller.
        global_pool: "avg", "max", "avgmax", "catavgmax", or "" for none, which makes the output a map of logits.
        checkpoint_path: a file, a URL or a `zoo://` entry to load at the end; see `load_weights`.

    Returns:
        A module in training mode, in torch's default memory format. Input: (N, in_chans, H, W). Output:
        (N, num_classes). Pretrained weights expect normalized images: see `pretrained_cfg`, or `preprocessing` of their
        model zoo entry.

        Sides need not be multiples of the stride, and must be at least `min_input_size` pixels (of the network's
        `backbone`, or of a network with `features_only`). At every stride of 2, a map's sides are halved and rounded
        up. A, B, C, E and F pad one or two of their strided blocks less, as published, so that their maps at strides 16
        and 32 are a pixel or two smaller: 13 and 6 instead of 14 and 7 pixels for A at 224. `fbnetv3_b_same_padding` is
        B with timm's padding, for timm's weights and for maps of exact sizes.

    Raises:
        UnknownNameError: no architecture or no weights of that name; the message suggests similar ones.
        ArchError: the architecture's file is missing or invalid.
        UsageError: an argument is invalid, or the pretrained weights are those of different blocks.
        WeightsError: the weights cannot be downloaded or do not fit.
    """
    from fbnetv3 import model_zoo

    arch, tag = _split_tag(arch)
    arch = get_arch(arch)
    entry = model_zoo.entry_for_arch(arch.name, tag) if pretrained or tag else None
    weights = None
    if entry is not None and pretrained:
        _check_fits(arch, entry, global_pool)
        num_classes = entry.num_classes if num_classes is None else num_classes
        in_chans = entry.in_chans if in_chans is None else in_chans
        weights = entry.local_weights()
    model = build_network(
        arch,
        num_classes=1000 if num_classes is None else num_classes,
        in_chans=3 if in_chans is None else in_chans,
        features_only=features_only,
        out_indices=out_indices,
        output_stride=output_stride,
        global_pool=global_pool,
        drop_rate=drop_rate,
        drop_path_rate=drop_path_rate,
    )
    if weights is not None:
        load_weights(model, weights, adapt_input=True)
    if checkpoint_path:
        report = load_weights(model, checkpoint_path)
        if num_classes is None and not features_only and not report.head_loaded:
            raise UsageError(f"{checkpoint_path}: has other classes than the network; pass num_classes")
    entry = entry or model_zoo.default_entry(arch)
    cfg = model_zoo.pretrained_cfg(arch, entry, features_only=features_only)
    for name in ("pretrained_cfg", "default_cfg"):
        setattr(model, name, cfg)
    return model


def _split_tag(arch: ArchDef | str | os.PathLike) -> tuple[ArchDef | str | os.PathLike, str]:
    """Split a name such as "fbnetv3_d.ra2_in1k" into an architecture's and the tag of its weights."""
    if isinstance(arch, str) and arch not in ARCHS:
        name, _, tag = arch.partition(".")
        if name in ARCHS:
            return name, tag
    return arch, ""


def _check_fits(arch: ArchDef, entry: ClassifierEntry, global_pool: str) -> None:
    """Check that a network with this architecture and pooling can take the weights of an entry."""
    if arch.stages != entry.arch.stages:
        raise UsageError(
            f"{arch.name}: the weights of {entry} belong to an architecture with different blocks"
        )
    if pooled_width(global_pool) > 1:
        raise UsageError(
            f"global_pool {global_pool!r}: the weights of {entry} have a last convolution for half the channels; use "
            "avg, max or avgmax, or no pretrained weights"
        )


def list_models(filter: str = "*", pretrained: bool = False) -> list[str]:
    """Return the sorted names of the registered classifiers that match a shell-style pattern such as "*_cifar".

    With `pretrained`, return only those that have weights in the model zoo. The arguments have timm's names.
    """
    names = [name for name in list_archs() if not is_detection_variant(get_arch(name))]
    if pretrained:
        from fbnetv3 import model_zoo

        names = [name for name in names if model_zoo.has_weights(name)]
    return fnmatch.filter(names, filter)
