"""Limits of a server, and the errors of requests that exceed them."""

from __future__ import annotations

from dataclasses import dataclass

from fbnetv3.errors import UserError
from fbnetv3.utils.checks import check_int, check_number


@dataclass(frozen=True)
class ServerLimits:
    """What a server accepts; together, these bound its memory."""

    max_bytes: int = 20_000_000  # of a request's body
    max_buffered_bytes: int = 400_000_000  # of the bodies of all requests in progress
    max_pixels: int = 40_000_000  # of an image, before it is decoded
    max_images: int = 64  # per request
    max_waiting: int = 128  # images of a model between a request and its answer
    timeout: float = 30.0  # seconds to send a request, and again to answer it
    max_batch: int = 16  # images per call of the network
    max_delay: float = 0.002  # seconds that an image waits for others to form a batch with

    def __post_init__(self) -> None:
        for name in (
            "max_bytes",
            "max_buffered_bytes",
            "max_pixels",
            "max_images",
            "max_waiting",
            "max_batch",
        ):
            check_int(getattr(self, name), name, 1)
        check_number(self.timeout, "timeout", 0.001)
        check_number(self.max_delay, "max_delay", 0)


class RequestError(UserError):
    """A request that is not answered with predictions; `status` is the HTTP status."""

    status = 400


class UnknownModelError(RequestError):
    """No model of this name is served."""

    status = 404


class SlowRequestError(RequestError):
    """The client has not sent its request in time."""

    status = 408


class LargeRequestError(RequestError):
    """The body has too many bytes."""

    status = 413


class RequestTypeError(RequestError):
    """The body is of a content type that is not read."""

    status = 415


class UnreadableImageError(RequestError):
    """The body has no image that can be read, or too many images or pixels."""

    status = 422


class CutConnectionError(RequestError):
    """The client has closed the connection; the status, which nobody receives, is nginx's for the metrics."""

    status = 499


class OverloadedError(RequestError):
    """Too many images are waiting."""

    status = 503


class LateAnswerError(RequestError):
    """The answer would come too late."""

    status = 504
