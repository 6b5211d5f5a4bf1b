"""The HTTP interface of a server: predictions, models, health and metrics."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Coroutine
from http import HTTPStatus
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from fbnetv3.deploy.server.inference_service import InferenceService
from fbnetv3.deploy.server.request_images import BodyReader, parse_body
from fbnetv3.deploy.server.served_model import ServedModel
from fbnetv3.deploy.server.server_limits import CutConnectionError, RequestError, UnknownModelError
from fbnetv3.errors import UsageError
from fbnetv3.utils.text import one_line

T = TypeVar("T")


def create_app(service: InferenceService) -> Starlette:
    """Build the application."""

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        service.start()
        yield
        await service.stop()

    handler = _RequestHandler(service)
    routes = [
        Route("/models/{name}/predict", handler.predict, methods=["POST"]),
        Route("/predict", handler.predict_only_model, methods=["POST"]),
        Route("/models", handler.list_models),
        Route("/models/{name}", handler.describe_model),
        Route("/health/live", handler.live),
        Route("/health/ready", handler.ready),
        Route("/metrics", handler.metrics),
    ]
    exception_handlers: dict[Any, Any] = {
        RequestError: _answer_user_error,
        UsageError: _answer_user_error,
        HTTPException: _answer_http_error,
        Exception: _answer_bug,  # which uvicorn logs
    }
    return Starlette(routes=routes, lifespan=lifespan, exception_handlers=exception_handlers)


class _RequestHandler:
    """The functions behind the routes."""

    def __init__(self, service: InferenceService) -> None:
        self._service = service
        self._bodies = BodyReader(service.limits)

    async def predict(self, request: Request) -> Response:
        """Answer with the predictions for the images of a request."""
        return await self._predict(self._service.model(request.path_params["name"]), request)

    async def predict_only_model(self, request: Request) -> Response:
        """Answer for the only model."""
        if len(self._service.models) > 1:
            names = ", ".join(self._service.models)
            raise UnknownModelError(f"several models are served: post to /models/NAME/predict of {names}")
        (model,) = self._service.models.values()
        return await self._predict(model, request)

    async def _predict(self, model: ServedModel, request: Request) -> Response:
        start = time.perf_counter()
        status = HTTPStatus.INTERNAL_SERVER_ERROR.value
        try:
            response = await self._answer(model, request)
            status = response.status_code
            return response
        except (RequestError, UsageError) as error:
            status = _status_of(error)
            raise
        finally:
            self._service.metrics.requests.labels(model.name, str(status)).inc()
            self._service.metrics.seconds.labels(model.name).observe(time.perf_counter() - start)

    async def _answer(self, model: ServedModel, request: Request) -> Response:
        body = await self._bodies.read(request)
        try:
            files, options = await parse_body(
                body, request.headers, request.query_params, self._service.limits.max_images
            )
            results = await _unless_cut(request, self._service.predict(model, files, options))
        finally:
            self._bodies.release(len(body))
        return JSONResponse({"model": model.name, "results": results})

    async def list_models(self, request: Request) -> Response:
        """List the models."""
        return JSONResponse({"models": [model.describe() for model in self._service.models.values()]})

    async def describe_model(self, request: Request) -> Response:
        """Describe a model."""
        return JSONResponse(self._service.model(request.path_params["name"]).describe())

    async def live(self, request: Request) -> Response:
        """Answer, which says that the server is alive."""
        return JSONResponse({"status": "live"})

    async def ready(self, request: Request) -> Response:
        """Say whether requests are answered."""
        if self._service.is_ready:
            return JSONResponse({"status": "ready"})
        return JSONResponse({"status": "not ready"}, HTTPStatus.SERVICE_UNAVAILABLE)

    async def metrics(self, request: Request) -> Response:
        """Return the metrics."""
        return Response(
            self._service.metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8"
        )


async def _unless_cut(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Return the result of `work`, or cancel it when the client closes the connection."""
    answer = asyncio.ensure_future(work)
    disconnect = asyncio.ensure_future(_wait_for_disconnect(request))
    try:
        await asyncio.wait({answer, disconnect}, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise CutConnectionError("the connection was closed before the answer was ready")
        return answer.result()
    finally:
        answer.cancel()
        disconnect.cancel()


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _status_of(error: Exception) -> int:
    return error.status if isinstance(error, RequestError) else HTTPStatus.UNPROCESSABLE_ENTITY.value


async def _answer_user_error(request: Request, error: Exception) -> Response:
    status = _status_of(error)
    headers = {}
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers["retry-after"] = "1"
    if status in (HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.REQUEST_TIMEOUT):
        headers["connection"] = "close"  # instead of reading the rest
    return JSONResponse({"error": one_line(error)}, status, headers)


async def _answer_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


async def _answer_bug(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": "the server failed; its log has the reason"}, 500)
