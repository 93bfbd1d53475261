"""Tables: what is read, and how wrong ones are refused."""

import copy
import gzip
import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from opensora.datasets import manifest as manifest_file
from opensora.datasets import prepared, table_source
from opensora.datasets.columns import Strings
from opensora.datasets.manifest import read_manifest

HEADER = "path,text,num_frames,height,width"


def test_strings_are_kept_as_texts():
    texts = ["a", "", 'Äpfel, "quoted"\nline', "漢字"]
    column = Strings(texts)
    assert list(column) == texts
    assert list(Strings([*column.chunks, *Strings([]).chunks, *Strings(["b"]).chunks])) == [*texts, "b"]
    assert list(copy.deepcopy(column)) == texts
    assert list(Strings(["a/b.mp4", "/c.mp4"]).below("root")) == ["root/a/b.mp4", "/c.mp4"]
    with pytest.raises(IndexError, match="rows 0 to 3"):
        column[4]


def test_reads_csv(write_table):
    table = write_table(
        HEADER + ",fps,aes,source",
        'a.mp4,"a dog, running",49,360,640,29.97,5.5,x',
        "b.png,NA,1,512.0,512,,4,y",
    )
    manifest = read_manifest(table)
    assert len(manifest) == 2
    assert list(manifest.path) == ["a.mp4", "b.png"]
    assert list(manifest.text) == ["a dog, running", "NA"]
    assert [column.tolist() for column in manifest.columns] == [[49, 1], [360, 512], [640, 512]]
    assert manifest.fps[0] == pytest.approx(29.97) and np.isnan(manifest.fps[1])
    assert manifest.numbers("aes").tolist() == [5.5, 4.0]
    with pytest.raises(ValueError, match="row 0: column source is 'x', expected a number"):
        manifest.numbers("source")
    with pytest.raises(KeyError, match="columns of scores are: aes, source"):
        manifest.numbers("aesthetic")
    assert list(manifest.extra["source"]) == ["x", "y"]
    assert manifest.label is None


def test_formats_are_equal(write_table, tmp_path):
    rows = [
        dict(path="a.mp4", text='one, "two"', num_frames=49, height=360, width=640, fps=24.0),
        dict(path="b.mp4", text="None", num_frames=17, height=144, width=256, fps=None),
    ]
    table = write_table(HEADER + ",fps", 'a.mp4,"one, ""two""",49,360,640,24', "b.mp4,None,17,144,256,")
    pa.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "table.parquet")
    (tmp_path / "table.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    (tmp_path / "table.json").write_text(json.dumps(rows), encoding="utf-8")
    with gzip.open(tmp_path / "table.csv.gz", "wb") as file:
        file.write(Path(table).read_bytes())
    found = [read_manifest(path) for path in sorted(tmp_path.glob("table.*"))]
    assert len(found) == 5 and len({manifest.fingerprint for manifest in found}) == 1
    for manifest in found:
        assert list(manifest.text) == ['one, "two"', "None"]
        assert manifest.num_frames.dtype == np.int32 and manifest.num_frames.tolist() == [49, 17]
        assert manifest.fps[0] == 24.0 and np.isnan(manifest.fps[1])


def test_labels(write_table):
    assert read_manifest(write_table("path,label,num_frames,height,width", "a,3,1,8,8")).label.tolist() == [3]
    with pytest.raises(ValueError, match="column label is 'cat', expected an integer from 0"):
        read_manifest(write_table("path,label,num_frames,height,width", "a,cat,1,8,8"))


def test_fingerprint_sees_content_and_order(write_table):
    rows = ["a.mp4,one,49,360,640", "b.mp4,two,17,144,256"]
    base = read_manifest(write_table(HEADER, *rows)).fingerprint
    assert read_manifest(write_table(HEADER, *rows, name="same.csv")).fingerprint == base
    changed = [rows[::-1], [rows[0].replace("one", "on"), rows[1].replace("two", "etwo")], [rows[0]]]
    changed += [[rows[0].replace("360", "361"), rows[1]], [rows[0].replace("a.mp4", "c.mp4"), rows[1]]]
    found = {read_manifest(write_table(HEADER, *lines)).fingerprint for lines in changed}
    assert len(found | {base}) == len(changed) + 1


@pytest.mark.parametrize(
    "header, line, message",
    [
        ("video,text,num_frames,height,width", "a,b,1,8,8", "no column path; .* rename 'video' to 'path'"),
        ("path,text,num_frames", "a,b,1", "no column height, width; .* dataset.probe=True"),
        ("path,text,num_frame,height,width", "a,b,1,8,8", "rename 'num_frame' to 'num_frames'"),
        (HEADER, "a,b,0,8,8", "row 0: column num_frames is '0', expected an integer from 1"),
        (HEADER, "a,b,many,8,8", "row 0: column num_frames is 'many'"),
        (HEADER, "a,b,1,8.5,8", "column height is '8.5'"),
        (HEADER, "a,b,1,-8,8", "column height is '-8'"),
        (HEADER, "a,b,1,,8", "column height is '', expected .*\n.*dataset.probe=True fills"),
        (HEADER, "a,b,99999999999,8,8", "column num_frames is '99999999999'"),
        (HEADER, "a,  ,1,8,8", "row 0: column text is empty"),
        (HEADER, ",b,1,8,8", "row 0: column path is empty"),
        (HEADER + ",fps", "a,b,1,8,8,-3", "column fps is '-3', expected a number above 0"),
        (HEADER, "a,a dog, running,1,8,8", "row 0: has 6 cells, the header 5; texts with commas"),
        (HEADER, 'a,"b,1,8,8', "texts with commas or line breaks need double quotes"),
    ],
)
def test_wrong_tables(write_table, header, line, message):
    with pytest.raises(ValueError, match=message):
        read_manifest(write_table(header, line))


def test_errors_count_rows_over_pieces(write_table, monkeypatch):
    monkeypatch.setattr("opensora.datasets.table_files._BYTES", 100)
    lines = [f"{i}.mp4,t,{0 if i in (4, 7) else 5},8,8" for i in range(10)]
    with pytest.raises(ValueError, match=r"2 cells are wrong(.|\n)*row 4: column num_frames(.|\n)*row 7"):
        read_manifest(write_table(HEADER, *lines))
    lines = [line.replace(",0,", ",5,") for line in lines]
    good = read_manifest(write_table(HEADER, *lines))
    assert list(good.path) == [f"{i}.mp4" for i in range(10)]
    monkeypatch.undo()
    assert (
        read_manifest(write_table(HEADER, *(x.replace(",0,", ",5,") for x in lines))).fingerprint
        == good.fingerprint
    )


def test_no_table(write_table, tmp_path):
    with pytest.raises(FileNotFoundError, match="--data-path"):
        read_manifest(tmp_path / "none.csv")
    with pytest.raises(ValueError, match="no rows"):
        read_manifest(write_table(HEADER))
    with pytest.raises(ValueError, match="header"):
        read_manifest(write_table(""))
    with pytest.raises(ValueError, match="a table is .csv, .csv.gz, .parquet"):
        read_manifest(write_table(HEADER, "a,b,1,8,8", name="table.tsv"))
    (tmp_path / "bad.parquet").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="no parquet file"):
        read_manifest(tmp_path / "bad.parquet")


def test_probing_fills_what_is_missing(write_table, write_clip, write_picture, caplog):
    clip, image = write_clip(num_frames=20), write_picture()
    manifest = read_manifest(write_table("path,text", f"{clip},a", f"{image},b", "gone.mp4,c"), probe=True)
    assert [column.tolist() for column in manifest.columns] == [[20, 1, 0], [48, 48, 0], [64, 64, 0]]
    assert manifest.fps[:2].tolist() == [25.0, 120.0]
    partly = read_manifest(write_table(HEADER, f"{clip},a,,48,", f"{image},b,1,48,64"), probe=True)
    assert [column.tolist() for column in partly.columns] == [[20, 1], [48, 48], [64, 64]]
    with pytest.raises(ValueError, match="none of the 1 files(.|\n)*gone.mp4: no such file"):
        read_manifest(write_table("path", "gone.mp4"), probe=True)


def test_missing_files_are_named(write_table, write_picture, tmp_path, caplog, monkeypatch):
    image = write_picture()
    manifest = read_manifest(write_table(HEADER, f"{image},a,1,48,64", "gone.mp4,b,9,8,8"))
    with pytest.raises(FileNotFoundError, match=r"1 of 2 files(.|\n)*row 1: gone.mp4(.|\n)*dataset.root"):
        manifest.check_files()
    manifest.check_files(limit=1)
    manifest.check_files(limit=0)
    few = read_manifest(write_table(HEADER, *[f"{image},a,1,48,64"] * 199, "gone.mp4,b,9,8,8"))
    few.check_files()
    assert "1 of 200 files looked at do not exist" in caplog.text
    relative = write_table(HEADER, "image.png,a,1,48,64")
    read_manifest(relative, root=str(tmp_path)).check_files()
    with pytest.raises(FileNotFoundError, match="dataset.root='nowhere': no such folder"):
        read_manifest(relative, root="nowhere")
    monkeypatch.chdir(tmp_path)
    read_manifest(relative).check_files()


def test_root_does_not_change_the_fingerprint(write_table, tmp_path):
    table = write_table(HEADER, "image.png,a,1,48,64")
    assert read_manifest(table, root=str(tmp_path)).fingerprint == read_manifest(table).fingerprint


@pytest.mark.parametrize(
    "line, message",
    [
        ("a dog,{clip},30,48,64", "The column text holds files: are path and text swapped?"),
        ("{clip},a dog,30,64,48", "table says height 64, the file 48, width 48, the file 64(.|\n)*swapped"),
        ("{clip},a dog,31,48,64", "table says frames 31, the file 30(.|\n)*tools.datasets.check"),
        ("{text},a dog,30,48,64", "none of 1 files that were opened can be read:(.|\n)*unknown extension"),
    ],
)
def test_files_that_differ_from_the_table(write_table, write_clip, tmp_path, line, message):
    (tmp_path / "text.txt").write_text("no clip")
    line = line.format(clip=write_clip(), text=tmp_path / "text.txt")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read_manifest(write_table(HEADER, line)).check_files()


def test_a_table_may_say_fewer_frames_than_the_file_has(write_table, write_clip):
    read_manifest(write_table(HEADER, f"{write_clip()},a,20,48,64")).check_files()


# Tables that are prepared in files


@pytest.fixture
def prepare(tmp_path, monkeypatch):
    """Return a function that reads a table through prepared files, and a list of what was prepared."""
    monkeypatch.setattr(manifest_file, "_LARGE", 0)
    monkeypatch.setattr(table_source, "_SETTLED", 0.0)
    made, real = [], prepared._prepare
    monkeypatch.setattr(prepared, "_prepare", lambda *arguments: (made.append(arguments), real(*arguments)))
    return lambda table, **options: read_manifest(table, cache=tmp_path / "cache", **options), made


def test_a_prepared_table_is_the_table(write_table, prepare, tmp_path):
    read, made = prepare
    table = write_table(HEADER + ",fps,label,aes", "a.mp4,one,49,360,640,24,3,5.5", "b.mp4,NA,17,144,256,,0,")
    plain, first, second = read_manifest(table), read(table), read(table)
    assert len(made) == 1
    for found in (first, second):
        assert found.fingerprint == plain.fingerprint
        assert list(found.path) == list(plain.path) and list(found.text) == list(plain.text)
        assert all((a == b).all() for a, b in zip(found.columns, plain.columns, strict=True))
        assert found.label.tolist() == [3, 0] and found.numbers("aes")[0] == 5.5
    assert not list((tmp_path / "cache").glob(".table-*-*"))
    handed = ForkingPickler.dumps(second)
    assert len(handed) < 4000 and list(ForkingPickler.loads(handed).text) == ["one", "NA"]


def test_a_changed_table_is_prepared_anew(write_table, prepare):
    read, made = prepare
    assert read(write_table(HEADER + ",long", "a.mp4,one,49,360,640,long one")).text[0] == "one"
    table = Path(write_table(HEADER + ",long", "a.mp4,two,49,360,640,long two"))
    os.utime(table, (1, 1))
    assert read(table).text[0] == "two" and len(made) == 2
    assert read(table, columns={"text": "long"}).text[0] == "long two" and len(made) == 3


def test_a_fresh_table_settles_first(write_table, monkeypatch):
    monkeypatch.setattr(table_source, "_SETTLED", 0.2)
    source = table_source.Source(Path(write_table(HEADER, "a,b,1,8,8")))
    before = source.state()
    assert time.time() - source.path.stat().st_mtime >= 0.2
    assert source.state() == before


@pytest.fixture
def one_at_a_time(monkeypatch):
    """Headers of arrays are parsed by one thread at a time: Python 3.11 sometimes fails at two at once."""
    lock, real = threading.Lock(), prepared.map_array

    def alone(file):
        with lock:
            return real(file)

    monkeypatch.setattr(prepared, "map_array", alone)


def test_one_process_prepares_and_others_wait(write_table, prepare, one_at_a_time):
    read, made = prepare
    table = write_table(HEADER, *(f"{i}.mp4,t,5,8,8" for i in range(1000)))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(read, [table] * 4))
    assert len(made) == 1 and len({manifest.fingerprint for manifest in found}) == 1


def test_without_locks_the_first_one_counts(write_table, prepare, monkeypatch, tmp_path, one_at_a_time):
    def no_locks(handle, how):
        raise OSError("Function not implemented")

    read, made = prepare
    monkeypatch.setattr(prepared.fcntl, "flock", no_locks)
    table = write_table(HEADER, *(f"{i}.mp4,t,5,8,8" for i in range(1000)))
    barrier, real = threading.Barrier(2), prepared.build_columns

    def together(*arguments):
        barrier.wait(10)
        return real(*arguments)

    monkeypatch.setattr(prepared, "build_columns", together)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(read, [table] * 2))
    assert len(made) == 2 and len({manifest.fingerprint for manifest in found}) == 1
    assert len(list((tmp_path / "cache").glob("*table-*"))) == 2  # the table and its lock


def test_what_a_killed_process_left_is_removed(write_table, prepare, tmp_path):
    read, made = prepare
    table = write_table(HEADER, "a,b,1,8,8")
    left = tmp_path / "cache" / f".table-{table_source.Source(Path(table)).state()}-killed"
    left.mkdir(parents=True)
    (left / "texts.arrow").write_bytes(b"half a file")
    assert read(table).text[0] == "b" and len(made) == 1 and not left.exists()


def test_a_wrong_table_leaves_nothing(write_table, prepare, tmp_path):
    read, _ = prepare
    with pytest.raises(ValueError, match="column num_frames is '0'"):
        read(write_table(HEADER, "a,b,0,8,8"))
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]


def test_a_cache_that_cannot_be_written_is_named(write_table, prepare, tmp_path):
    read, _ = prepare
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(OSError, match="dataset.cache=.* cannot be written .*; set it to a folder"):
        read(write_table(HEADER, "a,b,1,8,8"))


def test_probed_sizes_are_filled_into_a_prepared_table(write_table, prepare, write_clip):
    read, made = prepare
    table = write_table("path,text", f"{write_clip()},a", "gone.mp4,b")
    found = [read(table, probe=True), read(table, probe=True), read_manifest(table, probe=True)]
    assert len(made) == 1 and len({manifest.fingerprint for manifest in found}) == 1
    assert found[1].num_frames.tolist() == [30, 0]
    write_clip("gone.mp4", num_frames=7)
    mended = write_table("path,text", f"{write_clip()},a", f"{write_clip('gone.mp4', num_frames=7)},b")
    assert read(mended, probe=True).num_frames.tolist() == [30, 7]
