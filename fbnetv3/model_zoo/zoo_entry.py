"""What every entry of the zoo has: a config, weights, and where they come from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fbnetv3.utils.downloads import download, is_url


@dataclass(frozen=True, kw_only=True)
class TrainedConfig:
    """A config with trained weights.

    Attributes:
        name: path of the config below `configs/`.
        weights: address of the weights, or the path of the file that comes along.
        num_classes: classes that the network knows, without a background.
        sha256: checksum of the weights, where it is known.
        source: who trained it.
    """

    name: str
    weights: str
    num_classes: int
    sha256: str | None = None
    source: str = ""

    def __str__(self) -> str:
        return self.name

    def local_weights(self) -> Path:
        """Path of the weights on this machine, downloaded first where need be.

        Raises:
            WeightsError: they cannot be had; the text names the address and where to put a copy.
        """
        return download(self.weights, self.sha256) if is_url(self.weights) else Path(self.weights)
