"""Export formats: one file each, their registry, and int8 quantization."""
