"""Export formats, one file each, with their registry and int8 quantization."""
