"""Annotations in COCO's format: reading, cleaning and checking them, and what training and evaluation use of them."""
