"""Digest of a search space, by which searches recognize theirs."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict

from fbnetv3.nars.space.search_space import Space


def space_digest(space: Space) -> str:
    """Return a SHA-256 of a space's definition in hex."""
    definition = json.dumps(asdict(space), sort_keys=True, default=str)
    return hashlib.sha256(definition.encode()).hexdigest()
