"""PyTorch networks: blocks, networks built from architectures, and published weights."""

from fbnetv3.modeling.blocks import BLOCKS
from fbnetv3.modeling.network import FBNetV3, FeatureExtractor, Trunk, build_network
from fbnetv3.modeling.weights import load_weights

__all__ = ["BLOCKS", "FBNetV3", "FeatureExtractor", "Trunk", "build_network", "load_weights"]
