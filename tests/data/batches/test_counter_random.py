"""Random integers by counter: the published sequence, in any order."""

import torch

from fbnetv3.data.batches.counter_random import random_bits, random_integers

# The first outputs of splitmix64 with seed 1234567, as its implementations publish them
SEQUENCE = [
    6457827717110365317,
    3203168211198807973,
    9817491932198370423,
    4593380528125082431,
    16408922859458223821,
]


def test_the_sequence_is_that_of_splitmix64():
    bits = random_bits(1234567, torch.arange(5))
    assert [number % 2**64 for number in bits.tolist()] == SEQUENCE


def test_elements_are_computed_in_any_order_and_with_keys_of_their_own():
    bits = random_bits(torch.tensor([1234567, 0, 1234567]), torch.tensor([4, 0, 2]))
    assert [number % 2**64 for number in bits.tolist()] == [SEQUENCE[4], 0xE220A8397B1DCDAF, SEQUENCE[2]]


def test_integers_cover_their_range_evenly():
    """The largest 31 bits decide: the first, middle and last of the numbers that they can be."""
    bits = torch.tensor([0, 2**62, -(2**63), -1])
    assert random_integers(bits, 9).tolist() == [0, 2, 4, 8]
    assert random_integers(bits, 1).tolist() == [0, 0, 0, 0]
