"""Metrics: plain functions and small classes on videos."""
