"""Tools for data: what one does with clips and tables before training.

Each is a module to run, `python -m tools.datasets.check --help`. They use of `opensora` the ground floor and
the datasets only.
"""
