"""Slots of local workers, which may share GPUs: which of them starts an attempt, and when."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence


class GpuSlots:
    """Slots of workers, of which each runs one attempt at a time.

    An attempt may need a GPU of its own. From when it first asks for one until it ends, nothing else starts there.
    Attempts ask again when another one has ended, in the order in which they were submitted.

    Args:
        gpus: GPU of each slot, by any name.
    """

    def __init__(self, gpus: Sequence[str]) -> None:
        self._gpus = gpus
        self._busy: set[int] = set()
        self._reserved: str | None = None  # GPU on which a single attempt runs, or will run
        self._lone_slot: int | None = None  # slot of this attempt

    def take(self, alone: bool) -> int | None:
        """Return a slot for an attempt, and mark it as busy; None if the attempt has to wait."""
        if alone:
            self._reserved = self._least_busy_gpu() if self._reserved is None else self._reserved
            free = self._slots_on(self._reserved)
            if self._busy & set(free):
                return None
            self._lone_slot = free[0]
        else:
            free = [
                slot
                for slot, gpu in enumerate(self._gpus)
                if slot not in self._busy and gpu != self._reserved
            ]
            if not free:
                return None
        self._busy.add(free[0])
        return free[0]

    def release(self, slot: int) -> None:
        """Mark a slot as free."""
        self._busy.remove(slot)
        if slot == self._lone_slot:
            self._reserved = self._lone_slot = None

    def neighbors(self, slot: int) -> list[int]:
        """Return the slots on the GPU of a slot, itself included."""
        return self._slots_on(self._gpus[slot])

    def _slots_on(self, gpu: str) -> list[int]:
        return [slot for slot, name in enumerate(self._gpus) if name == gpu]

    def _least_busy_gpu(self) -> str:
        counts = Counter(self._gpus[slot] for slot in self._busy)
        return min(self._gpus, key=lambda gpu: counts[gpu])
