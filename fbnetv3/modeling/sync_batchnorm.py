"""BatchNorm over the batches of all processes of a training (SyncBN), on CPUs too."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

_DIMS = (0, 2, 3)


def sync_batchnorm(model: nn.Module, device: torch.device) -> nn.Module:
    """Make every BatchNorm of a model see the batches of all processes; state and parameters stay as they are.

    GPUs get torch's `SyncBatchNorm`, which knows no CPU; CPUs get ours.
    """
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = CpuSyncBatchNorm2d
    return model


class CpuSyncBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` whose statistics in training are those of the batches of all processes together.

    A process's batch may be empty, as where a detector has no proposal in its images.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same.

        Raises:
            ValueError: in training, all batches together have one value a channel.
        """
        if not self.training or not dist.is_initialized() or dist.get_world_size() == 1:
            return super().forward(x)
        y, mean, variance, count = _SyncNorm.apply(x, self.weight, self.bias, self.eps)
        if count == 1:
            raise ValueError("Expected more than 1 value per channel when training, in all processes together")
        if self.track_running_stats and count:
            self._follow(mean, variance * count / (count - 1))
        return y

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics; they hold the unbiased variance."""
        assert self.num_batches_tracked is not None and self.running_mean is not None and self.running_var is not None
        self.num_batches_tracked += 1
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_(variance.to(self.running_var.dtype), momentum)


class _SyncNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, ...]:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        if x.numel():
            variance, mean = torch.var_mean(wide, _DIMS, correction=0)
        else:
            variance, mean = wide.new_zeros(2, x.shape[1])
        mine = torch.cat([mean, variance, mean.new_tensor([x.numel() / x.shape[1]])])
        theirs = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
        dist.all_gather(theirs, mine)
        means, variances, counts = torch.stack(theirs).split([len(mean), len(mean), 1], 1)
        count = counts.sum()
        shares = counts / count.clamp(min=1)
        mean = (shares * means).sum(0)
        variance = (shares * (variances + (means - mean).square())).sum(0)
        scale = (variance + eps).rsqrt()
        ctx.save_for_backward(x, weight, mean, scale, count)
        ctx.mark_non_differentiable(mean, variance, count)
        factor = weight * scale
        y = x * _by_channel(factor) + _by_channel(bias - mean * factor)
        return y.to(x.dtype), mean, variance, count

    @staticmethod
    def backward(ctx: Any, dy: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale, count = ctx.saved_tensors
        dy = dy.to(torch.promote_types(dy.dtype, torch.float32))
        normed = (x - _by_channel(mean)) * _by_channel(scale)
        d_bias, d_weight = dy.sum(_DIMS), (dy * normed).sum(_DIMS)
        means = torch.cat([d_bias, d_weight]) / count.clamp(min=1)
        dist.all_reduce(means)
        by_mean, by_scale = means.chunk(2)
        dx = (dy - _by_channel(by_mean) - normed * _by_channel(by_scale)) * _by_channel(weight * scale)
        return dx.to(x.dtype), d_weight, d_bias, None


def _by_channel(values: Tensor) -> Tensor:
    return values[:, None, None]
