"""Metrics: plain functions and small classes on videos.

A metric compares two clips frame by frame: `metric(reference, other) -> values`. Clips are float in [0, 1],
of shape [T, 3, H, W]. Per-frame metrics return T values, those of frame pairs (`pairs = True`) T - 1.
"""
