"""Dynamic batching: images of concurrent requests that run through a network together."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

from fbnetv3.deploy.server.server_limits import OverloadedError, ServerLimits

Input = TypeVar("Input")
Output = TypeVar("Output")


@dataclass(frozen=True, eq=False)
class _Job(Generic[Input, Output]):
    value: Input
    result: asyncio.Future[Output]


class BatchQueue(Generic[Input, Output]):
    """Collects inputs into batches, and runs one batch at a time in a thread of its own.

    A batch starts when it has `limits.max_batch` inputs, or `limits.max_delay` after its first one. While a batch runs,
    the next one fills up, so that the size of batches follows the load.

    Args:
        run: function that returns an output for each input of a batch.
        limits: sizes and times.
        on_batch: function that is called with the size of each batch.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Input]], Sequence[Output]],
        limits: ServerLimits,
        on_batch: Callable[[int], None] = lambda size: None,
    ) -> None:
        self.num_admitted = 0  # inputs between `admit` and its end
        self._run = run
        self._limits = limits
        self._on_batch = on_batch
        self._jobs: asyncio.Queue[_Job[Input, Output]] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1, "batches")
        self._worker: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start to run batches, in the running event loop."""
        self._worker = asyncio.get_running_loop().create_task(self._run_batches())

    @property
    def is_running(self) -> bool:
        """Whether inputs are answered."""
        return self._worker is not None and not self._worker.done()

    async def stop(self) -> None:
        """Stop after the current batch."""
        if self._worker is not None:
            self._worker.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._worker
        self._thread.shutdown()

    @contextlib.contextmanager
    def admit(self, count: int) -> Iterator[None]:
        """Reserve places for inputs until the end of the block, or raise an `OverloadedError`."""
        if self.num_admitted + count > self._limits.max_waiting:
            raise OverloadedError(
                f"{self.num_admitted} images are waiting, and at most {self._limits.max_waiting} may: try again later"
            )
        self.num_admitted += count
        try:
            yield
        finally:
            self.num_admitted -= count

    async def submit(self, value: Input) -> Output:
        """Return the output for one input. If the caller is canceled before its batch starts, it does not run."""
        job: _Job[Input, Output] = _Job(value, asyncio.get_running_loop().create_future())
        self._jobs.put_nowait(job)
        return await job.result

    async def _run_batches(self) -> None:
        while True:
            batch = [job for job in await self._collect() if not job.result.done()]
            if batch:
                self._on_batch(len(batch))
                await self._run_batch(batch)

    async def _collect(self) -> list[_Job[Input, Output]]:
        """Wait for an input, and then for more until the batch is full or the delay is over."""
        loop = asyncio.get_running_loop()
        batch = [await self._jobs.get()]
        deadline = loop.time() + self._limits.max_delay
        while len(batch) < self._limits.max_batch:
            if not self._jobs.empty():
                batch.append(self._jobs.get_nowait())
                continue
            remaining = deadline - loop.time()
            if remaining <= 0:
                break
            with contextlib.suppress(asyncio.TimeoutError):
                batch.append(await asyncio.wait_for(self._jobs.get(), remaining))
        return batch

    async def _run_batch(self, batch: Sequence[_Job[Input, Output]]) -> None:
        """Run a batch; after an error, run its inputs one by one, so that only the culprit fails."""
        loop = asyncio.get_running_loop()
        try:
            outputs = await loop.run_in_executor(self._thread, self._run, [job.value for job in batch])
            answers = list(zip(batch, outputs, strict=True))
        except Exception as error:
            if len(batch) > 1:
                for job in batch:
                    await self._run_batch([job])
            elif not batch[0].result.done():
                batch[0].result.set_exception(error)
            return
        for job, output in answers:
            if not job.result.done():
                job.result.set_result(output)
