"""Quantization-aware training: layers that compute with float numbers rounded as int8 will round them."""
