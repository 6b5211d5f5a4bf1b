"""Register the classifiers with timm: `import fbnetv3.timm`, then `timm.create_model("fbnetv3_a.fb_in1k")`.

Networks have the same names in timm as here, except those of which timm has its own: B, D and G. timm's stay as they
are; those of this project are called `fb_fbnetv3_b`, `fb_fbnetv3_d` and `fb_fbnetv3_g` there. Tags are those of the
model zoo: `fb_in1k` for the authors' weights, `ra2_in1k` for timm's.

With `features_only`, the last map is that after the expansion of the last stage, as in timm's own networks, whereas
`fbnetv3.create_model` ends in the map before.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from fbnetv3.arch import ArchDef, get_arch
from fbnetv3.arch.definition import feature_blocks
from fbnetv3.errors import MissingPackageError
from fbnetv3.factory import list_models
from fbnetv3.model_zoo import ClassifierEntry, entries_for_arch, pretrained_cfg
from fbnetv3.modeling import build_network, load_weights
from fbnetv3.modeling.blocks import DEFAULT_NORM
from fbnetv3.modeling.checkpoint_contents import extract_state_dict
from fbnetv3.modeling.weight_conversion import convert_state_dict, network_prefixes

try:
    from timm import models as timm_models
except ImportError:
    raise MissingPackageError("fbnetv3.timm needs timm: pip install timm") from None

PREFIX = "fb_"
"""Precedes the names of networks of which timm has its own."""

default_cfgs: dict[str, Any] = {}
"""Pretrained configs by name; `timm.models.register_model` reads them."""

_registered: dict[str, str] = {}  # names of architectures, here and in timm


def register(arch: ArchDef | str | os.PathLike) -> str:
    """Register a classifier with timm and return its name there. Registering it again has no effect.

    Args:
        arch: a registered name, the path of an architecture's YAML file, or an architecture.
    """
    arch = get_arch(arch)
    if arch.name in _registered:
        return _registered[arch.name]
    name = arch.name.replace(".", "_")  # in timm, a tag follows the point
    if timm_models.is_model(name):
        name = PREFIX + name
    # One config for each of the network's weights, the default one first
    entries = entries_for_arch(arch.name)
    cfgs: dict[str, Any] = {f"{name}.{entry.tag}".rstrip("."): _cfg(arch, entry) for entry in entries}
    default_cfgs.update(timm_models.generate_default_cfgs(cfgs or {name: _cfg(arch)}))
    # timm finds the function by its name in this module
    entrypoint = _entrypoint(arch, name)
    globals()[name] = entrypoint
    timm_models.register_model(entrypoint)
    _registered[arch.name] = name
    return name


def _cfg(arch: ArchDef, entry: ClassifierEntry | None = None) -> dict[str, Any]:
    cfg = pretrained_cfg(arch, entry)
    # Which timm adds itself
    return {key: value for key, value in cfg.items() if key not in ("architecture", "tag")}


def _entrypoint(arch: ArchDef, name: str) -> Callable[..., nn.Module]:
    def create(
        pretrained: bool = False,
        pretrained_cfg: Any = None,
        pretrained_cfg_overlay: dict[str, Any] | None = None,
        **options: Any,
    ) -> nn.Module:
        cfg = timm_models.resolve_pretrained_cfg(name, pretrained_cfg, pretrained_cfg_overlay)
        entry = _zoo_entry(arch, cfg) if pretrained else None
        if options.get("features_only"):
            options.setdefault("out_indices", tuple(range(len(feature_blocks(arch)))))
            options.setdefault("feature_cls", "getter")
        return timm_models.build_model_with_cfg(
            partial(_build, arch, entry),
            name,
            pretrained and entry is None,  # the zoo loads its own weights
            pretrained_cfg=pretrained_cfg,
            pretrained_cfg_overlay=pretrained_cfg_overlay,
            pretrained_filter_fn=_convert,
            **options,
        )

    create.__name__ = create.__qualname__ = name
    create.__doc__ = f"Build {arch.name}; takes the arguments of `timm.create_model`."
    return create


def _zoo_entry(arch: ArchDef, cfg: Any) -> ClassifierEntry | None:
    """Return the entry whose weights timm would load, or None if they are from elsewhere."""
    if cfg.state_dict or cfg.hf_hub_id:
        return None
    source = cfg.file or cfg.url
    return next((entry for entry in entries_for_arch(arch.name) if entry.weights == source), None)


def _build(
    arch: ArchDef,
    entry: ClassifierEntry | None,
    *,
    bn_momentum: float | None = None,
    bn_eps: float | None = None,
    device: Any = None,
    dtype: Any = None,
    **options: Any,
) -> nn.Module:
    """Build a classifier from timm's arguments, with the weights of an entry."""
    norm_options = {"momentum": bn_momentum, "eps": bn_eps}
    norm_layer = partial(DEFAULT_NORM, **{k: v for k, v in norm_options.items() if v is not None})
    model = build_network(arch, norm_layer=norm_layer, **options)
    if entry is not None:
        load_weights(model, entry.local_weights(), adapt_input=True)
    return model.to(device=device, dtype=dtype)


def _convert(state_dict: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Return the weights of a file that timm has read under the names of a classifier."""
    arch: Any = model.arch
    _, weights = convert_state_dict(
        extract_state_dict(state_dict, "the file", network_prefixes), arch, "the file"
    )
    return weights


for _name in list_models():
    register(_name)
