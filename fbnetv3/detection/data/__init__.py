"""Data of detectors: COCO-format annotations, datasets, images, data loaders."""
