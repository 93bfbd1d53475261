import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from opensora.utils.weights import load_weights, read_shapes, read_state_dict

NAMES = ("weight", "bias", "running_mean", "running_var")
STATE = {name: torch.arange(4.0) + i for i, name in enumerate(NAMES)} | {
    "num_batches_tracked": torch.tensor(7)
}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# Every format.


def _single(folder: Path, state: dict) -> Path:
    save_file(state, folder / "any.safetensors")
    return folder / "any.safetensors"


def _folder(folder: Path, state: dict) -> Path:
    _single(folder, state)
    return folder


def _usual(name: str, suffix: str):
    def write(folder: Path, state: dict) -> Path:
        torch.save({}, folder / "other.bin")
        (torch.save if suffix != ".safetensors" else save_file)(state, folder / f"{name}{suffix}")
        return folder

    return write


def _shards(stem: str, suffix: str):
    def write(folder: Path, state: dict) -> Path:
        names = list(state)
        parts = [names[::2], names[1::2]]
        files = [f"{stem}-0000{i + 1}-of-00002{suffix}" for i in range(2)]
        for file, part in zip(files, parts, strict=True):
            (torch.save if suffix != ".safetensors" else save_file)(
                {k: state[k] for k in part}, folder / file
            )
        weight_map = {k: f for f, part in zip(files, parts, strict=True) for k in part}
        (folder / f"{stem}{suffix}.index.json").write_text(
            json.dumps({"metadata": {}, "weight_map": weight_map})
        )
        return folder

    return write


def _by_index(folder: Path, state: dict) -> Path:
    return _shards("x", ".safetensors")(folder, state) / "x.safetensors.index.json"


def _by_name_of_shards(folder: Path, state: dict) -> Path:
    return _shards("x", ".safetensors")(folder, state) / "x.safetensors"


def _run_checkpoint(folder: Path, state: dict) -> Path:
    """What a ColossalAI run leaves: `model/` is meant, not the average beside it."""
    (folder / "model").mkdir()
    _shards("pytorch_model", ".bin")(folder / "model", state)
    torch.save({k: v + 1 for k, v in state.items()}, folder / "ema.pt")
    return folder


def _torch_file(**options):
    def write(folder: Path, state: dict) -> Path:
        torch.save(state, folder / "w.pth", **options)
        return folder / "w.pth"

    return write


def _wrapped(folder: Path, state: dict) -> Path:
    torch.save({"epoch": 3, "model": {"state_dict": state}}, folder / "w.pt")
    return folder / "w.pt"


FORMATS = {
    "file": _single,
    "folder": _folder,
    "transformers": _usual("model", ".safetensors"),
    "diffusers": _usual("diffusion_pytorch_model", ".safetensors"),
    "transformers bin": _usual("pytorch_model", ".bin"),
    "shards": _shards("diffusion_pytorch_model", ".safetensors"),
    "shards bin": _shards("pytorch_model", ".bin"),
    "index": _by_index,
    "name of shards": _by_name_of_shards,
    "run": _run_checkpoint,
    "torch": _torch_file(),
    "torch before 1.6": _torch_file(_use_new_zipfile_serialization=False),
    "wrapped": _wrapped,
}


@pytest.mark.parametrize("write", FORMATS.values(), ids=FORMATS)
def test_every_format_is_read(tmp_path, write):
    state = STATE
    path = write(tmp_path, state)
    assert same(read_state_dict(path), state)
    assert read_shapes(str(path)) == {k: tuple(v.shape) for k, v in state.items()}
    net = nn.BatchNorm1d(4)
    load_weights(net, path)
    assert same(net.state_dict(), state)


def test_shapes_need_only_the_header(tmp_path):
    shape, size = [2**20, 2**11], 2**33
    header = json.dumps({"big": {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}}).encode()
    with (tmp_path / "w.safetensors").open("wb") as stream:  # 8 GiB that take no room
        stream.write(len(header).to_bytes(8, "little") + header)
        stream.truncate(8 + len(header) + size)
    assert read_shapes(tmp_path) == {"big": tuple(shape)}


def test_average_of_a_run_is_named(tmp_path):
    state = STATE
    assert same(
        read_state_dict(_run_checkpoint(tmp_path, state) / "ema.pt"), {k: v + 1 for k, v in state.items()}
    )


# What is refused, and what the message says.


class Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def test_code_in_a_pickle_does_not_run(tmp_path):
    torch.save({"a": torch.zeros(1), "b": Evil(tmp_path / "ran")}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"w\.pt: refused, because it holds posix\.mkdir .*safetensors"):
        read_state_dict(tmp_path / "w.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".legacy.pt", ".garbage.pt", ".empty.pt"])
def test_damaged_files(tmp_path, suffix):
    path = tmp_path / f"w{suffix}"
    if suffix == ".safetensors":
        save_file({"a": torch.zeros(999)}, path)
    else:
        torch.save({"a": torch.zeros(999)}, path, _use_new_zipfile_serialization=suffix != ".legacy.pt")
    data = {".garbage.pt": b"not weights", ".empty.pt": b""}.get(suffix, path.read_bytes()[:1500])
    path.write_bytes(data)
    for read in (read_state_dict, read_shapes):
        with pytest.raises(ValueError, match=f"w{suffix}: damaged or cut short.*download it again"):
            read(path)


def _lost_shard(folder: Path) -> Path:
    _shards("m", ".safetensors")(folder, STATE)
    (folder / "m-00002-of-00002.safetensors").unlink()
    return folder


def _lost_key(folder: Path) -> Path:
    _shards("m", ".safetensors")(folder, STATE)
    save_file({"a": torch.zeros(1)}, folder / "m-00002-of-00002.safetensors")
    return folder


def _bad_index(folder: Path) -> Path:
    (folder / "m.safetensors.index.json").write_text("[]")
    return folder


def _two_files(folder: Path) -> Path:
    _single(folder, STATE)
    save_file({}, folder / "b.safetensors")
    return folder


def _numbers(folder: Path) -> Path:
    torch.save({"a": torch.zeros(1), "step": 3}, folder / "w.pt")
    return folder / "w.pt"


def _list(folder: Path) -> Path:
    torch.save([torch.zeros(1)], folder / "w.pt")
    return folder / "w.pt"


def _text(folder: Path) -> Path:
    (folder / "w.txt").write_text("x")
    return folder / "w.txt"


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda f: f / "none.pt", FileNotFoundError, "none.pt: no such file or folder. docs/weights.md"),
        (lambda f: f, FileNotFoundError, "no weights in this folder; expected model.safetensors"),
        (_lost_shard, FileNotFoundError, "1 of 2 shards are missing: m-00002-of-00002.safetensors. Copy"),
        (_lost_key, ValueError, "which the index says it holds; copy it again"),
        (_bad_index, ValueError, "not a readable index"),
        (_two_files, ValueError, "several weight files, any.safetensors, b.safetensors; name one"),
        (_numbers, ValueError, "not a file of weights: step are no tensors. Name another"),
        (_list, ValueError, "expected tensors by name, got list"),
        (_text, ValueError, "w.txt: not a weight file; name one of .safetensors"),
    ],
)
def test_messages_name_path_and_remedy(tmp_path, make, error, said):
    path = make(tmp_path)
    with pytest.raises(error) as caught:
        read_state_dict(path)
    assert said in str(caught.value) and str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("name", ["owner/name", "owner/name/part.safetensors"])
def test_hub_names_without_a_hub(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=f"{name}: neither .* nor .* the hub .*docs/weights.md"):
        read_state_dict(name)


def test_hub_names_prefer_safetensors(tmp_path, monkeypatch):
    asked = []

    def download(repository: str, allow_patterns: list[str]) -> str:
        asked.append((repository, allow_patterns))
        folder = tmp_path / str(len(asked))
        folder.mkdir()
        if len(asked) == 2:  # this repository has no safetensors
            torch.save({"a": torch.ones(1)}, folder / "pytorch_model.bin")
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert list(read_state_dict("owner/name")) == ["a"]
    assert [repository for repository, _ in asked] == ["owner/name"] * 2
    assert "*.safetensors" in asked[0][1] and "*.bin" in asked[1][1] and "*.bin" not in asked[0][1]
