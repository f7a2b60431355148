"""Datasets, the order of their examples, and augmentation."""
