"""Tables of ten million rows: seconds to prepare and to open one, and what a process holds of it.

Rows have paths of 40 and captions of 200 characters. Each figure comes from a process of its own.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv

from benchmarks.measure import Measure

ROWS = 10_000_000
_PIECE = 250_000

# Read a table, then its numbers and random texts of it; print seconds and the most that was resident.
_READ = """
import json, re, sys, time
import numpy as np
from opensora.datasets.manifest import read_manifest

def most():
    status = open("/proc/self/status").read()
    return int(re.search(r"VmHWM:\\s+(\\d+)", status)[1]) / 1024

before = most()
start = time.perf_counter()
manifest = read_manifest(sys.argv[1], cache=sys.argv[2])
read = time.perf_counter() - start
[column.sum() for column in manifest.columns]
rows = np.random.default_rng(0).integers(0, len(manifest), int(sys.argv[3])).tolist()
start = time.perf_counter()
letters = sum(len(manifest.path[row]) + len(manifest.text[row]) for row in rows)
each = (time.perf_counter() - start) / len(rows)
print(json.dumps(dict(rows=len(manifest), read=read, each=each, most=most(), before=before, letters=letters)))
"""


def run() -> Iterator[Measure]:
    """Write a table of `ROWS` rows, and measure the process that prepares it and one that opens it."""
    with tempfile.TemporaryDirectory() as folder:
        table = write_rows(Path(folder) / "table.csv", ROWS)
        first = read_once(table, Path(folder) / "cache", 1000)
        again = read_once(table, Path(folder) / "cache", 200_000)
    conditions = {"rows": ROWS, "imports MiB": round(again["before"])}
    yield Measure("manifest/csv/prepare", first["read"], "s", conditions=conditions)
    yield Measure("manifest/csv/prepare/resident", first["most"], "MiB", at_most=2048, conditions=conditions)
    yield Measure("manifest/csv/open", again["read"], "s", at_most=1.0, conditions=conditions)
    yield Measure("manifest/csv/open/resident", again["most"], "MiB", at_most=2048, conditions=conditions)
    yield Measure("manifest/csv/path and caption", 1e6 * again["each"], "us", conditions=conditions)


def write_rows(path: Path, rows: int) -> Path:
    """Write a table with paths of 40 and captions of 200 characters, none of them equal."""
    draws = np.random.default_rng(0)
    captions = ["".join(map(chr, draws.integers(97, 123, 190))) for _ in range(500)]
    writer = None
    for start in range(0, rows, _PIECE):
        numbers = range(start, min(start + _PIECE, rows))
        piece = pa.table(
            {
                "path": [f"clips/{number:030d}.mp4" for number in numbers],
                "text": [f"{number:010d}{captions[number % 500]}" for number in numbers],
                "num_frames": draws.integers(1, 400, len(numbers)),
                "height": draws.integers(100, 1100, len(numbers)),
                "width": draws.integers(100, 2000, len(numbers)),
                "fps": np.full(len(numbers), 24.0),
            }
        )
        writer = writer or pa.csv.CSVWriter(path, piece.schema)
        writer.write_table(piece)
    writer.close()
    return path


def read_once(table: Path, cache: Path, texts: int) -> dict[str, float]:
    """Read a table in a fresh process; return `read` and `each` in seconds, `most` and `before` in MiB."""
    command = [sys.executable, "-c", _READ, str(table), str(cache), str(texts)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])
