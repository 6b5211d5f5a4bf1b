"""Cost of single layers: multiply-adds, parameters and activations, as plain arithmetic on shapes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """The cost of a layer, a block or a network for one image; costs can be added.

    A MAC is one multiply-add. The paper's "FLOPs" are these MACs: those of all convolutions, including the classifier,
    and one for each input of an average pool. Activations are the output elements of convolutions, as in pycls and
    fvcore's `ActivationCountAnalysis`.
    """

    macs_conv: int = 0
    macs_avg_pool: int = 0
    params_conv_weight: int = 0
    params_conv_bias: int = 0
    params_batchnorm: int = 0
    activations: int = 0

    @property
    def macs(self) -> int:
        """All multiply-adds, counted as in Table 4 of the paper."""
        return self.macs_conv + self.macs_avg_pool

    @property
    def params(self) -> int:
        """All trainable parameters."""
        return self.params_conv_weight + self.params_conv_bias + self.params_batchnorm

    @property
    def macs_by_kind(self) -> dict[str, int]:
        """`macs` by kind of layer."""
        return {"conv": self.macs_conv, "avg_pool": self.macs_avg_pool}

    @property
    def params_by_kind(self) -> dict[str, int]:
        """`params` by kind of parameter."""
        return {
            "conv_weight": self.params_conv_weight,
            "conv_bias": self.params_conv_bias,
            "batchnorm": self.params_batchnorm,
        }

    def __add__(self, other: Cost) -> Cost:
        # Spelled out: scaling to a MACs target adds hundreds of thousands of costs
        return Cost(
            self.macs_conv + other.macs_conv,
            self.macs_avg_pool + other.macs_avg_pool,
            self.params_conv_weight + other.params_conv_weight,
            self.params_conv_bias + other.params_conv_bias,
            self.params_batchnorm + other.params_batchnorm,
            self.activations + other.activations,
        )


def conv_cost(
    height: int,
    width: int,
    in_channels: int,
    out_channels: int,
    kernel: int = 1,
    groups: int = 1,
    bias: bool = False,
) -> Cost:
    """Return the cost of a convolution whose *output* is `height` x `width`."""
    weight = kernel * kernel * (in_channels // groups) * out_channels
    return Cost(
        macs_conv=height * width * weight,
        params_conv_weight=weight,
        params_conv_bias=out_channels if bias else 0,
        activations=height * width * out_channels,
    )


def batchnorm_cost(channels: int) -> Cost:
    """Return the cost of a BatchNorm: scale and shift. Its arithmetic folds into the preceding convolution."""
    return Cost(params_batchnorm=2 * channels)


def avg_pool_cost(height: int, width: int, channels: int) -> Cost:
    """Return the cost of a global average pool over a `height` x `width` map."""
    return Cost(macs_avg_pool=height * width * channels)


def conv_output_size(size: int, kernel: int, stride: int, padding: int) -> int:
    """Return the output height or width of a convolution; 0 or less if the input is too small for it."""
    return (size + 2 * padding - kernel) // stride + 1
