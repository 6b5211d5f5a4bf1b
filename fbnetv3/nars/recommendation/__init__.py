"""The candidates that a search recommends: evolution over predicted scores, and files for training."""
