"""Dynamic batching: sizes and delays of batches, errors, canceled and refused inputs."""

import asyncio
import threading
import time

import pytest

pytest.importorskip("starlette", reason="pip install '.[serve]'")

from fbnetv3.deploy.server.batch_queue import BatchQueue
from fbnetv3.deploy.server.server_limits import OverloadedError, ServerLimits
from fbnetv3.errors import FieldError


def run_queue(scenario, run=lambda values: values, **limits):
    """Run `scenario(queue)` with a queue, and return the result and the sizes of its batches."""
    sizes = []

    async def main():
        queue = BatchQueue(run, ServerLimits(**limits), sizes.append)
        queue.start()
        try:
            return await asyncio.wait_for(scenario(queue), 30)
        finally:
            await queue.stop()

    return asyncio.run(main()), sizes


async def submit_all(queue, values):
    return await asyncio.gather(*map(queue.submit, values), return_exceptions=True)


def test_outputs_belong_to_their_inputs():
    outputs, sizes = run_queue(
        lambda queue: submit_all(queue, range(10)),
        lambda values: [10 * v for v in values],
        max_batch=4,
    )
    assert outputs == [10 * i for i in range(10)] and sizes == [4, 4, 2]


def test_a_batch_fills_up_while_another_runs():
    """Without any delay: the first input runs alone, and those that come meanwhile run together."""

    async def scenario(queue):
        first = asyncio.ensure_future(queue.submit(0))
        await asyncio.sleep(0.05)
        return await submit_all(queue, range(1, 6)), await first

    def run(values):
        time.sleep(0.3)
        return values

    outputs, sizes = run_queue(scenario, run, max_batch=16, max_delay=0)
    assert outputs == ([1, 2, 3, 4, 5], 0) and sizes == [1, 5]


def test_an_input_does_not_wait_longer_than_the_delay():
    async def scenario(queue):
        start = time.monotonic()
        await queue.submit(1)
        return time.monotonic() - start

    seconds, _ = run_queue(scenario, max_delay=0.2)
    assert 0.2 <= seconds < 5


def test_an_error_is_only_that_of_its_input():
    def run(values):
        if 2 in values:
            raise ValueError("two")
        return values

    outputs, _ = run_queue(lambda queue: submit_all(queue, [1, 2, 3]), run)
    assert outputs[::2] == [1, 3] and isinstance(outputs[1], ValueError)


def test_too_few_outputs_are_an_error_and_not_the_end():
    """The queue goes on after a function that breaks its contract."""

    async def scenario(queue):
        first = await submit_all(queue, [1, 2])
        return first, await submit_all(queue, [3])

    (first, second), _ = run_queue(scenario, lambda values: [v for v in values if v != 2])
    assert first[0] == 1 and isinstance(first[1], ValueError) and second == [3]


def test_cancelled_inputs_do_not_run():
    release, seen = threading.Event(), []

    def run(values):
        seen.extend(values)
        release.wait(20)
        return values

    async def scenario(queue):
        first = asyncio.ensure_future(queue.submit("first"))
        await asyncio.sleep(0.05)
        cut, kept = (asyncio.ensure_future(queue.submit(value)) for value in ("cut", "kept"))
        await asyncio.sleep(0.05)
        cut.cancel()
        release.set()
        return await asyncio.gather(first, kept)

    outputs, _ = run_queue(scenario, run)
    assert outputs == ["first", "kept"] == seen


def test_inputs_beyond_the_limit_are_refused():
    async def scenario(queue):
        with queue.admit(3):
            with (
                pytest.raises(OverloadedError, match="3 images are waiting, and at most 4 may"),
                queue.admit(2),
            ):
                pass
            with queue.admit(1):
                assert queue.num_admitted == 4
        return queue.num_admitted

    assert run_queue(scenario, max_waiting=4)[0] == 0


@pytest.mark.parametrize("limits", [{"max_batch": 0}, {"timeout": 0}, {"max_delay": -1}, {"max_pixels": 0}])
def test_invalid_limits(limits):
    with pytest.raises(FieldError, match=f"{next(iter(limits))}: .* must be at least"):
        ServerLimits(**limits)
