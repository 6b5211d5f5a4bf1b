"""Output-folder lock: allows one training run at a time and protects existing runs from being overwritten."""

from __future__ import annotations

from fbnetv3.errors import OutputError, UsageError
from fbnetv3.training.processes.distributed import ProcessGroup
from fbnetv3.training.run_state.run_folder import RunFolder
from fbnetv3.utils.files import FolderLock


class RunLock:
    """Context manager that reserves an output folder for one training run.

    A folder that already holds a run is locked on entry, so that the checkpoint to resume from does not change while it
    is read. A new folder is created and locked by `acquire`, which the run calls once its config, data and weights have
    been validated: a mistyped config leaves no folder behind.

    Only rank 0 holds the lock itself.

    Args:
        run_folder: output folder.
        group: all processes of the run.
        resume: whether an existing run may be resumed.

    Raises:
        UsageError: the folder holds a run and `resume` is not set, or another process is training there.
        OutputError: the folder cannot be written.
    """

    def __init__(self, run_folder: RunFolder, group: ProcessGroup, resume: bool) -> None:
        self.run_folder = run_folder
        self.group = group
        self.resume = resume
        self._lock = FolderLock(run_folder.path, "training", "set OUTPUT_DIR to another, writable folder")
        self._acquired = False
        self._had_run = False

    def __enter__(self) -> RunLock:
        self._had_run = self._has_run()
        if self._had_run and not self.resume:
            path = self.run_folder.path
            raise UsageError(f"{path}: already holds a run; add --resume to continue it, or choose another OUTPUT_DIR")
        if self._had_run:
            self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def acquire(self) -> None:
        """Create and lock the folder unless it is locked already. All processes must call this together."""
        if self._acquired:
            return
        # Rank 0 tries; all processes raise its error together
        error = self.group.broadcast(self._try_lock() if self.group.is_rank_0 else None)
        if error is not None:
            raise error
        self._acquired = True
        # Between `__enter__` and here the folder was not locked
        if self._has_run() and not self._had_run:
            raise UsageError(
                f"{self.run_folder.path}: another run wrote to this folder in the meantime; "
                "choose another OUTPUT_DIR, or add --resume"
            )

    def _has_run(self) -> bool:
        return self.group.broadcast(self.run_folder.has_run())

    def _try_lock(self) -> UsageError | OutputError | None:
        """Lock the folder and return the error, if any, so that rank 0 can send it to the others."""
        try:
            self._lock.acquire()
        except (UsageError, OutputError) as error:
            return error
        return None
