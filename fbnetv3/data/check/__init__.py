"""Check a dataset before training: read every image, and report what would stop or spoil a run."""
