"""Progress, analysis and report of a search."""
