"""Evaluation of classifiers, with one class or several labels per image."""
