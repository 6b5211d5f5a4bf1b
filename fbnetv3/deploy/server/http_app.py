"""The HTTP interface of a server: predictions, models, health and metrics."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Coroutine
from http import HTTPStatus
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from fbnetv3.deploy.server.inference_service import InferenceService
from fbnetv3.deploy.server.request_images import BodyReader, parse_body
from fbnetv3.deploy.server.served_model import ServedModel
from fbnetv3.deploy.server.server_limits import CutConnectionError, RequestError, UnknownModelError
from fbnetv3.errors import UsageError
from fbnetv3.utils.text import one_line

logger = logging.getLogger(__name__)

T = TypeVar("T")


def create_app(service: InferenceService) -> FastAPI:
    """Build the application. It has no pages of documentation, which would load scripts from the internet."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        await service.stop()

    app = FastAPI(title="fbnetv3", lifespan=lifespan, openapi_url=None, docs_url=None, redoc_url=None)
    handler = _RequestHandler(service)
    app.add_api_route("/models/{name}/predict", handler.predict, methods=["POST"])
    app.add_api_route("/predict", handler.predict_only_model, methods=["POST"])
    app.add_api_route("/models", handler.list_models)
    app.add_api_route("/models/{name}", handler.describe_model)
    app.add_api_route("/health/live", handler.live)
    app.add_api_route("/health/ready", handler.ready)
    app.add_api_route("/metrics", handler.metrics)
    app.add_exception_handler(RequestError, _answer_user_error)
    app.add_exception_handler(UsageError, _answer_user_error)
    app.add_exception_handler(HTTPException, _answer_http_error)
    app.add_exception_handler(Exception, _answer_bug)
    return app


class _RequestHandler:
    """The functions behind the routes."""

    def __init__(self, service: InferenceService) -> None:
        self._service = service
        self._bodies = BodyReader(service.limits)

    async def predict(self, name: str, request: Request) -> Response:
        """Answer with the predictions for the images of a request."""
        return await self._predict(self._service.model(name), request)

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

    async def list_models(self) -> Response:
        """List the models."""
        return JSONResponse({"models": [model.describe() for model in self._service.models.values()]})

    async def describe_model(self, name: str) -> Response:
        """Describe a model."""
        return JSONResponse(self._service.model(name).describe())

    async def live(self) -> Response:
        """Answer, which says that the server is alive."""
        return JSONResponse({"status": "live"})

    async def ready(self) -> Response:
        """Say whether requests are answered."""
        if self._service.is_ready:
            return JSONResponse({"status": "ready"})
        return JSONResponse({"status": "not ready"}, HTTPStatus.SERVICE_UNAVAILABLE)

    async def metrics(self) -> Response:
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
    logger.error("request failed", exc_info=error)
    return JSONResponse({"error": "the server failed; its log has the reason"}, 500)
