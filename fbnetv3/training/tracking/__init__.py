"""Track training runs: a table of all runs of a folder, and experiment trackers."""
