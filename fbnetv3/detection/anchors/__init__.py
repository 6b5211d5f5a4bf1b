"""Anchors: how well they cover the boxes of a dataset, and fitting them to it."""
