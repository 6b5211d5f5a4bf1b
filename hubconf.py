"""Entry points for torch.hub: `torch.hub.load("<owner>/fbnetv3", "fbnetv3_a", pretrained=True)`."""

from functools import partial as _partial

from fbnetv3 import create_model as _create_model
from fbnetv3.arch import list_archs as _list_archs

dependencies = ["torch", "torchvision", "fvcore", "iopath", "yaml", "yacs"]

# one entry point per registered architecture
for _name in _list_archs():
    globals()[_name] = _partial(_create_model, _name)
    globals()[_name].__doc__ = f"Build {_name}; takes the arguments of `fbnetv3.create_model`."
