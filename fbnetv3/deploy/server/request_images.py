"""Read the images and options of a request: a raw image, a multipart form or JSON with base64."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import math
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from fbnetv3.deploy.server.served_model import RequestOptions
from fbnetv3.deploy.server.server_limits import (
    CutConnectionError,
    LargeRequestError,
    OverloadedError,
    RequestError,
    RequestTypeError,
    ServerLimits,
    SlowRequestError,
    UnreadableImageError,
)

_MAX_FIELDS = 16  # of a form, besides its files
_DATA_URL = "data:"


@dataclass(frozen=True)
class EncodedFile:
    """The content of an image file in a request, and what to call it in messages."""

    content: bytes
    name: str


class BodyReader:
    """Reads the bodies of requests within the limits of size and time, each alone and all together."""

    def __init__(self, limits: ServerLimits) -> None:
        self.num_buffered = 0  # bytes of all requests in progress
        self._limits = limits

    async def read(self, request: Request) -> bytes:
        """Return the body, which counts as buffered until `release`.

        Raises:
            RequestError: the body is too large or too slow, the connection is closed, or too much is buffered.
        """
        announced = request.headers.get("content-length", "")
        if announced.isdecimal() and int(announced) > self._limits.max_bytes:
            raise self._too_large()
        parts = bytearray()
        try:
            await asyncio.wait_for(self._receive(request, parts), self._limits.timeout)
        except BaseException as error:
            self.release(len(parts))
            if isinstance(error, asyncio.TimeoutError):
                problem = f"the request was not complete after {self._limits.timeout:g} seconds"
                raise SlowRequestError(problem) from None
            if isinstance(error, ClientDisconnect):
                raise CutConnectionError(
                    "the connection was closed before the request was complete"
                ) from None
            raise
        return bytes(parts)

    async def _receive(self, request: Request, parts: bytearray) -> None:
        async for chunk in request.stream():
            if len(parts) + len(chunk) > self._limits.max_bytes:
                raise self._too_large()
            if self.num_buffered + len(chunk) > self._limits.max_buffered_bytes:
                raise OverloadedError("too many large requests are in progress: try again later")
            parts += chunk
            self.num_buffered += len(chunk)

    def release(self, num_bytes: int) -> None:
        """Count the bytes of a body as no longer buffered."""
        self.num_buffered -= num_bytes

    def _too_large(self) -> LargeRequestError:
        return LargeRequestError(
            f"the request has more than {self._limits.max_bytes:,} bytes; shrink its images"
        )


async def parse_body(
    body: bytes, headers: Mapping[str, str], query: Mapping[str, str], max_images: int
) -> tuple[list[EncodedFile], RequestOptions]:
    """Return the images of a body, and its options.

    Args:
        body: an image file; a multipart form with files; or a JSON object with "image" or "images" in base64.
        headers: headers of the request, of which the content type counts.
        query: parameters of the URL: "top" and "threshold", which fields of the body override.
        max_images: maximum number of images.

    Raises:
        RequestError: the body cannot be read, or has no images or too many.
    """
    content_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    fields: dict[str, Any] = dict(query)
    if content_type == "application/json":
        files = _parse_json(body, fields, max_images)
    elif content_type == "multipart/form-data":
        files = await _parse_form(body, headers, fields, max_images)
    elif content_type.startswith("image/") or content_type in ("", "application/octet-stream"):
        files = [EncodedFile(body, "the image")]
    else:
        raise RequestTypeError(
            f"content type {content_type}: send an image, multipart/form-data or application/json"
        )
    if not any(file.content for file in files):
        raise UnreadableImageError("the request has no image")
    options = RequestOptions(_parse_number(fields, "top", int), _parse_number(fields, "threshold", float))
    return files, options


def _parse_json(body: bytes, fields: dict[str, Any], max_images: int) -> list[EncodedFile]:
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        raise RequestError("the body is not valid JSON") from None
    if not isinstance(content, dict) or not ("image" in content) ^ ("images" in content):
        raise RequestError('the body must be a JSON object with "image" or "images"')
    images = content["images"] if "images" in content else [content["image"]]
    if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
        raise RequestError("images must be strings in base64")
    _check_count(len(images), max_images)
    fields |= {key: value for key, value in content.items() if key in ("top", "threshold")}
    return [
        EncodedFile(_decode_base64(image, f"images[{i}]"), f"images[{i}]") for i, image in enumerate(images)
    ]


def _decode_base64(text: str, name: str) -> bytes:
    if text.startswith(("http://", "https://", "file:")):
        raise RequestError(
            f"{name}: is a URL, and nothing is downloaded for requests: send the image in base64"
        )
    if text.startswith(_DATA_URL):
        text = text.partition(",")[2]
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise RequestError(f"{name}: is not valid base64") from None


async def _parse_form(
    body: bytes, headers: Mapping[str, str], fields: dict[str, Any], max_images: int
) -> list[EncodedFile]:
    async def stream() -> AsyncIterator[bytes]:
        yield body

    parser = MultiPartParser(
        headers,  # type: ignore[arg-type]
        stream(),  # type: ignore[arg-type]
        max_files=max_images,
        max_fields=_MAX_FIELDS,
    )
    parser.spool_max_size = len(body) + 1  # in memory, as the body is
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError) as error:
        raise RequestError(f"the form cannot be read: {getattr(error, 'message', error)}") from None
    files = []
    for key, value in form.multi_items():
        if isinstance(value, UploadFile):
            files.append(EncodedFile(await value.read(), value.filename or key))
        elif key in ("top", "threshold"):
            fields[key] = value
    await form.close()
    return files


def _check_count(count: int, max_images: int) -> None:
    if count > max_images:
        raise UnreadableImageError(f"the request has {count} images, more than {max_images}")


def _parse_number(fields: Mapping[str, Any], key: str, kind: type) -> Any:
    value = fields.get(key)
    if value is None:
        return None
    try:
        number = kind(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if isinstance(value, bool) or not math.isfinite(number) or number != float(value):
        raise RequestError(
            f"{key}: {str(value)[:40]} must be {'an integer' if kind is int else 'a number'}"
        )
    return number
