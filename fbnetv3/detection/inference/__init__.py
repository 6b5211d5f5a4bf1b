"""Inference with detectors: optimization, image files, pictures."""
