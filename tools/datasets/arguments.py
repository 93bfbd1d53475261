"""The table on a tool's command line, and how it is read."""

import argparse
from pathlib import Path

from opensora.datasets.folders import LAYOUTS
from opensora.datasets.table_source import Source


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the table and how it is read to a command line."""
    parser.add_argument("table", type=Path, metavar="TABLE", help="table, or folder of clips")
    parser.add_argument("--layout", default="captions", choices=list(LAYOUTS), help="of a folder")
    parser.add_argument("--columns", nargs="*", default=[], metavar="OURS=THEIRS", help="text=caption")
    parser.add_argument("--root", help="folder where relative paths start")
    parser.add_argument("--cache", type=Path, default=Path("cache/tables"), help="remembers what was probed")


def source_of(args: argparse.Namespace) -> Source:
    """Return the table that a command line names."""
    wrong = [pair for pair in args.columns if pair.count("=") != 1]
    if wrong:
        raise ValueError(f"--columns {wrong[0]}: give OURS=THEIRS, such as text=caption.")
    columns = dict(pair.split("=") for pair in args.columns)
    return Source(args.table, args.layout, columns, args.root, probe=True)
