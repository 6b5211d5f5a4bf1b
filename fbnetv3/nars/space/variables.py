"""Variables of a search space: their possible values, indices of values, and coordinates from 0 to 1."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from fbnetv3.errors import FieldError
from fbnetv3.utils.checks import check_choice, check_keys, check_type, is_number
from fbnetv3.utils.text import first_few
from fbnetv3.utils.yaml_files import parse_number

ARCHITECTURE = "architecture"
RECIPE = "recipe"
PARTS = (ARCHITECTURE, RECIPE)

NUM_LEVELS = 1_000_001
"""Number of values of a continuous variable: its resolution is a millionth of its range."""

# Bounds that catch a mistyped step or exponent before its values fill the memory
_MAX_VALUES = 100_000
_MAX_MAGNITUDE = 1e15
# Continuous ranges narrower than this, relative to their bounds, have fewer floats than levels
_MIN_RELATIVE_WIDTH = 1e-8
# Significant digits of computed values; more than any recipe needs, and few enough to hide rounding errors
_DIGITS = 10


class SpaceError(FieldError):
    """An invalid search space, or a candidate outside its space."""


@dataclass(frozen=True)
class ContinuousValues(Sequence[float]):
    """The values of a continuous variable: `NUM_LEVELS` evenly spaced ones, computed when they are needed."""

    low: float
    high: float
    log: bool = False  # whether the logarithms of the values are evenly spaced, not the values

    def __len__(self) -> int:
        return NUM_LEVELS

    def __getitem__(self, index: Any) -> Any:
        levels = range(NUM_LEVELS)[index]
        return tuple(map(self._value, levels)) if isinstance(index, slice) else self._value(levels)

    def __contains__(self, value: Any) -> bool:
        if not is_number(value):
            return False
        return self.low <= value <= self.high or _equal(value, self.low) or _equal(value, self.high)

    def index(self, value: Any, start: int = 0, stop: int | None = None) -> int:
        """Return the index of the level nearest to a value; raise `ValueError` if it is outside the range."""
        if value in self:
            share = (self._coordinate(value) - self._coordinate(self.low)) / self._width
            level = min(max(round(share * (NUM_LEVELS - 1)), 0), NUM_LEVELS - 1)
            if level in range(NUM_LEVELS)[start:stop]:
                return level
        raise ValueError(f"{value!r} is not in [{self.low:g}, {self.high:g}]")

    def _coordinate(self, value: float) -> float:
        return math.log(value) if self.log else value

    @property
    def _width(self) -> float:
        return self._coordinate(self.high) - self._coordinate(self.low)

    def _value(self, level: int) -> float:
        if level in (0, NUM_LEVELS - 1):
            return self.high if level else self.low
        width = self._width
        value = self._coordinate(self.low) + width * level / (NUM_LEVELS - 1)
        # Keep ten digits, of the range or of the value; more where the range is narrow
        magnitude = math.floor(math.log10(width))
        if self.log:
            return float(f"{math.exp(value):.{_DIGITS + max(0, -magnitude)}g}")
        return round(value, _DIGITS - magnitude) + 0.0  # not -0.0


@dataclass(frozen=True)
class Condition:
    """A condition under which a variable is active: an earlier variable has one of these values."""

    parent: str
    values: tuple[Any, ...]

    def __str__(self) -> str:
        return f"{self.parent} is {' or '.join(map(str, self.values))}"


@dataclass(frozen=True)
class Variable:
    """A variable of a search space and its possible values."""

    name: str
    values: Sequence[Any]  # in order
    is_categorical: bool  # whether the order means nothing
    part: str = ARCHITECTURE  # or RECIPE
    log: bool = False  # whether distances between values are those of their logarithms
    when: tuple[Condition, ...] = ()  # the variable is active if all of these hold

    def __len__(self) -> int:
        return len(self.values)

    @property
    def is_continuous(self) -> bool:
        """Whether the values are too many to be listed."""
        return isinstance(self.values, ContinuousValues)

    def index(self, value: Any) -> int | None:
        """Return the index of a value, numbers up to rounding; None if the variable cannot have it."""
        value = to_choice(value)
        if isinstance(self.values, ContinuousValues):
            return self.values.index(value) if value in self.values else None
        return next((i for i, possible in enumerate(self.values) if _equal(possible, value)), None)

    def describe_values(self) -> str:
        """Describe the possible values for a message that begins with "must be"."""
        if isinstance(self.values, ContinuousValues):
            return f"in [{self.values.low:g}, {self.values.high:g}]"
        return f"one of {first_few(self.values)}"

    def positions(self, indices: np.ndarray) -> np.ndarray:
        """Return the coordinates of values, in [0, 1], from their indices; both of the same shape."""
        if self._uneven_positions is not None:
            return self._uneven_positions[indices]
        return indices / max(len(self) - 1, 1)

    def from_unit(self, points: np.ndarray) -> np.ndarray:
        """Return the index of the value at each point in [0, 1), int64; even points give evenly spread values.

        Each value has a cell. Those on a log scale reach half the way to the next values.
        """
        positions = self._uneven_positions
        if positions is None:
            indices = np.floor(points * len(self)).astype(np.int64)
            return np.clip(indices, 0, len(self) - 1)
        # The outer cells end as far from their values as they begin
        edges = (positions[1:] + positions[:-1]) / 2
        low = 2 * positions[0] - edges[0]
        high = 2 * positions[-1] - edges[-1]
        return np.searchsorted((edges - low) / (high - low), points, side="right").astype(np.int64)

    @cached_property
    def _uneven_positions(self) -> np.ndarray | None:
        """Coordinates of all values on a log scale, (values,); None if they are evenly spaced."""
        if not self.log or self.is_continuous or len(self) == 1:
            return None
        logarithms = np.log(np.array(self.values, float))
        return (logarithms - logarithms[0]) / (logarithms[-1] - logarithms[0])

    def variations(self, present: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
        """Return indices of values to try in place of the present ones, int64 (N,), as int64 (N, K).

        These are all values if there are at most `count` others. Otherwise they are `count` values, possibly with
        duplicates: some spread over the range and, if the order means anything, most at several distances from the
        present value.
        """
        size = len(self)
        if size <= count + 1:
            return np.broadcast_to(np.arange(size), (len(present), size))
        num_steps = 0 if self.is_categorical else 3 * count // 8  # in each direction
        num_spread = count - 2 * num_steps
        spread = self.from_unit((np.arange(num_spread) + rng.random(num_spread)) / num_spread)
        steps = np.geomspace(1, size / 2, num_steps).round().astype(np.int64)
        near = present[:, None] + np.concatenate([-steps, steps])
        everywhere = np.broadcast_to(spread, (len(present), num_spread))
        return np.concatenate([np.clip(near, 0, size - 1), everywhere], 1)


def parse_variable(name: str, entry: Any) -> Variable:
    """Parse a variable's entry in a space file, except for its conditions."""
    check_type(entry, "", Mapping, "a mapping such as {range: [1, 4]} or {choices: [a, b]}", SpaceError)
    check_keys(entry, SpaceError, ("range", "choices", "scale", "log", "ordered", "part", "when"))
    if ("range" in entry) == ("choices" in entry):
        raise SpaceError("needs either a range or choices")
    part = entry.get("part", ARCHITECTURE)
    check_choice(part, "part", PARTS, SpaceError)
    for key in ("log", "ordered"):
        check_type(entry.get(key, False), key, bool, "true or false", SpaceError)
    if "range" in entry:
        check_keys(entry, SpaceError, ("range", "scale", "log", "part", "when"))
        log = entry.get("log", False)
        values = _parse_range(entry["range"], entry.get("scale", 1), log)
        return Variable(name, values, False, part, log)
    check_keys(entry, SpaceError, ("choices", "ordered", "part", "when"))
    values = _parse_choices(entry["choices"])
    return Variable(name, values, not entry.get("ordered", False), part)


def _parse_choices(choices: Any) -> tuple[Any, ...]:
    values = to_choice(choices)
    if not isinstance(values, tuple) or not values or not all(map(_is_choice, values)):
        raise SpaceError(
            f"{choices!r} must be a list of strings, numbers, booleans, null or lists of these", "choices"
        )
    if any(_equal(a, b) for i, a in enumerate(values) for b in values[:i]):
        raise SpaceError(f"{choices!r} contains duplicate values", "choices")
    return values


def _parse_range(bounds: Any, scale: Any, log: bool) -> Sequence[int | float]:
    """Return the values low, low + step, ..., high, or all between low and high, multiplied by a scale."""
    # YAML reads 1e-5 as text
    numbers = tuple(map(parse_number, to_choice(bounds))) if isinstance(bounds, (list, tuple)) else ()
    scale = parse_number(to_choice(scale))
    if len(numbers) not in (2, 3) or not all(map(_is_finite, numbers)):
        raise SpaceError(f"{bounds!r} must be [low, high] or [low, high, step]", "range")
    if not _is_finite(scale) or scale == 0:
        raise SpaceError(f"{scale!r} must be a number other than 0", "scale")
    if numbers[0] > numbers[1]:
        raise SpaceError(f"{bounds!r} must have low <= high", "range")
    if log and (numbers[0] <= 0 or scale < 0):
        raise SpaceError(f"{bounds!r} must have low > 0, and scale > 0, for a log scale", "range")
    if len(numbers) == 2 and any(isinstance(number, float) for number in numbers):
        return _parse_continuous(numbers, scale, log)
    return _parse_steps(bounds, (*numbers, 1)[:3], scale)


def _parse_continuous(numbers: Sequence[float], scale: float, log: bool) -> Sequence[float]:
    low, high = sorted(_round(number * scale) if scale != 1 else float(number) for number in numbers)
    if low == high:
        return (low,)
    if high - low < _MIN_RELATIVE_WIDTH * max(abs(low), abs(high)):
        raise SpaceError(f"{low!r} and {high!r} are too close for a continuous variable", "range")
    return ContinuousValues(low, high, log)


def _parse_steps(bounds: Any, numbers: Sequence[float], scale: float) -> tuple[int | float, ...]:
    low, high, step = numbers
    if step <= 0 or (high - low) / step >= _MAX_VALUES:
        raise SpaceError(
            f"{bounds!r} must have low <= high, step > 0 and at most {_MAX_VALUES:,} values", "range"
        )
    # The range must end exactly at its upper bound
    num_steps = round((high - low) / step)
    if not math.isclose(low + num_steps * step, high, rel_tol=1e-9, abs_tol=1e-12):
        raise SpaceError(
            f"{bounds!r}: {high} is not reached in steps of {step}; change one of them", "range"
        )
    # Multiples of the step, so that rounding errors do not add up
    values = tuple(low + i * step for i in range(num_steps + 1))
    if scale == 1 and all(isinstance(number, int) for number in numbers):
        return values
    # 20 * 1e-3 is slightly more than 0.02 in binary
    rounded = tuple(_round(value * scale) for value in values)
    if len(set(rounded)) < len(values):
        raise SpaceError(f"{bounds!r} has values that agree in their first {_DIGITS} digits", "range")
    return rounded


def to_choice(value: Any) -> Any:
    """Return a value as a variable holds it: NumPy scalars as numbers, lists and arrays as tuples."""
    if isinstance(value, (np.generic, np.ndarray)):
        value = value.tolist()
    return tuple(map(to_choice, value)) if isinstance(value, (list, tuple)) else value


def _round(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


def _is_finite(value: Any) -> bool:
    return is_number(value, -_MAX_MAGNITUDE, _MAX_MAGNITUDE)


def _is_choice(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_choice, value))
    return value is None or isinstance(value, (str, bool)) or _is_finite(value)


def _equal(a: Any, b: Any) -> bool:
    """Return whether two values are the same, numbers up to rounding; True is not 1."""
    if is_number(a) and is_number(b):
        return math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-15)
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(_equal, a, b))
    return type(a) is type(b) and a == b
