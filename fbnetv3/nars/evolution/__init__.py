"""Evolutionary search over the scores of a predictor."""
