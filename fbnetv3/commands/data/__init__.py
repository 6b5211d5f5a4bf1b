"""Commands that read datasets before training."""
