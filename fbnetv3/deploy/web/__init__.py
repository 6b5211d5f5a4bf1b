"""The page and the JavaScript of `--format web`, and ONNX Runtime for browsers."""
