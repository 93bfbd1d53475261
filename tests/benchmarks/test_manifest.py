"""What a process holds of a table does not grow with its rows, or hardly."""

import pytest

from benchmarks.manifest import read_once, write_rows
from opensora.datasets.manifest import read_manifest


def test_rows_have_the_promised_lengths(tmp_path):
    manifest = read_manifest(write_rows(tmp_path / "t.csv", 1000))
    assert {len(path) for path in manifest.path} == {40} and {len(text) for text in manifest.text} == {200}
    assert len(set(manifest.path)) == len(set(manifest.text)) == 1000


@pytest.mark.slow
def test_a_process_holds_little_of_a_large_table(tmp_path):
    most = {}
    for rows in (200_000, 1_000_000):
        table = write_rows(tmp_path / f"{rows}.csv", rows)
        prepared = read_once(table, tmp_path / "cache", 100)
        opened = read_once(table, tmp_path / "cache", 20_000)
        assert prepared["rows"] == opened["rows"] == rows and opened["read"] < 1.0
        most[rows] = (prepared["most"], opened["most"])
    # MiB per million rows: 12 of them are the sizes. Texts would be 230.
    assert (most[1_000_000][1] - most[200_000][1]) / 0.8 < 30, most
    assert most[1_000_000][0] < 1024, most
