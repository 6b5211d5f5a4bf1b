"""Networks built from architectures: the trunk, the classifier, and the extractor of feature maps."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fbnetv3.arch import ArchDef
from fbnetv3.arch.definition import feature_blocks
from fbnetv3.errors import UsageError
from fbnetv3.modeling.blocks import BLOCKS, DEFAULT_NORM, NormLayer, init_weights
from fbnetv3.utils.checks import check_int


class Trunk(nn.Module):
    """The blocks of an architecture; block i of stage s is `stages[s][i]`.

    Args:
        arch: the architecture.
        in_chans: channels of the input.
        drop_path_rate: drop rate of the last block's stochastic depth; it grows linearly from 0 at the first block.
        norm_layer: builds a norm layer, given the number of channels.
        last: name of the last block to build; default: all.
    """

    def __init__(
        self,
        arch: ArchDef,
        in_chans: int = 3,
        drop_path_rate: float = 0.0,
        norm_layer: NormLayer = DEFAULT_NORM,
        last: str | None = None,
    ) -> None:
        super().__init__()
        self.arch = arch
        self.stages = nn.Sequential()
        blocks = arch.blocks(in_chans)
        for i, block in enumerate(blocks):
            if block.stage == len(self.stages):
                stage = nn.Sequential()
                self.stages.append(stage)
            # The drop rate grows linearly with depth
            rate = drop_path_rate * i / max(1, len(blocks) - 1)
            stage.append(BLOCKS.get(block.kind)(block.spec, norm_layer=norm_layer, drop_path=rate))
            if block.name == last:
                break
        init_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_chans, H, W) to the output of the last block."""
        return self.stages(x)


class FeatureExtractor(Trunk):
    """A trunk that returns its last map at every stride: 2, 4, 8, 16 and 32; networks for small images end at 16.

    A map is (N, C, ceil(H / stride), ceil(W / stride)) if strided blocks pad by kernel // 2, as in D, G and the
    networks with `same_padding`. A, B, C, E and F pad some of them less, so maps can be a pixel or two smaller.
    `feature_channels` and `feature_strides` list the channels and the stride of each map. The arguments are those of
    `Trunk`, except `last`.
    """

    def __init__(self, arch: ArchDef, in_chans: int = 3, **options: Any) -> None:
        # The last block and the stride of each map
        taps = feature_blocks(arch)
        if not taps:
            raise UsageError(
                f"{arch.name} has no blocks before its pooling block, so it has no feature maps to return"
            )
        super().__init__(arch, in_chans, last=taps[-1][0].name, **options)
        self._taps = frozenset((block.stage, block.index) for block, _ in taps)
        self.feature_channels = tuple(block.spec.out_channels for block, _ in taps)
        self.feature_strides = tuple(stride for _, stride in taps)

    def forward(self, x: Tensor) -> list[Tensor]:  # type: ignore[override]
        """Map (N, in_chans, H, W) to the maps, finest first."""
        maps = []
        for s, stage in enumerate(self.stages):
            for b, block in enumerate(stage):  # type: ignore[arg-type, var-annotated]
                x = block(x)
                if (s, b) in self._taps:
                    maps.append(x)
        return maps


class FBNetV3(nn.Module):
    """The classifier: trunk, average pool, dropout, 1x1 convolution to the classes.

    Args:
        num_classes: number of classes; 0 for a network that returns the pooled features.
        drop_rate: dropout before the head.

    The other arguments are those of `Trunk`.
    """

    def __init__(
        self,
        arch: ArchDef,
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        norm_layer: NormLayer = DEFAULT_NORM,
    ) -> None:
        super().__init__()
        self.arch = arch
        self.num_classes = num_classes
        self.backbone = Trunk(arch, in_chans, drop_path_rate, norm_layer)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(drop_rate)
        self.head = nn.Conv2d(arch.out_channels, num_classes, 1) if num_classes else nn.Identity()
        if isinstance(self.head, nn.Conv2d):
            assert self.head.bias is not None
            nn.init.normal_(self.head.weight, std=0.01)
            nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_chans, H, W) to logits (N, num_classes), or to features (N, C) without a head."""
        return self.head(self.dropout(self.pool(self.backbone(x)))).flatten(1)


def build_network(
    arch: ArchDef,
    *,
    num_classes: int = 1000,
    in_chans: int = 3,
    features_only: bool = False,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    norm_layer: NormLayer = DEFAULT_NORM,
) -> FBNetV3 | FeatureExtractor:
    """Build a randomly initialized `FBNetV3`, or `FeatureExtractor` with `features_only`.

    See these classes for the other arguments. `features_only` ignores `num_classes` and `drop_rate`: it has no head.
    """
    check_int(num_classes, "num_classes", 0)
    check_int(in_chans, "in_chans", 1)
    for argument, rate in (("drop_rate", drop_rate), ("drop_path_rate", drop_path_rate)):
        if not 0 <= rate < 1:
            raise UsageError(f"{argument} {rate!r} must be in [0, 1)")
    if features_only:
        return FeatureExtractor(arch, in_chans, drop_path_rate=drop_path_rate, norm_layer=norm_layer)
    return FBNetV3(arch, num_classes, in_chans, drop_rate, drop_path_rate, norm_layer)
