"""Quarantine: who is counted, what is written, when a run stops, and what later epochs leave out."""

import json
from types import SimpleNamespace

import pytest

from opensora.datasets.quarantine import Quarantine, read_quarantine

MANIFEST = SimpleNamespace(path=[f"{n}.mp4" for n in range(50)])


@pytest.fixture
def quarantine(tmp_path):
    made = Quarantine(MANIFEST)
    made.file = tmp_path / "quarantine.jsonl"
    return made


def test_each_row_is_written_once(quarantine):
    quarantine.take(8, 0, [], epoch=0)
    assert not quarantine.file.exists()
    quarantine.take(8, 2, [(7, "7.mp4: größer\nals"), (3, "3.mp4: bad"), (7, "7.mp4: again")], epoch=0)
    quarantine.take(8, 2, [(3, "3.mp4: bad"), (4, "4.mp4: bad")], epoch=2)
    lines = read_quarantine(quarantine.file)
    assert [(line["row"], line["path"], line["epoch"]) for line in lines] == [
        (7, "7.mp4", 0),
        (3, "3.mp4", 0),
        (4, "4.mp4", 2),
    ]
    assert len(quarantine.file.read_text().splitlines()) == 3
    assert quarantine.excluded().tolist() == [3, 4, 7]
    assert (quarantine.samples, quarantine.replaced) == (24, 4)


def test_half_a_line_breaks_nothing(quarantine):
    quarantine.take(8, 1, [(1, "1.mp4: bad")], epoch=0)
    whole = quarantine.file.read_bytes()
    for cut in range(len(whole)):
        quarantine.file.write_bytes(whole[:cut])  # the process died while it wrote
        other = Quarantine(MANIFEST)
        other.file = quarantine.file
        other.take(8, 1, [(2, "2.mp4: bad")], epoch=0)
        rows = [line["row"] for line in read_quarantine(quarantine.file)]
        assert rows == ([1, 2] if cut == len(whole) - 1 else [2])
        assert quarantine.file.read_bytes().endswith(b"}\n")


def test_the_state_goes_on(quarantine):
    quarantine.take(90, 1, [(7, "7.mp4: bad")], epoch=0)
    other = Quarantine(MANIFEST)
    other.load(json.loads(json.dumps(quarantine.state())))
    assert other.state() == quarantine.state() == {"samples": 90, "replaced": 1, "rows": [7]}
    with pytest.raises(ValueError, match="2 of 100 samples"):
        other.take(10, 1, [(9, "9.mp4: bad")], epoch=0)


def test_a_resumed_run_writes_no_row_again(quarantine):
    state = quarantine.state()  # of a checkpoint, before the rows were met
    quarantine.take(8, 2, [(7, "7.mp4: bad"), (3, "3.mp4: bad")], epoch=1)
    other = Quarantine(MANIFEST)
    other.file = quarantine.file
    other.load(state)
    other.take(8, 2, [(7, "7.mp4: bad")], epoch=1)
    other.take(8, 2, [(3, "3.mp4: bad"), (5, "5.mp4: bad")], epoch=1)
    assert [line["row"] for line in read_quarantine(quarantine.file)] == [7, 3, 5]
    assert other.excluded().tolist() == [3, 5, 7]


def test_too_many_stop_the_run_in_one_line(quarantine):
    quarantine.take(50, 5, [(n, f"{n}.mp4: bad.") for n in range(5)], epoch=0)  # early, a share says nothing
    quarantine.take(450, 0, [], epoch=0)
    with pytest.raises(ValueError) as error:
        quarantine.take(50, 1, [(9, "9.mp4: bad.")], epoch=0)
    assert str(error.value) == (
        "6 of 550 samples could not be read, more than 1%. Mend or remove these files: "
        "3.mp4: bad. 4.mp4: bad. 9.mp4: bad. "
        f"All are in {quarantine.file}."
    )
    assert [line["row"] for line in read_quarantine(quarantine.file)] == [0, 1, 2, 3, 4, 9]


def test_what_was_met_early_counts_when_the_share_says_something(quarantine):
    quarantine.take(60, 2, [(1, "1.mp4: bad."), (2, "2.mp4: bad.")], epoch=0)
    with pytest.raises(ValueError, match="2 of 100 samples.*these files: 1.mp4: bad. 2.mp4: bad."):
        quarantine.take(40, 0, [], epoch=0)


def test_a_lost_batch_stops_the_run(quarantine):
    with pytest.raises(ValueError, match="gone.mp4: no such file"):
        quarantine.take(0, 0, [], epoch=0, lost="gone.mp4: no such file.")
