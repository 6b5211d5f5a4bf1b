"""Augmentation of training images with their boxes, masks and keypoints."""
