"""Evaluation of classifiers: test-time augmentation, metrics of several labels per image."""
