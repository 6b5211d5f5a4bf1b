"""Detectors as one ONNX graph, from an image to boxes."""
