"""The accuracy predictor and what it is trained on."""
