"""One training at a time in an output folder; what ends the training, even SIGKILL, ends its hold of the folder."""

from __future__ import annotations

from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows: nobody keeps a second training out
    fcntl = None  # type: ignore[assignment]

from fbnetv3.errors import OutputError, UsageError
from fbnetv3.training.processes.distributed import World
from fbnetv3.training.run_state.run_folder import RunFiles

_NAME = "lock"


class RunLock:
    """Keeps an output folder for one training, of one process or of several that train together.

    The system's lock belongs to the main process alone: those that read images for it, which may outlive it for
    some seconds, do not hold it. Where a run is there already, the folder is held from the beginning; a new folder from
    the moment on in which it is made, so that what makes no sense leaves nothing behind.

    Args:
        files: of the run.
        world: all of its processes.
        resume: whether a run that is there may go on.

    Raises:
        UsageError: a run is there that is not to be resumed, or another process trains there.
        OutputError: the folder cannot be written.
    """

    def __init__(self, files: RunFiles, world: World, resume: bool) -> None:
        self.files, self.world, self.resume = files, world, resume
        self._file: BinaryIO | None = None
        self._held = self._used_before = False

    def __enter__(self) -> RunLock:
        self._used_before = self._used()
        if self._used_before and not self.resume:
            folder = self.files.folder
            raise UsageError(f"{folder}: holds a run already; add --resume to go on, or set another OUTPUT_DIR")
        if self._used_before:
            self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def acquire(self) -> None:
        """Hold the folder, if it is not held yet. All processes have to call it together.

        Raises:
            UsageError: another process has it, or has left a run there meanwhile.
            OutputError: the folder cannot be written.
        """
        if self._held:
            return
        problem = self.world.broadcast(self._locked() if self.world.is_main else None)
        if problem is not None:
            raise problem
        self._held = True
        if self._used() and not self._used_before:
            raise UsageError(f"{self.files.folder}: another training has been there meanwhile: start again")

    def _used(self) -> bool:
        return self.world.broadcast(self.files.in_use())

    def _locked(self) -> UsageError | OutputError | None:
        folder = self.files.folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = (folder / _NAME).open("a+b")
        except OSError as error:
            reason = error.strerror or error
            return OutputError(f"{folder}: cannot be written ({reason}): set OUTPUT_DIR to a folder that can")
        if fcntl is None:
            return None
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return UsageError(f"{folder}: another training runs there: wait for it, or set another OUTPUT_DIR")
        return None
