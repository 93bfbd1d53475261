"""Benchmarks: each file beside the entry measures one subject, with an aim beside every figure.

`python -m benchmarks NAME...` runs the named ones; each has `run() -> Iterator[Measure]`.
"""
