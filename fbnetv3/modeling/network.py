"""Networks built from architectures: the classifier, with timm's methods, and the function that builds networks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

from torch import Tensor, nn

from fbnetv3.arch import ArchDef
from fbnetv3.errors import UsageError
from fbnetv3.modeling.blocks import DEFAULT_NORM, MBPool, NormLayer, init_weights
from fbnetv3.modeling.timm_conventions.feature_levels import Indices, describe_levels, resolve_indices
from fbnetv3.modeling.timm_conventions.global_pool import build_global_pool, pooled_width
from fbnetv3.modeling.timm_conventions.output_stride import OUTPUT_STRIDES
from fbnetv3.modeling.trunk import FeatureExtractor, Trunk
from fbnetv3.utils.checks import check_choice, check_int


class FBNetV3(nn.Module):
    """The classifier: trunk, global pool, dropout, 1x1 convolution to the classes. Its methods are those of timm.

    As in timm, the features of a network that ends in an MBPool are the maps that it pools, after its expansion; its
    last 1x1 convolution belongs to the head.

    Args:
        num_classes: number of classes; 0 for a network that returns the pooled features.
        drop_rate: dropout before the head.
        global_pool: "avg", "max", "avgmax" (their mean), "catavgmax" (both, concatenated), or "" for none, which makes
            the output a map of logits.

    The other arguments are those of `Trunk`.

    Attributes:
        num_features: channels of the features.
        head_hidden_size: channels of the head's input.
        feature_info: descriptions of the last map at every stride, finest first; see `describe_levels`.
        pretrained_cfg, default_cfg: the model zoo's pretrained config, if `create_model` created the network.
    """

    def __init__(
        self,
        arch: ArchDef,
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        norm_layer: NormLayer = DEFAULT_NORM,
        global_pool: str = "avg",
        output_stride: int = 32,
    ) -> None:
        super().__init__()
        self.arch = arch
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.backbone = Trunk(arch, in_chans, drop_path_rate, norm_layer, output_stride=output_stride)
        # Widths of the features and of the head's input
        self.feature_info = describe_levels(arch, output_stride, "backbone.")
        self.num_features = self.head_hidden_size = arch.out_channels
        last = self._pooling_block()
        if last is not None:
            self.num_features = last.project.in_channels
            for level in self.feature_info[-1:]:
                block = arch.blocks()[-1]
                module = f"backbone.stages.{block.name}.expand"
                level.update(module=module, stage=block.stage, num_chs=self.num_features)
            if pooled_width(global_pool) > 1:
                width = self.num_features * pooled_width(global_pool)
                last.project = nn.Conv2d(width, arch.out_channels, 1, bias=False)
                init_weights(last.project)
        self._set_global_pool(global_pool)
        self.dropout = nn.Dropout(drop_rate)
        self.head = self._build_head(num_classes)

    def _pooling_block(self) -> MBPool | None:
        """Return the last block if it pools the features."""
        *_, (_, last) = self.backbone.named_blocks()
        pools = isinstance(last, MBPool) and isinstance(last.project, nn.Conv2d)
        return cast("MBPool", last) if pools else None

    def _set_global_pool(self, name: str) -> None:
        """Set the pooling, in the last block if that pools."""
        pool = build_global_pool(name)
        width = self.num_features * pooled_width(name)
        last = self._pooling_block()
        if last is not None:
            if width != last.project.in_channels:
                raise UsageError(
                    f"global_pool {name!r}: the last convolution takes {last.project.in_channels} channels, not "
                    f"{width}, so pass global_pool when you create the network"
                )
            last.pool = pool.train(self.training)
            pool = build_global_pool("avg" if name else "")  # of a single position, or none
        else:
            self.head_hidden_size = width
        self.pool = pool.train(self.training)
        self.global_pool = name

    def _build_head(self, num_classes: int) -> nn.Module:
        if not num_classes:
            return nn.Identity()
        head = nn.Conv2d(self.head_hidden_size, num_classes, 1)
        assert head.bias is not None
        nn.init.normal_(head.weight, std=0.01)
        nn.init.zeros_(head.bias)
        return head

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_chans, H, W) to logits (N, num_classes), or to pooled features (N, C) without a head.

        Without global pooling the result has the size of the last map, (N, num_classes, H', W').

        Raises:
            UsageError: a side of the input is smaller than `backbone.min_input_size`.
        """
        x = self.head(self.dropout(self.pool(self.backbone(x))))
        return x.flatten(1) if self.global_pool else x

    def _feature_layers(self) -> Iterator[tuple[str, nn.Module]]:
        """Iterate over the layers before global pooling in order, with their names."""
        for name, block in self.backbone.named_blocks():
            if isinstance(block, MBPool):
                yield f"backbone.{name}.expand", block.expand
            else:
                yield f"backbone.{name}", block

    def forward_features(self, x: Tensor) -> Tensor:
        """Map (N, in_chans, H, W) to the map before global pooling (N, num_features, H', W')."""
        self.backbone.check_input(x)
        for _, layer in self._feature_layers():
            x = self.backbone.run(layer, x)
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Map the result of `forward_features` to that of `forward`.

        With `pre_logits`, return the head's input instead: (N, head_hidden_size), after dropout.
        """
        last = self._pooling_block()
        if last is not None:
            x = last.pool_and_project(x)
        x = self.dropout(self.pool(x))
        if not pre_logits:
            x = self.head(x)
        return x.flatten(1) if self.global_pool else x

    def forward_intermediates(
        self,
        x: Tensor,
        indices: Indices = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Return the result of `forward_features` and the maps that `feature_info` describes.

        Args:
            x: input (N, in_chans, H, W).
            indices: maps to return, in this order: indices, of which negative ones count from the end, or the number
                of last maps; default: all.
            norm: has no effect, because maps are normalized already.
            stop_early: do not run the layers after the last of these maps; needs `intermediates_only`.
            output_fmt: "NCHW", the only layout.
            intermediates_only: return only the list of maps.
        """
        if output_fmt != "NCHW":  # or timm's enumeration of strings
            raise UsageError(f"output_fmt {output_fmt!r} must be NCHW")
        if stop_early and not intermediates_only:
            raise UsageError("stop_early: needs intermediates_only, because the last map is not computed")
        names = [self.feature_info[i]["module"] for i in self._resolve(indices)]
        self.backbone.check_input(x)
        maps: dict[str, Tensor] = {}
        for name, layer in self._feature_layers():
            x = self.backbone.run(layer, x)
            if name in names:
                maps[name] = x
            if stop_early and len(maps) == len(names):
                break
        selected = [maps[name] for name in names]
        return selected if intermediates_only else (x, selected)

    def _resolve(self, indices: Indices) -> tuple[int, ...]:
        return resolve_indices(indices, len(self.feature_info), "indices")

    def prune_intermediate_layers(
        self, indices: Indices = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove the layers that `forward_intermediates` does not need for these maps; return their indices.

        Args:
            indices: maps as for `forward_intermediates`.
            prune_norm: has no effect: the norms belong to the maps.
            prune_head: remove the head even if all maps are kept.
        """
        resolved = self._resolve(indices)
        self.feature_info = self.feature_info[: max(resolved) + 1]
        last_level = self.feature_info[-1]
        removes_layers = [name for name, _ in self._feature_layers()][-1] != last_level["module"]
        if removes_layers:
            self.backbone.remove_blocks_after(last_level["module"].removeprefix("backbone."))
            self.num_features = last_level["num_chs"]
        if removes_layers or prune_head:
            self._remove_head()
        return list(resolved)

    def _remove_head(self) -> None:
        """Make the network end in its last feature map."""
        last = self._pooling_block()
        if last is not None:
            for name in ("pool", "project", "act"):
                setattr(last, name, nn.Identity())
        self.reset_classifier(0, "")

    def get_classifier(self) -> nn.Module:
        """Return the head: a 1x1 convolution, or an identity without classes."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head with a randomly initialized one on the same device.

        Args:
            num_classes: number of classes; 0 for a network that returns the pooled features.
            global_pool: the pooling, as for the class; default: unchanged.

        Raises:
            UsageError: the last convolution does not have the channels that the pooling gives: "catavgmax" can only be
                chosen when a network with an MBPool is created.
        """
        check_int(num_classes, "num_classes", 0)
        if global_pool is not None:
            self._set_global_pool(global_pool)
        self.num_classes = num_classes
        reference = next(self.backbone.parameters())
        head = self._build_head(num_classes)
        self.head = head.to(reference.device, reference.dtype).train(self.training)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Save memory in training: keep only the outputs of blocks, and compute what is inside them again."""
        self.backbone.set_grad_checkpointing(enable)

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Return patterns of parameter names for timm's layer-wise decay: the stem, then blocks or, if coarse, stages.

        All other parameters, those of the last convolution and the head, are the last group.
        """
        # Only an MBPool's last convolution has no norm, whose name would come after it
        stage = r"^(?!.*\.project\.weight$)backbone\.stages\.(\d+)"
        return {"stem": r"^backbone\.stages\.0\.0\.", "blocks": stage if coarse else stage + r"\.(\d+)"}


def build_network(
    arch: ArchDef,
    *,
    num_classes: int = 1000,
    in_chans: int = 3,
    features_only: bool = False,
    out_indices: Indices = None,
    output_stride: int = 32,
    global_pool: str = "avg",
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    norm_layer: NormLayer = DEFAULT_NORM,
) -> FBNetV3 | FeatureExtractor:
    """Build a randomly initialized `FBNetV3`, or `FeatureExtractor` with `features_only`.

    See these classes for the other arguments. `features_only` ignores those of the head: `num_classes`, `drop_rate` and
    `global_pool`. `out_indices` needs it.
    """
    check_int(num_classes, "num_classes", 0)
    check_int(in_chans, "in_chans", 1)
    check_choice(output_stride, "output_stride", OUTPUT_STRIDES)
    for argument, rate in (("drop_rate", drop_rate), ("drop_path_rate", drop_path_rate)):
        if not 0 <= rate < 1:
            raise UsageError(f"{argument} {rate!r} must be in [0, 1)")
    trunk_options: dict[str, Any] = {
        "drop_path_rate": drop_path_rate,
        "norm_layer": norm_layer,
        "output_stride": output_stride,
    }
    if features_only:
        return FeatureExtractor(arch, in_chans, out_indices=out_indices, **trunk_options)
    if out_indices is not None:
        raise UsageError(f"out_indices {out_indices}: has an effect only with features_only")
    return FBNetV3(
        arch, num_classes, in_chans, drop_rate=drop_rate, global_pool=global_pool, **trunk_options
    )
