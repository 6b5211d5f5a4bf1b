"""The one call that most users need: a network by its name."""

from __future__ import annotations

import fnmatch
import os

from fbnetv3.arch import ArchDef, get_arch, list_archs
from fbnetv3.errors import UsageError
from fbnetv3.modeling.network import FBNetV3, Features, build_network
from fbnetv3.modeling.weights import load_weights


def create_model(
    arch: ArchDef | str | os.PathLike,
    pretrained: bool = False,
    num_classes: int | None = None,
    in_chans: int | None = None,
    features_only: bool = False,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
) -> FBNetV3 | Features:
    """Build a network.

    Args:
        arch: a registered name (`list_models()`), the path of an architecture's YAML file, or a definition.
        pretrained: load the model zoo's weights; they are downloaded on first use.
        num_classes: outputs of the classifier; 0 gives pooled features. Default: 1000, or what the
            pretrained weights have. Another number keeps the pretrained trunk and starts the head afresh.
        in_chans: channels of the input; default 3, or what the pretrained weights have.
        features_only: return the maps at strides 2 to 32 instead of logits; `feature_channels` and
            `feature_strides` tell their shapes.
        drop_rate: dropout before the head.
        drop_path_rate: stochastic depth of the last block, growing linearly from 0 at the first.

    Returns:
        A module in training mode, in torch's default memory format. Input (N, in_chans, H, W), RGB normalised
        by ImageNet's mean and deviation for the published weights; output (N, num_classes).

    Raises:
        UnknownNameError: no architecture or no weights of that name; the text suggests close ones.
        ArchError, UsageError: a definition or an argument that makes no sense.
        WeightsError: the weights cannot be had or do not fit.
    """
    defn = get_arch(arch)
    if not pretrained:
        return build_network(
            defn,
            num_classes=1000 if num_classes is None else num_classes,
            in_chans=3 if in_chans is None else in_chans,
            features_only=features_only,
            drop_rate=drop_rate,
            drop_path_rate=drop_path_rate,
        )
    from fbnetv3 import model_zoo

    entry = model_zoo.entry_for_arch(defn.name)
    if defn.stages != entry.arch.stages:
        raise UsageError(
            f"no pretrained weights for this {defn.name}: the zoo's are for other blocks, those of {entry}"
        )
    model = build_network(
        defn,
        num_classes=entry.num_classes if num_classes is None else num_classes,
        in_chans=entry.in_chans if in_chans is None else in_chans,
        features_only=features_only,
        drop_rate=drop_rate,
        drop_path_rate=drop_path_rate,
    )
    load_weights(model, entry.local_weights())
    return model


def list_models(filter: str = "*", pretrained: bool = False) -> list[str]:
    """Names of the registered architectures.

    Args:
        filter: a pattern as for file names, such as "*_cifar".
        pretrained: only those for which the model zoo has weights.
    """
    names = list_archs()
    if pretrained:
        from fbnetv3 import model_zoo

        names = [name for name in names if model_zoo.has_weights(name)]
    return fnmatch.filter(names, filter)
