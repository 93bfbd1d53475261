"""Check a table of clips, or a folder: say what is wrong by row, column and remedy, and write a repaired one.

    python -m tools.datasets.check my_clips.csv
    python -m tools.datasets.check my_clips.csv --output my_checked_clips.parquet
    python -m tools.datasets.check my_folder --output my_clips.csv

Every file is probed once; a second call goes on where the first one stopped. The repaired table has sizes and
lengths from the files, and leaves out rows that cannot be mended. The exit status is 1 if something is wrong.
"""

import argparse
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from opensora.datasets.columns import RowsOf, Strings
from opensora.datasets.frame_folder import IMAGE_EXTENSIONS
from opensora.datasets.manifest import memory_file
from opensora.datasets.prepared import locked
from opensora.datasets.probing import ProbeMemory, probe_files
from opensora.datasets.table_schema import SIZES, TEXTS, TYPES, Problems
from opensora.datasets.table_source import Columns, Source, build_columns
from opensora.datasets.video_io import VIDEO_EXTENSIONS, ClipInfo
from opensora.utils.user_errors import one_line_errors
from tools.datasets.arguments import add_source_arguments, source_of
from tools.datasets.write_table import check_output, write_table

# What UTF-8 looks like after it was read as Latin-1, and what unreadable bytes are replaced with.
_MOJIBAKE = "\ufffd|Ã[\u0080-\u00bf]|â€"


@dataclass
class Finding:
    """One kind of problem, and the rows that have it.

    Args:
        what: What is wrong with these rows.
        rows: What to print of each row, by its number.
        remedy: What to do.
        wrong: Whether training would suffer; else it is only worth a look.
        drops: Whether the repaired table leaves the rows out.
    """

    what: str
    rows: dict[int, str]
    remedy: str
    wrong: bool = True
    drops: bool = False


def main() -> None:
    """Read the command line, check, and end with status 1 if something is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.datasets.check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_source_arguments(parser)
    parser.add_argument("--output", type=Path, help="repaired table: .csv, .parquet or .jsonl")
    parser.add_argument("--no-probe", action="store_true", help="do not open the files")
    parser.add_argument("--num-threads", type=int, default=8, help="files that are probed at once")
    parser.add_argument("--longest", type=int, default=1500, help="characters of a long caption")
    parser.add_argument("--most", type=int, default=5, help="rows that are shown of each problem")
    args = parser.parse_args()
    with one_line_errors():
        if args.output is not None:
            check_output(args.output)
        sys.exit(check(source_of(args), args))


def check(source: Source, args: argparse.Namespace) -> int:
    """Check a table, print what was found, and write the repaired table if it is asked for.

    Args:
        source: The table.
        args: `output`, `no_probe`, `num_threads`, `longest`, `most`, `cache`.

    Returns:
        1 if something is wrong, else 0.
    """
    problems = Problems(args.most)
    columns, _ = build_columns(source, problems)
    total = len(columns["path"])
    root = source.root or (str(source.path) if source.is_folder else "")
    paths = columns["path"].below(root) if root else columns["path"]
    absent = [] if source.is_folder else [name for name in SIZES if name not in columns]
    print(f"{source.path}: {total} rows, columns {', '.join(columns)}")
    findings = _in_texts(columns, args.longest, args.no_probe)
    if not args.no_probe:
        findings += _in_files(columns, paths, args, memory_file(source, args.cache))
    kept = np.setdiff1d(
        np.arange(total), [*_empty(columns), *(row for f in findings if f.drops for row in f.rows)]
    )
    again = _repeated(columns["path"], kept)
    if len(again):
        repeats = {row: columns["path"][row] for row in again.tolist()}
        findings.append(Finding("paths stand in an earlier row", repeats, "remove one of the rows"))
    kept = np.setdiff1d(kept, again)
    if absent:
        print(f"wrong: no column {', '.join(absent)}")
        print("  remedy: --output writes them, or set dataset.probe=True")
    if problems.count:
        print(f"wrong: {problems.count} cells or rows\n{problems.lines(args.most)}")
        print("  remedy: correct them, or remove the rows")
    for finding in findings:
        _print(finding, problems, args.most)
    print(f"{len(kept)} of {total} rows can be used")
    if args.output is not None:
        write_table({**columns, "path": paths} if source.is_folder else columns, kept, args.output)
        print(f"{args.output}: {len(kept)} rows written")
    unmended = bool(absent) and args.output is None
    return int(bool(problems.count) or unmended or any(finding.wrong for finding in findings))


def _empty(columns: Columns) -> np.ndarray:
    """Return the rows without a path, caption or class, which were told as wrong cells."""
    labels = columns["label"] < 0 if "label" in columns else np.zeros(len(columns["path"]), dtype=bool)
    texts = [columns[name] for name in TEXTS if name in columns]
    blank = [pc.equal(pc.utf8_trim_whitespace(_chunked(text)), "").to_numpy() for text in texts]
    return np.flatnonzero(np.logical_or.reduce([labels, *blank]))


def _in_texts(columns: Columns, longest: int, suffix_too: bool) -> list[Finding]:
    """Look at paths and captions."""
    path = _chunked(columns["path"])
    suffixes = "|".join(suffix[1:] for suffix in (*VIDEO_EXTENSIONS, *IMAGE_EXTENSIONS))
    unknown = pc.invert(pc.match_substring_regex(path, rf"(?i)(/|[.]({suffixes})|^\s*)$"))
    absolute = pc.starts_with(path, "/").to_numpy()
    relative = np.flatnonzero(~absolute) if absolute.any() else absolute[:0]
    show = columns["path"].__getitem__
    found = [("paths are relative, others absolute", relative, show, "use one kind", False, False)]
    if suffix_too:  # else the files themselves are asked
        known = suffixes.replace("|", ", ")
        found.append((f"files are none of {known}", _rows(unknown), show, "convert them", True, True))
    if "text" in columns:
        text, caption = _chunked(columns["text"]), columns["text"].__getitem__
        odd = _rows(pc.match_substring_regex(text, _MOJIBAKE))
        long = _rows(pc.greater(pc.utf8_length(text), longest))
        found += [
            ("captions were read in a wrong encoding", odd, caption, "write the table as UTF-8", True, False),
            (
                *(f"captions have more than {longest} characters", long, caption),
                *("shorten them: text encoders cut what is too long", False, False),
            ),
        ]
    return [
        Finding(what, {row: show(row)[:80] for row in rows.tolist()}, remedy, wrong, drops)
        for what, rows, show, remedy, wrong, drops in found
        if len(rows)
    ]


def _in_files(columns: Columns, paths: Strings, args: argparse.Namespace, memory: Path) -> list[Finding]:
    """Probe all files; put their sizes into the columns, and say where they differed."""
    total, done = len(paths), 0
    gone: dict[int, str] = {}
    broken: dict[int, str] = {}
    differs: dict[int, str] = {}
    before = {name: columns[name] for name in SIZES if name in columns}
    for name in (*SIZES, "fps"):
        empty = np.full(total, np.nan if name == "fps" else 0, dtype=TYPES[name])
        columns[name] = np.array(columns.get(name, empty))
    with locked(memory.with_suffix(".lock")):
        for results in probe_files(RowsOf(paths, np.arange(total)), args.num_threads, ProbeMemory(memory)):
            for row, result in enumerate(results, start=done):
                if isinstance(result, ClipInfo):
                    said = _compare(before, row, result)
                    differs.update({row: f"{paths[row]}: {said}"} if said else {})
                    for name in SIZES:
                        columns[name][row] = getattr(result, name)
                    if np.isnan(columns["fps"][row]):
                        columns["fps"][row] = result.fps
                elif os.path.exists(paths[row]):
                    broken[row] = str(result)
                else:
                    gone[row] = paths[row]
            done += len(results)
    here = f"relative paths start at {Path.cwd()}"
    found = [
        Finding("files do not exist", gone, f"correct the paths, or give --root; {here}", drops=True),
        Finding("files cannot be read", broken, "mend them, or remove the rows", drops=True),
        Finding("files differ from the table", differs, "--output writes what the files say"),
    ]
    return [finding for finding in found if finding.rows]


def _compare(before: dict[str, np.ndarray], row: int, result: ClipInfo) -> str:
    """Say where a file differs from its row; an empty cell differs from nothing."""
    pairs = [(name, int(column[row]), getattr(result, name)) for name, column in before.items()]
    return ", ".join(f"{name} {ours}, the file {real}" for name, ours, real in pairs if ours not in (0, real))


def _print(finding: Finding, problems: Problems, most: int) -> None:
    print(f"{'wrong' if finding.wrong else 'worth a look'}: {len(finding.rows)} {finding.what}")
    for row in sorted(finding.rows)[:most]:
        print(f"  row {problems.row_in_file(row)}: {finding.rows[row]}")
    if len(finding.rows) > most:
        print(f"  ... and {len(finding.rows) - most} more")
    print(f"  remedy: {finding.remedy}")


def _chunked(column: Strings) -> pa.ChunkedArray:
    return pa.chunked_array(column.chunks, pa.string())


def _rows(mask: pa.ChunkedArray) -> np.ndarray:
    return np.flatnonzero(mask.to_numpy())


def _repeated(path: Strings, rows: np.ndarray) -> np.ndarray:
    """Return those of some rows whose path stands in an earlier one of them."""
    codes = _chunked(path).take(pa.array(rows)).combine_chunks().dictionary_encode().indices.to_numpy()
    again = np.ones(len(rows), dtype=bool)
    again[np.unique(codes, return_index=True)[1]] = False
    return rows[again]


if __name__ == "__main__":
    main()
