"""Check a detection dataset before training: its images as a classifier's, and its boxes."""
