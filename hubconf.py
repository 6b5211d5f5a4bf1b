"""Entry points for torch.hub: `torch.hub.load("<owner>/fbnetv3", "fbnetv3_a", pretrained=True)`."""

from functools import partial as _partial

from fbnetv3 import create_model as _create_model
from fbnetv3 import list_models as _list_models

dependencies = ["torch", "torchvision", "fvcore", "iopath", "yaml", "yacs", "simplejpeg"]

# One entry point per classifier
for _name in _list_models():
    globals()[_name] = _partial(_create_model, _name)
    globals()[_name].__doc__ = f"Build {_name}; takes the arguments of `fbnetv3.create_model`."
