"""Evaluators that measure the accuracy of candidates."""
