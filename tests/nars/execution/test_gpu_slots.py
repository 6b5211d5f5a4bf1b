"""Slots of workers: which attempts start, and which wait for a GPU of their own."""

from fbnetv3.nars.execution.gpu_slots import GpuSlots


def test_attempts_take_the_free_slots():
    slots = GpuSlots(["0", "1"])
    assert [slots.take(alone=False) for _ in range(3)] == [0, 1, None]
    slots.release(0)
    assert slots.take(alone=False) == 0


def test_an_attempt_that_needs_a_gpu_of_its_own_waits_until_nothing_runs_there():
    slots = GpuSlots(["0", "0"])
    assert [slots.take(alone=False), slots.take(alone=False)] == [0, 1]
    assert slots.take(alone=True) is None
    slots.release(0)
    assert slots.take(alone=True) is None  # slot 1 is on the same GPU
    assert slots.take(alone=False) is None  # nothing new starts before it
    slots.release(1)
    assert slots.take(alone=True) == 0
    assert slots.take(alone=False) is None
    slots.release(0)
    assert [slots.take(alone=False), slots.take(alone=False)] == [0, 1]


def test_other_gpus_are_used_meanwhile():
    slots = GpuSlots(["0", "1", "0", "1"])
    assert [slots.take(alone=False) for _ in range(3)] == [0, 1, 2]
    assert slots.take(alone=True) is None  # on GPU 1, where fewer attempts run
    assert slots.take(alone=False) is None
    slots.release(0)
    assert slots.take(alone=False) == 0
    slots.release(1)
    assert slots.take(alone=True) == 1
    assert slots.neighbors(1) == [1, 3]


def test_a_second_attempt_that_needs_a_gpu_of_its_own_waits_for_the_first():
    slots = GpuSlots(["0", "1"])
    assert slots.take(alone=True) == 0
    assert slots.take(alone=True) is None
    assert slots.take(alone=False) == 1
    slots.release(0)
    assert slots.take(alone=True) == 0
