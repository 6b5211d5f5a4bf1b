"""From the images of a request to its predictions: decode them in threads, and batch them with those of others."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from fbnetv3.data.image_io import EncodedImage
from fbnetv3.deploy.server.batch_queue import BatchQueue
from fbnetv3.deploy.server.request_images import EncodedFile
from fbnetv3.deploy.server.served_model import QueuedImage, RequestOptions, ServedModel
from fbnetv3.deploy.server.server_limits import (
    LateAnswerError,
    ServerLimits,
    UnknownModelError,
    UnreadableImageError,
)
from fbnetv3.deploy.server.server_metrics import ServerMetrics
from fbnetv3.errors import DataError, WeightsError, suggest

Result = dict[str, Any]  # of an image: "predictions" or "error"


class InferenceService:
    """The models of a server, each with its queue, and threads that decode images.

    Args:
        models: models by name.
        limits: limits of sizes and times.
        metrics: counters.
    """

    def __init__(
        self, models: Mapping[str, ServedModel], limits: ServerLimits, metrics: ServerMetrics
    ) -> None:
        self.models = models
        self.limits = limits
        self.metrics = metrics
        self._decoders = ThreadPoolExecutor(torch.get_num_threads(), "decoders")
        self._queues: dict[str, BatchQueue[QueuedImage, list[dict[str, Any]]]] = {}
        for name, model in models.items():
            queue = BatchQueue(model.run, limits, metrics.batch_size.labels(name).observe)
            self._queues[name] = queue
            metrics.watch_waiting(name, lambda queue=queue: queue.num_admitted)  # type: ignore[misc]

    def start(self) -> None:
        """Start to answer, in the running event loop."""
        for queue in self._queues.values():
            queue.start()

    @property
    def is_ready(self) -> bool:
        """Whether requests are answered."""
        return all(queue.is_running for queue in self._queues.values())

    async def stop(self) -> None:
        """Stop after the current batches."""
        for queue in self._queues.values():
            await queue.stop()
        self._decoders.shutdown()

    def model(self, name: str) -> ServedModel:
        """Return a model by its name, or raise an UnknownModelError."""
        if name not in self.models:
            raise UnknownModelError(f"unknown model '{name[:40]}': {suggest(name[:40], self.models)}")
        return self.models[name]

    async def predict(
        self, model: ServedModel, files: Sequence[EncodedFile], options: RequestOptions
    ) -> list[Result]:
        """Return "predictions" or "error" of each image, in their order.

        Raises:
            UsageError: the options are not as the model expects them.
            UnreadableImageError: no image can be read.
            OverloadedError: too many images are waiting.
            LateAnswerError: the time is over; images that have not started do not run.
        """
        model.check_options(options)
        with self._queues[model.name].admit(len(files)):
            try:
                results = await asyncio.wait_for(
                    self._predict_images(model, files, options), self.limits.timeout
                )
            except asyncio.TimeoutError:
                problem = f"the answer was not ready after {self.limits.timeout:g} seconds: try again later"
                raise LateAnswerError(problem) from None
        errors = [result["error"] for result in results if "error" in result]
        if len(errors) == len(results):
            raise UnreadableImageError(errors[0])
        return results

    async def _predict_images(
        self, model: ServedModel, files: Sequence[EncodedFile], options: RequestOptions
    ) -> list[Result]:
        return await asyncio.gather(*(self._predict_image(model, file, options) for file in files))

    async def _predict_image(
        self, model: ServedModel, file: EncodedFile, options: RequestOptions
    ) -> Result:
        loop = asyncio.get_running_loop()
        try:
            prepared = await loop.run_in_executor(self._decoders, self._decode, model, file)
            image = QueuedImage(file.name, prepared, options)
            predictions = await self._queues[model.name].submit(image)
        except (DataError, WeightsError) as error:
            self.metrics.images.labels(model.name, "error").inc()
            return {"error": str(error)}
        self.metrics.images.labels(model.name, "ok").inc()
        return {"predictions": predictions}

    def _decode(self, model: ServedModel, file: EncodedFile) -> Any:
        return model.prepare(EncodedImage(file.content, file.name, self.limits.max_pixels))
