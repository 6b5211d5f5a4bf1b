"""Random integers that are a function of a key and a counter, the same on every device and in any order.

These are the outputs of splitmix64 (Steele et al., "Fast splittable pseudorandom number generators", 2014). Each can be
computed without the others. Only integers are used, which wrap around alike on CPUs and GPUs.
"""

from __future__ import annotations

from torch import Tensor


def _signed(number: int) -> int:
    """Return the int64 with the bits of a number in [0, 2^64)."""
    return number - 2**64 if number >= 2**63 else number


_GAMMA = _signed(0x9E3779B97F4A7C15)
_FACTORS = (_signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB))


def random_bits(key: Tensor | int, counters: Tensor) -> Tensor:
    """Return 64 random bits as int64 for each counter: element `counters` of the sequence with seed `key`, from 0."""
    bits = (counters + 1) * _GAMMA + key
    bits = (bits ^ _shift(bits, 30)) * _FACTORS[0]
    bits = (bits ^ _shift(bits, 27)) * _FACTORS[1]
    return bits ^ _shift(bits, 31)


def random_integers(bits: Tensor, bound: int) -> Tensor:
    """Map random bits to integers in [0, bound), evenly up to one part in 2^31 / bound."""
    # Multiplying 31 bits is faster than division, and does not overflow
    return (_shift(bits, 33) * bound) >> 31


def _shift(bits: Tensor, places: int) -> Tensor:
    """Shift to the right and fill with zeros; torch fills with the sign."""
    return (bits >> places) & (2 ** (64 - places) - 1)
