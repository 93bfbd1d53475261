"""A run whose table is broken stops before a model is built, with one line that says what to change."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
import torch

from opensora.datasets.video_io import write_video
from opensora.engine.latent_diffusion import LatentDiffusion

SIZES = dict(num_frames=9, height=24, width=32, fps=8)
GOOD = {"path": "{clip}", "text": "a clip", **SIZES}

# Name of the table, its rows, options, and what is said. {clip} is a clip, {folder} where it lies.
BROKEN = {
    "no path": (
        "t.csv",
        [{"video": "a.mp4", "text": "x", **SIZES}],
        [],
        "no column path; it has video",
    ),
    "path of another name": ("t.csv", [{"video": "a.mp4", **SIZES}], [], "rename 'video' to 'path', or set"),
    "no sizes": (
        *("t.csv", [{"path": "a.mp4", "text": "x", "num_frames": 9}], []),
        "no column height, width; it has path, text, num_frames. Remedy: set dataset.probe=True",
    ),
    "a misspelled column": (
        *("t.csv", [{"path": "a.mp4", "num_frame": 9, "height": 8, "width": 8}], []),
        "rename 'num_frame' to 'num_frames'",
    ),
    "an empty caption": ("t.csv", [GOOD, {**GOOD, "text": " "}], [], "row 1: column text is empty"),
    "an empty path": ("t.csv", [{**GOOD, "path": ""}], [], "row 0: column path is empty"),
    "an empty size": (
        *("t.csv", [GOOD, {**GOOD, "width": ""}], []),
        "row 1: column width is '', expected an integer from 1",
    ),
    "a wrong type": (
        "t.csv",
        [{**GOOD, "height": "tall"}],
        [],
        "row 0: column height is 'tall', expected",
    ),
    "a wrong type in parquet": (
        "t.parquet",
        [{**GOOD, "height": 24.5}],
        [],
        "column height is 24.5",
    ),
    "a wrong type in JSON": (
        "t.jsonl",
        [{**GOOD, "height": None}],
        [],
        "column height is '', expected",
    ),
    "no frames": ("t.csv", [{**GOOD, "num_frames": 0}], [], "column num_frames is '0', expected an integer"),
    "a wrong rate": ("t.csv", [{**GOOD, "fps": 0}], [], "column fps is '0', expected a number above 0"),
    "a class by name": (
        "t.csv",
        [{**GOOD, "label": "cat"}],
        [],
        "column label is 'cat', expected an",
    ),
    "too many cells": ("t.csv", "path,text\na.mp4,a dog, running\n", [], "row 0: has 3 cells, the header 2"),
    "an open quote": (
        *("t.csv", 'num_frames,height,width,path,text\n9,24,32,a.mp4,"a dog\n9,24,32,b.mp4,a cat\n', []),
        "a double quote is never closed, in the row that begins",
    ),
    "another encoding": (
        "t.csv",
        "path,text\na.mp4,caf\xe9\n".encode("latin-1"),
        [],
        "no CSV with a header",
    ),
    "no header": ("t.csv", "", [], "no CSV with a header in UTF-8"),
    "no rows": ("t.csv", "path,text,num_frames,height,width\n", [], "the table has no rows below its header"),
    "no parquet": ("t.parquet", "path,text", [], "no parquet file"),
    "no JSON": ("t.jsonl", '{"path": "a.mp4"}\npath\n', [], "line 2: no JSON"),
    "another suffix": ("t.tsv", [GOOD], [], "a table is .csv, .csv.gz, .parquet, .jsonl, .json, or a folder"),
    "missing files": (
        *("t.csv", [GOOD, {**GOOD, "path": "gone.mp4"}], []),
        "1 of 2 files looked at do not exist: row 1: gone.mp4 Correct the column path, or set dataset.root",
    ),
    "relative paths from elsewhere": (
        *("t.csv", [{**GOOD, "path": "clip.mp4"}], []),
        "1 of 1 files looked at do not exist: row 0: clip.mp4",
    ),
    "no root": ("t.csv", [GOOD], ["--dataset.root", "nowhere"], "dataset.root='nowhere': no such folder"),
    "swapped columns": (
        *("t.csv", [{**GOOD, "path": "a clip", "text": "{clip}"}], []),
        "The column text holds files: are path and text swapped?",
    ),
    "swapped sizes": (
        *("t.csv", [{**GOOD, "height": 32, "width": 24}], []),
        "the table says height 32, the file 24, width 24, the file 32 Repair the table: python -m tools.",
    ),
    "clips that were cut": (
        "t.csv",
        [{**GOOD, "num_frames": 90}],
        [],
        "table says frames 90, the file 9",
    ),
    "no clip is readable": (
        *("t.csv", [{**GOOD, "path": "{folder}/broken.mp4"}], []),
        "none of 1 files that were opened can be read",
    ),
    "no clip can be probed": (
        *("t.csv", [{"path": "{folder}/broken.mp4"}], ["--dataset.probe", "True"]),
        "none of the 1 files of the table can be read",
    ),
    "clips shorter than asked": (
        *("t.csv", [GOOD], ["--dataset.num-frames", "17"]),
        "1 too short",
    ),
    "no clip in a folder": ("empty/notes.txt", "none", [], "layout='captions' found no clip in this folder"),
    "a caption that is missing": ("clips/a.txt", "a clip", [], "1 of 2 clips have no caption in a .txt file"),
    "an unknown column": (
        *("t.csv", [GOOD], ["--dataset.columns", "{{'text': 'caption'}}"]),
        "dataset.columns says 'text' is called 'caption'; the table has path, text",
    ),
    "an unknown layout": ("clips/b.txt", "x", ["--dataset.layout", "ucf101"], "layout='ucf101': use one of"),
}


@pytest.fixture
def clip(tmp_path) -> Path:
    """Return a clip of 9 frames, 24 x 32."""
    (tmp_path / "broken.mp4").write_bytes(b"no clip")
    for name in ("clip.mp4", "clips/a.mp4", "clips/b.mp4"):
        write_video(torch.zeros(3, 9, 24, 32), tmp_path / name, 8)
    return tmp_path / "clip.mp4"


def write(path: Path, content: str | bytes | list[dict]) -> Path:
    """Write a table, or the file of a folder; return what is the data."""
    path.parent.mkdir(exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, str):
        path.write_text(content)
    elif path.suffix == ".parquet":
        pa.parquet.write_table(pa.Table.from_pylist(content), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(f"{json.dumps(row)}\n" for row in content))
    else:
        lines = [content[0], *(row.values() for row in content)]
        path.write_text("".join(",".join(map(str, line)) + "\n" for line in lines))
    return path.parent if path.suffix == ".txt" else path


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_table_stops_before_a_model_is_built(scripts, clip, name, tmp_path, capsys, monkeypatch):
    file, content, options, said = BROKEN[name]
    places = {"clip": clip, "folder": tmp_path}
    if isinstance(content, list):
        content = [
            {key: cell.format(**places) if isinstance(cell, str) else cell for key, cell in row.items()}
            for row in content
        ]
    table = write(tmp_path / file, content)
    monkeypatch.setattr(LatentDiffusion, "from_config", None)
    words = scripts.words(table, tmp_path / "outputs", *options)
    words = [word.replace("{{", "{").replace("}}", "}") for word in words]
    words += ["--dataset.cache", str(tmp_path / "cache")]
    with pytest.raises(SystemExit) as caught:
        scripts.here(*scripts.script("train", *words))
    error = capsys.readouterr().err
    assert caught.value.code == 2
    assert said in error and error.count("\n") == 1
    assert not (tmp_path / "outputs").exists()
