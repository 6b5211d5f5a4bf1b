"""Order of the images: each image once per epoch, shared by the processes, resumable."""

import pytest

from fbnetv3.data.samplers import DistributedSequentialSampler, EpochSampler


def test_every_image_comes_once_per_epoch():
    assert sorted(index for _, index in EpochSampler(100, 10, seed=4)) == list(range(100))
    assert len(set(EpochSampler(100, 30, seed=4))) == len(EpochSampler(100, 30)) == 90
    assert [index for _, index in DistributedSequentialSampler(5)] == list(range(5))


def test_an_epoch_resumes_in_the_middle():
    sampler = EpochSampler(100, 10, seed=4)
    full = list(sampler)
    sampler.first_batch = 4
    assert list(sampler) == full[40:]


@pytest.mark.parametrize("start", [0, 2])
def test_processes_share_the_batches_of_a_single_one(start):
    samplers = [EpochSampler(50, 12, 4), *(EpochSampler(50, 12, 4, rank, 3) for rank in range(3))]
    for sampler in samplers:
        sampler.epoch = 1
        sampler.first_image = start
    full, *parts = (list(sampler) for sampler in samplers)
    for batch in range(4 - start):
        shared = [index for part in parts for index in part[4 * batch : 4 * batch + 4]]
        assert shared == full[12 * batch : 12 * batch + 12]


@pytest.mark.parametrize("length", [0, 1, 2, 7, 9])
def test_processes_evaluate_every_image_once(length):
    parts = [list(DistributedSequentialSampler(length, rank, 3)) for rank in range(3)]
    assert sorted(index for part in parts for _, index in part) == list(range(length))
