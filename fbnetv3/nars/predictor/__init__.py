"""The accuracy predictor and its training labels."""
