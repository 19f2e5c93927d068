"""Variants of training texts (`tasks.<task>.augment`)."""
