"""State of a run on disk: output folder, lock, checkpoints, fingerprint, metrics."""
