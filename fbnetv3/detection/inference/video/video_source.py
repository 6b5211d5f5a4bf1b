"""Names of videos on a command line: files, cameras and streams."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse

from fbnetv3.errors import UsageError
from fbnetv3.utils.downloads import is_url
from fbnetv3.utils.files import expand_path

_FORMATS = "3gp avi flv m4v mjpeg mkv mov mp4 mpeg mpg mts ogv ts webm wmv"
VIDEO_SUFFIXES = frozenset(f".{name}" for name in _FORMATS.split(" "))
_CAMERA_PREFIX = "webcam:"
_STREAM_PREFIX = "stream:"  # in front of an address that does not look like that of a stream
_STREAM_SCHEMES = ("rtsp", "rtsps", "rtmp", "rtp", "udp", "tcp", "srt")
_PLAYLIST_SUFFIXES = (".m3u8", ".mpd")


@dataclass(frozen=True)
class VideoSource:
    """A video file, a camera or a stream."""

    address: str | int  # what OpenCV opens: a path, an address, or the number of a camera
    name: str  # for messages and file names, without passwords
    is_live: bool  # whether frames arrive in real time


def parse_video_source(text: str | os.PathLike | int) -> VideoSource | None:
    """Return the video that a name stands for, or None if it is not that of a video.

    Cameras are 0, "webcam:0" or "/dev/video0"; streams begin with "rtsp://" or "stream:", or are addresses of videos
    and playlists.

    Raises:
        UsageError: "webcam:" is not followed by a number.
    """
    name = os.fspath(text) if isinstance(text, os.PathLike) else str(text)
    number = name.removeprefix(_CAMERA_PREFIX)
    if name.startswith(_CAMERA_PREFIX) and not _is_number(number):
        raise UsageError(f"{name}: the number of a camera must follow, such as {_CAMERA_PREFIX}0")
    path = expand_path(name)
    if _is_number(number) and not path.exists():
        return VideoSource(int(number), f"camera_{number}", is_live=True)
    if _is_device(path):
        return VideoSource(str(path), f"camera_{path.name}", is_live=True)

    address = name.removeprefix(_STREAM_PREFIX)
    parsed = urlparse(address)
    suffix = Path(parsed.path).suffix.lower()
    if name.startswith(_STREAM_PREFIX) or parsed.scheme in _STREAM_SCHEMES or suffix in _PLAYLIST_SUFFIXES:
        return VideoSource(address, _public_name(address), is_live=True)
    if suffix in VIDEO_SUFFIXES:
        is_remote = is_url(address)
        return VideoSource(address if is_remote else str(path), _public_name(address), is_live=False)
    return None


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal()


def _is_device(path: Path) -> bool:
    try:
        return stat.S_ISCHR(path.stat().st_mode)
    except OSError:
        return False


def _public_name(address: str) -> str:
    return "_".join(public_parts(address)) or Path(address).name


def public_parts(address: str) -> tuple[str, ...]:
    """Return a URL's host and the parts of its path, without user, password and query; () for a file."""
    parsed = urlparse(address)
    if not parsed.scheme or not parsed.hostname:
        return ()
    return (parsed.hostname, *(part for part in parsed.path.split("/") if part not in ("", "..")))
