import runpy
from pathlib import Path

import pytest

from opensora.utils.config import execute, load_config, plain
from opensora.utils.published_config import translate_config

ROOT = Path(__file__).parents[2]
OLD = ROOT / "tests/data/published/opensora-v1-3/train/adapt_i2v.py"


@pytest.fixture(scope="module")
def script() -> dict:
    return runpy.run_path(str(ROOT / "scripts/convert_config.py"))


def test_writes_a_whole_file_and_says_what_it_did(script, tmp_path, capsys):
    assert script["main"]([str(OLD), str(tmp_path / "new.py")]) == 0
    assert "drop_condition" in capsys.readouterr().out
    assert plain(load_config([str(tmp_path / "new.py")])) == translate_config(execute(OLD))
    assert "read_base" not in (tmp_path / "new.py").read_text()


def test_in_configs_it_builds_on_the_base_files(script, tmp_path, monkeypatch, capsys):
    bases = tmp_path / "configs" / "_base_"
    bases.mkdir(parents=True)
    for file in (ROOT / "configs/_base_").glob("*.py"):
        (bases / file.name).write_text(file.read_text())
    new = tmp_path / "configs" / "mine" / "new.py"
    new.parent.mkdir()
    monkeypatch.setitem(script["main"].__globals__, "BASES", bases)
    assert script["main"]([str(OLD), str(new)]) == 0
    text = new.read_text()
    assert "from .._base_.stdit3 import *" in text and "qk_norm" not in text
    assert plain(load_config([str(new)])) == translate_config(execute(OLD))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (OLD, "there.py", "--force"),
        (OLD, "gone/new.py", "no such folder"),
        (ROOT / "configs/opensora-v1-3/train/stage1.py", "new.py", "no published type"),
        (ROOT / "configs/nothing.py", "new.py", "no such config file"),
    ],
)
def test_refuses_with_one_line(script, tmp_path, capsys, old, new, said):
    (tmp_path / "there.py").write_text("seed = 1\n")
    assert script["main"]([str(old), str(tmp_path / new)]) == 2
    caught = capsys.readouterr().err
    assert said in caught and len(caught.splitlines()) == 1
    assert (tmp_path / "there.py").read_text() == "seed = 1\n"


def test_force_overwrites(script, tmp_path, capsys):
    (tmp_path / "there.py").write_text("seed = 1\n")
    assert script["main"]([str(OLD), str(tmp_path / "there.py"), "--force"]) == 0
    assert execute(tmp_path / "there.py")["seed"] == 4207
