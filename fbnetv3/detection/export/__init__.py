"""Export of detectors to ONNX."""
