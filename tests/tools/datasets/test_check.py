"""The tool that checks tables: every kind of problem, and the repaired table."""

import json

import pytest

from opensora.datasets.manifest import read_manifest

CHECK = "tools.datasets.check"
HEADER = "path,text,num_frames,height,width,fps,aes"


@pytest.fixture
def messy(here, make_clip):
    """Write a table in which nearly everything is wrong."""
    make_clip("a.mp4"), make_clip("b.png"), make_clip("c.mp4"), make_clip("d.mp4", num_frames=9)
    (here / "broken.mp4").write_bytes(b"no clip")
    (here / "notes.doc").write_text("no clip")
    rows = [
        "a.mp4,fine,20,48,64,25,5.5",
        f"{here}/b.png,NA,,48,64,,",
        "c.mp4,other sizes,99,64,48,25,4",
        "too,many,cells,in,this,row,1,2",
        "gone.mp4,not there,5,48,64,25,4",
        "broken.mp4,no video,5,48,64,25,4",
        "notes.doc,a document,5,48,64,25,4",
        "a.mp4,again,20,48,64,25,4",
        "d.mp4,,9,48,64,25,4",
        "d.mp4,cafÃ© and " + "long " * 400 + ",9,many,64,25,4",
    ]
    (here / "t.csv").write_text("\n".join([HEADER, *rows]) + "\n", encoding="utf-8")
    return here / "t.csv"


def test_a_good_table(here, make_clip, run_tool):
    make_clip("a.mp4"), make_clip("b.png")
    (here / "t.csv").write_text(f"{HEADER}\na.mp4,one,20,48,64,25,1\nb.png,two,1,48,64,,2\n")
    status, said = run_tool(CHECK, "t.csv")
    assert status == 0 and "2 of 2 rows can be used" in said and "wrong" not in said


def test_every_problem_has_rows_and_a_remedy(messy, run_tool):
    status, said = run_tool(CHECK, messy)
    assert status == 1
    for expected in (
        "wrong: 3 cells or rows",
        "row 3: has 8 cells, the header 7",
        "row 8: column text is empty",
        "row 9: column height is 'many', expected an integer from 1",
        "wrong: 1 files do not exist\n  row 4: gone.mp4",
        "wrong: 2 files cannot be read\n  row 5: broken.mp4: cannot be read",
        "row 6: notes.doc: unknown extension",
        "wrong: 1 paths stand in an earlier row\n  row 7: a.mp4",
        "wrong: 1 files differ from the table\n  row 2: c.mp4: num_frames 99, the file 20, height 64, the",
        "wrong: 1 captions were read in a wrong encoding\n  row 9: cafÃ©",
        "worth a look: 1 captions have more than 1500 characters",
        "worth a look: 8 paths are relative, others absolute",
        "remedy: correct the paths, or give --root",
        "4 of 9 rows can be used",
    ):
        assert expected in said, said
    assert said.count("  remedy: ") == 8
    said = run_tool(CHECK, messy, "--no-probe", "--most", 1)[1]
    assert "wrong: 1 files are none of mp4, avi" in said and "gone.mp4" not in said


@pytest.mark.parametrize("suffix", ["csv", "parquet", "jsonl"])
def test_the_repaired_table_is_good(messy, run_tool, suffix):
    status, said = run_tool(CHECK, messy, "--output", f"new.{suffix}")
    assert status == 1 and f"new.{suffix}: 4 rows written" in said
    manifest = read_manifest(f"new.{suffix}")
    assert list(manifest.text) == ["fine", "NA", "other sizes", "cafÃ© and " + "long " * 400]
    assert [column.tolist() for column in manifest.columns] == [[20, 1, 20, 9], [48] * 4, [64] * 4]
    assert manifest.fps.tolist() == [25.0, 120.0, 25.0, 25.0]
    assert manifest.numbers("aes")[[0, 2]].tolist() == [5.5, 4.0]
    said = run_tool(CHECK, f"new.{suffix}")[1]
    assert said.count("wrong: ") == 1 and "wrong encoding" in said  # which no tool can mend


def test_a_folder_becomes_a_table(here, make_clip, run_tool):
    make_clip("clips/Jump/a.mp4"), make_clip("clips/Run/b.mp4", num_frames=9)
    status, said = run_tool(CHECK, "clips", "--layout", "classes", "--output", "t.csv")
    assert status == 0, said
    manifest = read_manifest("t.csv")
    assert manifest.label.tolist() == [0, 1] and manifest.num_frames.tolist() == [20, 9]
    manifest.check_files()


def test_missing_sizes(here, make_clip, run_tool):
    make_clip("v/a.mp4")
    (here / "t.json").write_text(json.dumps([{"video": "a.mp4", "cap": ["one"]}]))
    words = ("t.json", "--columns", "path=video", "text=cap", "--root", "v")
    status, said = run_tool(CHECK, *words)
    assert status == 1 and "wrong: no column num_frames, height, width" in said
    status, said = run_tool(CHECK, *words, "--output", "new.csv")
    assert status == 0 and read_manifest("new.csv").num_frames.tolist() == [20]


def test_files_are_probed_once(here, make_clip, run_tool, monkeypatch):
    make_clip("a.mp4")
    (here / "t.csv").write_text("path\na.mp4\n")
    run_tool(CHECK, "t.csv")
    monkeypatch.setattr("opensora.datasets.probing.probe", None)
    assert run_tool(CHECK, "t.csv", "--output", "new.csv")[0] == 0
    assert read_manifest("new.csv").num_frames.tolist() == [20]


@pytest.mark.parametrize(
    "words, message",
    [
        (["none.csv"], "no such table or folder"),
        (["t.csv", "--output", "new.txt"], "--output new.txt: a table is written as .csv, .parquet, .jsonl"),
        (["t.csv", "--output", "no/new.csv"], "there is no folder no; make it first"),
        (["t.csv", "--columns", "text"], "--columns text: give OURS=THEIRS"),
        (["t.csv"], "no column path; it has video"),
    ],
)
def test_wrong_calls(here, run_tool, words, message):
    (here / "t.csv").write_text("video\na.mp4\n")
    status, said = run_tool(CHECK, *words)
    assert status == 2 and message in said
