"""Batches of images on their way from the dataset to the device."""
