"""Names of classes: matching by name, and those of ImageNet."""
