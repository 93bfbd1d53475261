"""Composes components into runs."""
