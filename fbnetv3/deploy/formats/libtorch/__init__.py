"""Formats that C++ programs open with LibTorch, without Python."""
