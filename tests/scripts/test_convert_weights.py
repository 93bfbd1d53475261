import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

FILE = Path(__file__).resolve().parents[2] / "scripts" / "convert_weights.py"


@pytest.fixture(scope="module")
def main():
    spec = importlib.util.spec_from_file_location("convert_weights", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.fixture
def source(tmp_path) -> Path:
    path = tmp_path / "old.pt"
    names = ("rope.freqs", "conditions.text.y_embedding", "x_embedder.proj.weight")
    state = {name: torch.randn(300) for name in names} | {"count": torch.tensor(3)}
    torch.save({"state_dict": state}, path)
    return path


def test_converts_and_says_what_it_wrote(main, source, tmp_path, capsys):
    main([str(source), str(tmp_path / "new.safetensors")])
    state = torch.load(source, weights_only=True)["state_dict"]
    written = load_file(tmp_path / "new.safetensors")
    assert all(torch.equal(written[name], state[name]) for name in state) and written.keys() == state.keys()
    said = capsys.readouterr().out
    assert "4 tensors, 901 numbers" in said and "new.safetensors: 0.0 MiB" in said


def test_dtype_names_and_shards(main, source, tmp_path):
    target = tmp_path / "new.safetensors"
    main([str(source), str(target), "--dtype=bf16", "--published-names=STDiT3", "--max-shard-gib=1e-6"])
    files = sorted(tmp_path.glob("new-*.safetensors"))
    written = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert len(files) > 1 and not target.exists()
    assert "y_embedder.y_embedding" in written and written["rope.freqs"].dtype == torch.bfloat16
    assert written["count"].dtype == torch.int64


def test_does_not_overwrite_without_force(main, source, tmp_path):
    target = tmp_path / "new.safetensors"
    target.write_text("mine")
    with pytest.raises(SystemExit, match="new.safetensors is there already; give --force"):
        main([str(source), str(target)])
    assert target.read_text() == "mine"
    main([str(source), str(target), "--force"])
    assert len(load_file(target)) == 4
    main([str(tmp_path / "new.safetensors"), str(target), "--force", "--dtype=bf16"])  # onto itself
    assert load_file(target)["rope.freqs"].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["none.pt", "new.safetensors"], "none.pt: no such file"),
        (["old.pt", "new.pt"], "end the name with .safetensors"),
        (["old.pt", "new.safetensors", "--published-names=Nothing"], "no such model"),
        (["old.pt", "new.safetensors", "--published-names=T5Encoder"], "no table of names"),
    ],
)
def test_errors_are_one_message(main, source, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert said in str(caught.value) and str(caught.value).startswith("convert_weights: ")
    assert not (tmp_path / "new.safetensors").exists()


def test_help_imports_nothing_heavy():
    done = subprocess.run([sys.executable, str(FILE), "--help"], capture_output=True, text=True, check=True)
    assert "SOURCE" in done.stdout
    head = FILE.read_text().split("def convert")[0]
    assert "import torch" not in head and "from opensora" not in head
