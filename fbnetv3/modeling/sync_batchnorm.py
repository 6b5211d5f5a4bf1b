"""Synchronized BatchNorm (SyncBN) on GPUs and CPUs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

_ALL_BUT_CHANNELS = (0, 2, 3)


def sync_batchnorm(model: nn.Module, device: torch.device) -> nn.Module:
    """Make every BatchNorm of a model normalize over the batches of all processes; return the changed model.

    On GPUs the layers are replaced by torch's `SyncBatchNorm`, which does not support CPUs. On CPUs they become
    `CpuSyncBatchNorm2d` by assigning `__class__`: that class adds methods but no state, so the layers keep their
    parameters, buffers and hooks, and everything that refers to them stays valid.
    """
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = CpuSyncBatchNorm2d
    return model


def keeps_buffers_equal(model: nn.Module, equal_types: tuple[type[nn.Module], ...] = ()) -> bool:
    """Return whether the buffers of a model stay equal in all processes, if they are equal before the training.

    Those of synchronized BatchNorm do, because every process computes the same statistics, and so do constants, which
    are not in the state dict. All other buffers count as different, except in modules of `equal_types`.
    """
    names = {name for name, _ in model.named_buffers()} & model.state_dict().keys()
    owners = {name.rpartition(".")[0] for name in names}
    types = (nn.SyncBatchNorm, CpuSyncBatchNorm2d, *equal_types)
    return all(isinstance(model.get_submodule(owner), types) for owner in owners)


class CpuSyncBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` that in training uses the statistics of the batches of all processes.

    The batch of a process may be empty, for example when a detector has no proposals in its images.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        if not self.training or not dist.is_initialized() or dist.get_world_size() == 1:
            return super().forward(x)
        weight = self.weight if self.affine else x.new_ones(self.num_features)
        bias = self.bias if self.affine else x.new_zeros(self.num_features)
        y, mean, variance, count = _SyncBatchNormFunction.apply(x, weight, bias, self.eps)
        if count == 1:
            raise ValueError("expected more than 1 value per channel across all processes when training")
        if self.track_running_stats and count:
            stats: Any = self
            stats.num_batches_tracked += 1
            momentum = 1 / float(stats.num_batches_tracked) if self.momentum is None else self.momentum
            unbiased_variance = variance * count / (count - 1)
            stats.running_mean.lerp_(mean.to(stats.running_mean.dtype), momentum)
            stats.running_var.lerp_(unbiased_variance.to(stats.running_var.dtype), momentum)
        return y


class _SyncBatchNormFunction(torch.autograd.Function):
    """Normalization with one all-gather in the forward pass and one all-reduce in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, ...]:
        # Statistics of this process, in float32 or wider
        x_float = x.to(torch.promote_types(x.dtype, torch.float32))
        if x.numel():
            local_variance, local_mean = torch.var_mean(x_float, _ALL_BUT_CHANNELS, correction=0)
        else:
            local_variance, local_mean = x_float.new_zeros(2, x.shape[1])
        local_count = local_mean.new_tensor([x.numel() / x.shape[1]])
        # Gather them in one message and combine them
        message = torch.cat([local_mean, local_variance, local_count])
        messages = [torch.empty_like(message) for _ in range(dist.get_world_size())]
        dist.all_gather(messages, message)
        channels = len(local_mean)
        means, variances, counts = torch.stack(messages).split([channels, channels, 1], 1)
        count = counts.sum()
        fractions = counts / count.clamp(min=1)
        mean = (fractions * means).sum(0)
        variance = (fractions * (variances + (means - mean).square())).sum(0)
        # y = weight * (x - mean) / std + bias, as one scale and shift
        inv_std = (variance + eps).rsqrt()
        ctx.save_for_backward(x, weight, mean, inv_std, count)
        ctx.mark_non_differentiable(mean, variance, count)
        scale = weight * inv_std
        y = x * scale[:, None, None] + (bias - mean * scale)[:, None, None]
        return y.to(x.dtype), mean, variance, count

    @staticmethod
    def backward(ctx: Any, dy: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        x, weight, mean, inv_std, count = ctx.saved_tensors
        dy = dy.to(torch.promote_types(dy.dtype, torch.float32))
        normalized = (x - mean[:, None, None]) * inv_std[:, None, None]
        # Gradients of this process's parameters; the input's gradient needs their means over all processes' values
        d_bias = dy.sum(_ALL_BUT_CHANNELS)
        d_weight = (dy * normalized).sum(_ALL_BUT_CHANNELS)
        means = torch.cat([d_bias, d_weight]) / count.clamp(min=1)
        dist.all_reduce(means)
        mean_d_bias, mean_d_weight = means.chunk(2)
        d_normalized = dy - mean_d_bias[:, None, None] - normalized * mean_d_weight[:, None, None]
        dx = d_normalized * (weight * inv_std)[:, None, None]
        return dx.to(x.dtype), d_weight, d_bias, None
