"""Find the weights in a checkpoint of any training script: in its containers, under prefixes, averaged or raw."""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fbnetv3.errors import WeightsError
from fbnetv3.utils.text import first_few

logger = logging.getLogger(__name__)

StateDict = Mapping[str, Tensor]
FindPrefixes = Callable[[Iterable[str]], set[str]]

# Words in the names of averaged (EMA) weights, such as "state_dict_ema" or "params_ema", and of their submodules
_AVERAGING_WORDS = frozenset(("ema", "swa", "averaged", "average", "shadow"))
# Keys of raw weights. Only where there are none, other keys are searched, but not the optimizer's
_RAW_KEYS = ("state_dict", "model_state_dict", "model", "module", "net", "network")
_OPTIMIZER = "optim"
_MAX_NESTING = 4

# Names of networks in their wrappers, which begin all keys; and names that torch inserts at any place
_WRAPPERS = ("module.", "model.", "net.", "network.")
_INSERTED = frozenset(("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"))

# Number of averaged steps, which torch's AveragedModel stores next to its "module."
_COUNTER = "n_averaged"
_MAX_LISTED = 5


@dataclass(frozen=True)
class WeightsCandidate:
    """A state dict in a checkpoint that may be a network's."""

    source: str  # the checkpoint, for messages
    place: str  # where it is in the checkpoint, such as "model_ema" or "student.*"
    weights: dict[str, Tensor]  # by names without their prefix
    others: tuple[str, ...]  # names that lack the prefix, and averaged weights without names
    averaging: str = ""  # key, prefix or counter that shows that the weights are averaged
    never_averaged: bool = False  # an average before its first step, which is a copy of the initial weights

    @property
    def rank(self) -> int:
        """Order of preference, lowest first: averaged weights, raw ones, copies of the initial ones."""
        return 2 if self.never_averaged else 0 if self.averaging else 1

    def report(self, ignored: Iterable[str] = ()) -> None:
        """Log that averaged weights are used, and what is left out: the other tensors and those in `ignored`."""
        if self.rank == 0:
            logger.info("averaged weights (%s) of %s", self.averaging, self.source)
        if left_out := _summarize([*self.others, *ignored]):
            logger.warning("%s: ignored %s", self.source, first_few(left_out, _MAX_LISTED))


def find_candidates(checkpoint: object, source: str, find_prefixes: FindPrefixes) -> list[WeightsCandidate]:
    """Return the state dicts in a checkpoint that may be a network's, preferred ones first.

    Args:
        checkpoint: contents of the file.
        source: its name in messages.
        find_prefixes: returns the prefixes of the network's tensors among the names of a state dict.

    Raises:
        WeightsError: there is no state dict.
    """
    state_dicts = list(_find_state_dicts(checkpoint))
    if not state_dicts:
        keys = list(checkpoint) if isinstance(checkpoint, Mapping) else []
        content = f"; its keys are {first_few(keys, _MAX_LISTED)}" if keys else ""
        raise WeightsError(f"{source}: has no state dict (a mapping of names to tensors){content}")
    unnamed = tuple(_find_unnamed_averages(checkpoint))
    candidates = [
        _build_candidate(source, path, tensors, prefix, unnamed)
        for path, tensors in state_dicts
        for prefix in sorted(find_prefixes(tensors), key=lambda prefix: (prefix.count("."), prefix))
    ]
    return sorted(candidates, key=lambda candidate: candidate.rank)


def _find_state_dicts(
    checkpoint: object, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield the keys that lead to each state dict, and its dense tensors by name."""
    if not isinstance(checkpoint, Mapping):
        return
    tensors = {
        key: value
        for key, value in checkpoint.items()
        if isinstance(key, str) and isinstance(value, Tensor) and value.layout is torch.strided
    }
    averaged = [key for key in checkpoint if _is_averaged_name(key)]
    inner = list(_find_below(checkpoint, path, (*averaged, *_RAW_KEYS)))
    if not inner and not any(value.ndim for value in tensors.values()):
        others = [key for key in checkpoint if isinstance(key, str) and not key.startswith(_OPTIMIZER)]
        inner = list(_find_below(checkpoint, path, others))
    if not inner and tensors:  # tensors next to state dicts are counters and the like
        yield path, _remove_inserted(tensors)
    yield from inner


def _find_below(
    checkpoint: Mapping[str, Any], path: tuple[str, ...], keys: Iterable[str]
) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield the state dicts under some of the keys."""
    if len(path) < _MAX_NESTING:
        for key in keys:
            yield from _find_state_dicts(checkpoint.get(key), (*path, key))


def _is_averaged_name(name: object) -> bool:
    """Return whether a key or the name of a submodule says that its weights are averaged."""
    return isinstance(name, str) and not _AVERAGING_WORDS.isdisjoint(re.split(r"[^a-z]+", name.lower()))


def _find_unnamed_averages(checkpoint: object, place: str = "", averaged: bool = False) -> Iterator[str]:
    """Yield the places of averaged weights in lists, which cannot be assigned to layers."""
    if isinstance(checkpoint, Mapping):
        for key, value in checkpoint.items():
            if averaged or _is_averaged_name(key):
                yield from _find_unnamed_averages(value, f"{place}.{key}" if place else str(key), True)
    elif (
        averaged
        and isinstance(checkpoint, (list, tuple))
        and any(isinstance(v, Tensor) for v in checkpoint)
    ):
        yield f"{place} (averaged weights without names)"


def _remove_inserted(tensors: StateDict) -> dict[str, Tensor]:
    """Remove the names that torch's wrappers insert, such as torch.compile's, unless two tensors would share a name."""
    renamed = {key: ".".join(part for part in key.split(".") if part not in _INSERTED) for key in tensors}
    is_unique = len(set(renamed.values())) == len(renamed)
    return {renamed[key]: value for key, value in tensors.items()} if is_unique else dict(tensors)


def _build_candidate(
    source: str, path: tuple[str, ...], tensors: StateDict, prefix: str, unnamed: tuple[str, ...]
) -> WeightsCandidate:
    names = [key for key in tensors if not _is_counter(key)]
    # AveragedModel's counter is next to its "module.", at any depth
    counters = [
        key
        for key in tensors
        if _is_counter(key) and prefix.startswith(f"{key.removesuffix(_COUNTER)}module.")
    ]
    averaging = [key for key in (*path, *prefix.split(".")) if _is_averaged_name(key)] + counters
    return WeightsCandidate(
        source,
        place=": ".join(part for part in (".".join(path), prefix and f"{prefix}*") if part),
        weights={key.removeprefix(prefix): tensors[key] for key in names if key.startswith(prefix)},
        others=(*(key for key in names if not key.startswith(prefix)), *unnamed),
        averaging=averaging[0] if averaging else "",
        never_averaged=any(not tensors[key].any() for key in counters),
    )


def _is_counter(key: str) -> bool:
    return key.rpartition(".")[2] == _COUNTER


def common_wrapper_prefix(names: Iterable[str]) -> set[str]:
    """Return the one prefix of wrappers, such as DistributedDataParallel's "module.", that all names have, or ""."""
    names = [name for name in names if not _is_counter(name)]
    prefix = ""
    while names and (
        wrapper := next((w for w in _WRAPPERS if all(n.startswith(prefix + w) for n in names)), "")
    ):
        prefix += wrapper
    return {prefix}


def prefixes_of(tensor: str, names: Iterable[str]) -> set[str]:
    """Return the prefixes of a network whose first tensor has that name, among the names of a state dict."""
    prefixes = {name.removesuffix(tensor) for name in names if f".{name}".endswith(f".{tensor}")}
    return prefixes or common_wrapper_prefix(names)


def only_candidate(candidates: Sequence[WeightsCandidate], network: str) -> WeightsCandidate:
    """Return the only one of several candidates that all fit a network. Raise a WeightsError if their values differ."""
    first, *others = candidates
    if not all(_have_equal_values(first.weights, other.weights) for other in others):
        places = ", ".join(candidate.place or "the file itself" for candidate in candidates)
        raise WeightsError(
            f"{first.source}: has several weights that fit {network}: {places}; save one of them in its own file"
        )
    return first


def _have_equal_values(a: StateDict, b: StateDict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def extract_state_dict(
    checkpoint: object, source: str, find_prefixes: FindPrefixes = common_wrapper_prefix
) -> StateDict:
    """Return the weights of a checkpoint, averaged ones if it has them, whether or not they fit a network.

    See `find_candidates` for the arguments and errors.
    """
    candidates = find_candidates(checkpoint, source, find_prefixes)
    chosen = only_candidate([c for c in candidates if c.rank == candidates[0].rank], "the network")
    chosen.report()
    return chosen.weights


def extract_averaged(
    checkpoint: Mapping[str, Any], source: str, find_prefixes: FindPrefixes = common_wrapper_prefix
) -> StateDict:
    """Return the averaged weights that a checkpoint has next to the raw ones; empty if it has none."""
    averaged = {key: value for key, value in checkpoint.items() if _is_averaged_name(key)}
    if not any(_find_state_dicts(averaged)):
        return {}
    candidates = find_candidates(averaged, source, find_prefixes)
    return extract_state_dict(averaged, source, find_prefixes) if candidates[0].rank == 0 else {}


def check_finite(weights: Mapping[str, Any], source: str) -> None:
    """Raise a WeightsError if tensors, BatchNorm's statistics included, contain NaN or infinity."""
    broken = [
        key
        for key, value in weights.items()
        if isinstance(value, Tensor) and value.is_floating_point() and not value.float().isfinite().all()
    ]
    if broken:
        raise WeightsError(
            f"{source}: NaN or infinity in {first_few(broken)}: the training diverged; use an earlier checkpoint"
        )


def _summarize(names: Iterable[str]) -> list[str]:
    """Shorten names with the same first part to "part.*"."""
    groups = defaultdict(list)
    for name in names:
        groups[name.partition(".")[0]].append(name)
    return [group[0] if len(group) == 1 else f"{part}.*" for part, group in groups.items()]
