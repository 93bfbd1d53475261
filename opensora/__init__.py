"""Open-Sora: train and sample video-generation models from Python config files."""

__version__ = "0.1.0"
