"""Create networks by name, and list the names."""

from __future__ import annotations

import fnmatch
import os

from fbnetv3.arch import ArchDef, get_arch, list_archs
from fbnetv3.arch.detector_cost import is_detection_variant
from fbnetv3.errors import UsageError
from fbnetv3.modeling.network import FBNetV3, FeatureExtractor, build_network
from fbnetv3.modeling.weights import load_weights


def create_model(
    arch: ArchDef | str | os.PathLike,
    pretrained: bool = False,
    num_classes: int | None = None,
    in_chans: int | None = None,
    features_only: bool = False,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
) -> FBNetV3 | FeatureExtractor:
    """Create a network.

    Args:
        arch: a registered name (`list_models()`), the path of an architecture's YAML file, or an architecture.
        pretrained: load the model zoo's weights, which are downloaded on first use.
        num_classes: outputs of the classifier; 0 for pooled features. Default: 1000, or as many as the pretrained
            weights have. With a different number, the pretrained trunk is kept and the head is randomly initialized.
        in_chans: channels of the input. Default: 3, or as many as the pretrained weights have.
        features_only: return feature maps at strides 2 to 32 instead of logits; the attributes `feature_channels` and
            `feature_strides` describe them. `num_classes` and `drop_rate` have no effect then.
        drop_rate: dropout before the head.
        drop_path_rate: stochastic depth of the last block; it grows linearly from 0 at the first.

    Returns:
        A module in training mode, in torch's default memory format. Input: (N, in_chans, H, W). Output:
        (N, num_classes). Pretrained weights expect normalized images: see `preprocessing` of their model zoo entry.

    Raises:
        UnknownNameError: no architecture or no weights of that name; the message suggests similar ones.
        ArchError: the architecture's file is missing or invalid.
        UsageError: an argument is invalid, or the pretrained weights are those of different blocks.
        WeightsError: the weights cannot be downloaded or do not fit.
    """
    arch = get_arch(arch)
    weights = None
    if pretrained:
        from fbnetv3 import model_zoo

        entry = model_zoo.entry_for_arch(arch.name)
        if arch.stages != entry.arch.stages:
            raise UsageError(
                f"{arch.name}: the weights of {entry} belong to an architecture with different blocks"
            )
        num_classes = entry.num_classes if num_classes is None else num_classes
        in_chans = entry.in_chans if in_chans is None else in_chans
        weights = entry.local_weights()
    model = build_network(
        arch,
        num_classes=1000 if num_classes is None else num_classes,
        in_chans=3 if in_chans is None else in_chans,
        features_only=features_only,
        drop_rate=drop_rate,
        drop_path_rate=drop_path_rate,
    )
    if weights is not None:
        load_weights(model, weights)
    return model


def list_models(filter: str = "*", pretrained: bool = False) -> list[str]:
    """Return the sorted names of the registered classifiers that match a shell-style pattern such as "*_cifar".

    With `pretrained`, return only those that have weights in the model zoo. The arguments have timm's names.
    """
    names = [name for name in list_archs() if not is_detection_variant(get_arch(name))]
    if pretrained:
        from fbnetv3 import model_zoo

        names = [name for name in names if model_zoo.has_weights(name)]
    return fnmatch.filter(names, filter)
