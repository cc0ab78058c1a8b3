"""Labelled pictures: published sets read from their own files, and batches made on the device."""

from slimfast.data.catalog import NAMES, load
from slimfast.data.image_set import ImageSet, split
from slimfast.data.loader import Augmentation, Batches, Loader, TorchLoader

__all__ = ["NAMES", "Augmentation", "Batches", "ImageSet", "Loader", "TorchLoader", "load", "split"]
