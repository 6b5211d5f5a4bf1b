"""The blocks of an architecture as a module, and the extractor of their feature maps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fbnetv3.arch import ArchDef
from fbnetv3.arch.definition import feature_blocks
from fbnetv3.errors import UsageError
from fbnetv3.modeling.blocks import BLOCKS, DEFAULT_NORM, NormLayer, init_weights
from fbnetv3.modeling.timm_conventions.activation_checkpointing import run_checkpointed
from fbnetv3.modeling.timm_conventions.feature_levels import (
    FeatureInfo,
    Indices,
    describe_levels,
    resolve_indices,
)
from fbnetv3.modeling.timm_conventions.output_stride import (
    check_input_size,
    limit_output_stride,
    min_input_size,
)


class Trunk(nn.Module):
    """The blocks of an architecture; block i of stage s is `stages[s][i]`.

    Args:
        arch: the architecture.
        in_chans: channels of the input.
        drop_path_rate: drop rate of the last block's stochastic depth; it grows linearly from 0 at the first block.
        norm_layer: builds a norm layer, given the number of channels.
        last: name of the last block to build; default: all.
        output_stride: largest stride to keep; later ones become dilations.

    Attributes:
        min_input_size: smallest height and width of an input, in pixels.
    """

    def __init__(
        self,
        arch: ArchDef,
        in_chans: int = 3,
        drop_path_rate: float = 0.0,
        norm_layer: NormLayer = DEFAULT_NORM,
        last: str | None = None,
        output_stride: int = 32,
    ) -> None:
        super().__init__()
        self.arch = arch
        self.in_chans = in_chans
        self.grad_checkpointing = False
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
        modules = (module for _, module in self.named_blocks())
        limit_output_stride(zip(blocks, modules, strict=False), output_stride)
        self.min_input_size = min_input_size(self.stages)

    def named_blocks(self) -> Iterator[tuple[str, nn.Module]]:
        """Iterate over the blocks in order, with their names."""
        for s, stage in self.stages.named_children():
            for b, block in stage.named_children():
                yield f"stages.{s}.{b}", block

    def remove_blocks_after(self, name: str) -> None:
        """Make the trunk end in the block of that name."""
        _, s, b = name.split(".")
        stages: Any = self.stages[: int(s) + 1]
        stages[-1] = stages[-1][: int(b) + 1]
        self.stages = stages
        self.min_input_size = min_input_size(self.stages)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_chans, H, W) to the output of the last block.

        Raises:
            UsageError: a side of the input is smaller than `min_input_size`.
        """
        if not torch.jit.is_scripting():  # noqa: SIM102 - scripting skips this branch only if it has a single condition
            if isinstance(x, Tensor):
                self.check_input(x)
                if self.grad_checkpointing:
                    for _, block in self.named_blocks():
                        x = run_checkpointed(block, x)
                    return x
        return self.stages(x)

    def check_input(self, x: Tensor) -> None:
        """Raise UsageError if a side of an input (N, in_chans, H, W) is smaller than `min_input_size`."""
        check_input_size(x, self.min_input_size, self.arch.name)

    def run(self, layer: nn.Module, x: Tensor) -> Tensor:
        """Run one of the layers, checkpointed if that is on."""
        return run_checkpointed(layer, x) if self.grad_checkpointing else layer(x)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Save memory in training: keep only the outputs of blocks, and compute what is inside them again."""
        self.grad_checkpointing = enable


class FeatureExtractor(Trunk):
    """A trunk that returns its last map at every stride: 2, 4, 8, 16 and 32; networks for small images end at 16.

    A map is (N, C, ceil(H / stride), ceil(W / stride)) if strided blocks pad by kernel // 2, as in D, G and the
    networks with `same_padding`. A, B, C, E and F pad some of them less, so maps can be a pixel or two smaller.

    Args:
        out_indices: maps to return, in this order: indices, of which negative ones count from the end, or the number
            of last maps; default: all. Blocks after the last of them are not built.

    The other arguments are those of `Trunk`, except `last`.

    Attributes:
        feature_channels: channels of each returned map.
        feature_strides: stride of each returned map.
        feature_info: descriptions of all maps, with timm's accessors.
        pretrained_cfg, default_cfg: the model zoo's pretrained config, if `create_model` created the network.
    """

    def __init__(
        self,
        arch: ArchDef,
        in_chans: int = 3,
        *,
        out_indices: Indices = None,
        output_stride: int = 32,
        **options: Any,
    ) -> None:
        # The last block and the stride of each map
        taps = feature_blocks(arch)
        if not taps:
            raise UsageError(
                f"{arch.name} has no blocks before its pooling block, so it has no feature maps to return"
            )
        indices = resolve_indices(out_indices, len(taps), "out_indices")
        last, _ = taps[max(indices)]
        super().__init__(arch, in_chans, last=last.name, output_stride=output_stride, **options)
        self.feature_info = FeatureInfo(describe_levels(arch, output_stride), indices)
        self.feature_channels = tuple(self.feature_info.channels())
        self.feature_strides = tuple(self.feature_info.reduction())

    def forward(self, x: Tensor) -> list[Tensor]:  # type: ignore[override]
        """Map (N, in_chans, H, W) to the maps of `out_indices`."""
        if isinstance(x, Tensor):
            self.check_input(x)
        names = self.feature_info.module_name()
        maps = {}
        for name, block in self.named_blocks():
            x = self.run(block, x)
            if name in names:
                maps[name] = x
        return [maps[name] for name in names]
