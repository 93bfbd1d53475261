"""Run benchmarks by name: one line of JSON per figure; status 1 if one misses its aim.

python -m benchmarks stdit3 vae
python -m benchmarks stdit3 --only '16x8x32x32/*/fp32'
"""

import argparse
import importlib
import os
import pkgutil
import subprocess
import sys

import benchmarks
from benchmarks.measure import ONLY
from opensora.utils.user_errors import one_line_errors

_NOT_A_BENCHMARK = ("__main__", "bare", "breakdown", "measure", "pieces", "processes")


def main() -> int:
    """Run what the command line names, and return the exit status."""
    names = sorted(
        m.name for m in pkgutil.iter_modules(benchmarks.__path__) if m.name not in _NOT_A_BENCHMARK
    )
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="+", choices=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--only", help="part of the names of the cases to run, with * for anything")
    args = parser.parse_args()
    if args.only:
        os.environ[ONLY] = args.only
    if len(args.names) > 1:  # each in a process of its own: some change settings that others measure
        command = [sys.executable, "-m", "benchmarks"]
        return max([subprocess.run([*command, name]).returncode for name in args.names])
    missed = []
    with one_line_errors():
        for measure in importlib.import_module(f"benchmarks.{args.names[0]}").run():
            print(measure.line(), flush=True)
            if measure.ok is False:
                missed.append(measure.name)
    if missed:
        print(f"aims missed: {', '.join(missed)}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
