"""Columns that processes share: mapped from files, handed on by the file's name."""

from multiprocessing.reduction import ForkingPickler

import numpy as np
import pyarrow as pa
import pytest

from opensora.datasets.columns import RowsOf, Strings, TextWriter, combine, map_array

TEXTS = ["a", "", "Äpfel\nzwei", "漢字", "x" * 300, "end"]


@pytest.mark.parametrize("cuts", [[6], [1, 5], [2, 2, 2], [0, 6]])
def test_file_and_memory_are_equal_however_they_are_cut(tmp_path, cuts):
    writers = [TextWriter(None), TextWriter(tmp_path / "t.arrow")]
    start = 0
    for cut in cuts:
        part = pa.array([*["other"] * 3, *TEXTS[start : start + cut]])[3:]  # its buffers begin before
        for writer in writers:
            writer.write({"text": part, "path": part})
        start += cut
    columns = [writer.close() for writer in writers]
    assert [list(found["text"]) for found in columns] == [TEXTS, TEXTS]
    whole = TextWriter(None)
    whole.write({"text": pa.array(TEXTS), "path": pa.array(TEXTS)})
    assert writers[0].digests() == writers[1].digests() == whole.digests()
    assert list(RowsOf(columns[1]["text"], np.array([3, 0]))) == ["漢字", "a"]


@pytest.mark.parametrize("texts", [[""], ["", "", ""]])
def test_a_column_of_empty_texts(tmp_path, texts):
    writer = TextWriter(tmp_path / "t.arrow")
    writer.write({"path": pa.array(["a"] * len(texts)), "text": pa.array(texts)})
    columns = writer.close()
    assert list(columns["text"]) == texts
    assert list(ForkingPickler.loads(ForkingPickler.dumps(columns["text"]))) == texts


def test_hash_sees_where_texts_end():
    found = set()
    for texts in (["ab", "c"], ["a", "bc"], ["abc"], ["abc", ""]):
        writer = TextWriter(None)
        writer.write({"text": pa.array(texts)})
        found.add(combine(writer.digests()))
    assert len(found) == 4


def test_files_are_handed_on_by_name(tmp_path):
    writer = TextWriter(tmp_path / "t.arrow")
    writer.write({"path": pa.array([f"{i}.mp4" for i in range(5000)])})
    column = writer.close()["path"].below("clips")
    handed = ForkingPickler.dumps(column)
    assert len(handed) < 300
    assert ForkingPickler.loads(handed)[4999] == "clips/4999.mp4"
    assert list(ForkingPickler.loads(ForkingPickler.dumps(Strings(["a"]).below("b")))) == ["b/a"]


def test_arrays_are_handed_on_by_name(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(5000, dtype=np.int32))
    array = map_array(str(tmp_path / "a.npy"))
    handed = ForkingPickler.dumps(array)
    assert len(handed) < 300
    assert (ForkingPickler.loads(handed) == np.arange(5000)).all()
    for part in (array[10:20], array + 1, array[::2], array[np.array([3, 1])], array.reshape(50, 100)):
        assert (ForkingPickler.loads(ForkingPickler.dumps(part)) == np.asarray(part)).all()
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1
