"""Benchmarks: one subject per file, with an aim beside the figures that have one.

`python -m benchmarks NAME...` runs the named ones; each has `run() -> Iterator[Measure]`.
"""
