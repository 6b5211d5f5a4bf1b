"""What all entries of the model zoo have: a config, weights, and their source."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fbnetv3.utils.downloads import download, is_url


@dataclass(frozen=True, kw_only=True)
class ZooEntry:
    """A config with weights.

    Attributes:
        name: path of the config below `configs/`.
        weights: URL of the weights, or path of a file that ships with the package.
        num_classes: number of classes, without background.
        sha256: checksum of the weights, if known.
        source: who trained the network.
    """

    name: str
    weights: str
    num_classes: int
    sha256: str | None = None
    source: str = ""

    def __str__(self) -> str:
        return self.name

    def local_weights(self) -> Path:
        """Return the path of the weights on this machine, downloading them if necessary.

        Raises:
            WeightsError: the download fails; the message says where to place a copy.
        """
        return download(self.weights, self.sha256) if is_url(self.weights) else Path(self.weights)
