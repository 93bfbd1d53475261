"""Evaluation: folders of videos to numbers."""
