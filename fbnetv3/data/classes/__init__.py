"""Classes: matching by name, those of ImageNet, subsets, and balance."""
