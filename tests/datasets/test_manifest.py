"""Tables: what is read, and how wrong ones are refused."""

import copy

import numpy as np
import pandas as pd
import pytest

from opensora.datasets.manifest import Strings, read_manifest

HEADER = "path,text,num_frames,height,width"


def test_strings_are_kept_as_bytes():
    texts = ["a", "", 'Äpfel, "quoted"\nline', "漢字"]
    column = Strings(texts)
    assert list(column) == texts
    assert list(Strings.join([column, Strings([]), Strings(["b"])])) == [*texts, "b"]
    assert list(copy.deepcopy(column)) == texts
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
    assert manifest.extra["aes"].tolist() == [5.5, 4.0]
    assert list(manifest.extra["source"]) == ["x", "y"]
    assert manifest.label is None


def test_parquet_equals_csv(write_table, tmp_path):
    pytest.importorskip("pyarrow")
    table = write_table(HEADER + ",fps", "a.mp4,one,49,360,640,24", "b.mp4,two,17,144,256,")
    frame = pd.DataFrame(
        dict(path=["a.mp4", "b.mp4"], text=["one", "two"], num_frames=[49, 17], height=[360, 144])
    )
    frame["width"], frame["fps"] = [640, 256], [24.0, None]
    frame.to_parquet(tmp_path / "table.parquet")
    one, two = read_manifest(table), read_manifest(tmp_path / "table.parquet")
    assert one.fingerprint == two.fingerprint
    assert one.num_frames.dtype == two.num_frames.dtype == np.int32


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
        (HEADER, "a,a dog, running,1,8,8", "more cells than the header; texts with commas"),
        (HEADER, 'a,"b,1,8,8', "texts with commas or line breaks need double quotes"),
    ],
)
def test_wrong_tables(write_table, header, line, message):
    with pytest.raises(ValueError, match=message):
        read_manifest(write_table(header, line))


def test_errors_count_rows_over_pieces(write_table, monkeypatch):
    monkeypatch.setattr("opensora.datasets.manifest._ROWS_AT_ONCE", 3)
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
    with pytest.raises(ValueError, match=r".csv or .parquet"):
        read_manifest(write_table(HEADER, "a,b,1,8,8", name="table.tsv"))
    (tmp_path / "bad.parquet").write_bytes(b"nothing")
    pytest.importorskip("pyarrow")
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


def test_missing_files_are_named(write_table, write_picture):
    manifest = read_manifest(write_table(HEADER, f"{write_picture()},a,1,48,64", "gone.mp4,b,9,8,8"))
    with pytest.raises(FileNotFoundError, match=r"1 of 2 files(.|\n)*row 1: gone.mp4"):
        manifest.check_files()
    manifest.check_files(limit=1)
