"""Weight files of every format: finding them, and reading their shapes and tensors."""

import json
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError  # the error alone: nothing here unpickles anything but tensors

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

Shape = tuple[int, ...]

SAFE = ".safetensors"
INDEX = ".index.json"
_PICKLED = (".pt", ".pth", ".bin", ".ckpt")
_USUAL = ("model", "diffusion_pytorch_model", "pytorch_model")  # file names that come before any other
_WRAPPERS = ("state_dict", "model")
_HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*(/\w[\w./-]*)?")
_HELP = "docs/weights.md says which files to bring to a machine without network access."


@dataclass
class WeightFiles:
    """Files that hold one state dict together.

    Args:
        name: What the user named: a file, a folder or a hub repository.
        keys: For each file the keys to take from it, or None for all.
    """

    name: str
    keys: dict[Path, list[str] | None]

    @classmethod
    def find(cls, path: str | Path) -> "WeightFiles":
        """Find the files of `path`, in the hub if need be. `weights.read_state_dict` says what is accepted.

        Raises:
            FileNotFoundError: There is nothing at `path`, a shard is missing, or the hub cannot be reached.
            ValueError: The folder does not say which file is meant, or an index is damaged.
        """
        name, path = str(path), Path(path).expanduser()
        index = Path(f"{path}{INDEX}")
        if not path.exists() and not index.exists():
            if not _HUB_NAME.fullmatch(name):
                raise FileNotFoundError(f"{name}: no such file or folder. {_HELP}")
            path = _from_hub(name)
        if path.is_dir():
            path = _in_folder(path)
        elif not path.exists():
            path = index
        if path.name.endswith(INDEX):
            return cls(name, _shard_files(path))
        if path.suffix not in (SAFE, *_PICKLED):
            raise ValueError(
                f"{path}: not a weight file; name one of {', '.join((SAFE, *_PICKLED))} or *{INDEX}."
            )
        return cls(name, {path: None})

    def tensors(self, device: str | torch.device = "cpu") -> Iterator[tuple[str, Tensor]]:
        """Yield names and tensors, file by file. Tensors on the CPU may be mapped from the file.

        Raises:
            ValueError: A file is damaged, or holds more than tensors.
        """
        for file, keys in self.keys.items():
            if file.suffix == SAFE:
                with _open_safetensors(file, device) as handle:
                    for key in _present(file, keys, handle.keys()):
                        yield key, handle.get_tensor(key)
            else:
                state = _read_torch_file(file, device)
                for key in _present(file, keys, state):
                    yield key, state[key]

    def shapes(self) -> dict[str, Shape]:
        """Return names and shapes; of safetensors only the headers are read. Raises as `tensors` does."""
        shapes: dict[str, Shape] = {}
        for file, keys in self.keys.items():
            if file.suffix == SAFE:
                with _open_safetensors(file, "cpu") as handle:
                    for key in _present(file, keys, handle.keys()):
                        shapes[key] = tuple(handle.get_slice(key).get_shape())
            else:
                state = _read_torch_file(file, "cpu")
                shapes |= {key: tuple(state[key].shape) for key in _present(file, keys, state)}
        return shapes


def listed(names: Iterable[str], most: int = 4) -> str:
    """Write the first names of a list, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _in_folder(folder: Path) -> Path:
    """Return the file or index of a folder: usual names, then `model/`, then a file that is alone."""
    for suffix in (SAFE, ".bin"):
        for usual in _USUAL:
            for file in (folder / f"{usual}{suffix}{INDEX}", folder / f"{usual}{suffix}"):
                if file.is_file():
                    return file
    if (folder / "model").is_dir():
        return _in_folder(folder / "model")
    for pattern in (f"*{SAFE}{INDEX}", f"*{SAFE}", f"*{INDEX}", *(f"*{suffix}" for suffix in _PICKLED)):
        files = sorted(folder.glob(pattern))
        if len(files) == 1:
            return files[0]
        if files:
            raise ValueError(
                f"{folder}: several weight files, {listed(f.name for f in files)}; name one of them."
            )
    raise FileNotFoundError(
        f"{folder}: no weights in this folder; expected model.safetensors, another {SAFE} or torch file, "
        f"or *{INDEX} with its shards. {_HELP}"
    )


def _shard_files(index: Path) -> dict[Path, list[str] | None]:
    try:
        weight_map = json.loads(index.read_text())["weight_map"]
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{index}: not a readable index ({error!r}); fetch or write it again.") from error
    files: dict[Path, list[str] | None] = {}
    for key, shard in weight_map.items():
        files.setdefault(index.parent / shard, []).append(key)
    absent = [file.name for file in files if not file.is_file()]
    if absent:
        raise FileNotFoundError(
            f"{index}: {len(absent)} of {len(files)} shards are missing: {listed(absent)}. Copy them there."
        )
    return files


def _from_hub(name: str) -> Path:
    owner, repository, *inside = name.split("/", 2)
    failed = f"{name}: neither a file or folder in {Path.cwd()} nor to be had from the hub"
    try:
        from huggingface_hub import snapshot_download
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{failed}: `pip install huggingface_hub` for hub names. {_HELP}"
        ) from error
    for kinds in ([f"*{SAFE}", f"*{SAFE}{INDEX}"], [f"*{kind}" for kind in (*_PICKLED, INDEX)]):
        try:
            folder = Path(snapshot_download(f"{owner}/{repository}", allow_patterns=inside or kinds))
        except (OSError, ValueError) as error:  # no network, no such repository, or HF_HUB_OFFLINE
            reason = str(error).strip().partition("\n")[0]
            raise FileNotFoundError(f"{failed} ({type(error).__name__}: {reason}). {_HELP}") from error
        if (folder / inside[0]).exists() if inside else any(f for kind in kinds for f in folder.rglob(kind)):
            return folder.joinpath(*inside)
    raise FileNotFoundError(f"{failed}: the repository holds no such weights. {_HELP}")


def _present(file: Path, wanted: list[str] | None, keys: Iterable[str]) -> list[str]:
    keys = list(keys)
    absent = set(wanted or ()) - set(keys)
    if absent:
        raise ValueError(
            f"{file}: lacks {listed(sorted(absent))}, which the index says it holds; copy it again."
        )
    return keys if wanted is None else wanted


def _open_safetensors(file: Path, device: str | torch.device) -> safe_open:
    try:
        return safe_open(file, framework="pt", device=str(device))
    except SafetensorError as error:
        raise ValueError(f"{file}: damaged or cut short ({error}); copy or download it again.") from error


def _read_torch_file(file: Path, device: str | torch.device) -> dict[str, Tensor]:
    with file.open("rb") as stream:
        start = stream.read(2)
    mapped = zipfile.is_zipfile(file)
    damaged = f"{file}: damaged or cut short, or no torch file"
    if start != b"PK" and start[:1] != b"\x80":
        raise ValueError(f"{damaged} (it starts with {start!r}); copy or download it again.")
    try:
        state = torch.load(file, map_location=device, mmap=mapped, weights_only=True)
    except UnpicklingError as error:
        code = re.search(r"(?:GLOBAL|Unsupported global:?(?: GLOBAL)?) ([\w.]+)", str(error))
        raise ValueError(
            f"{file}: refused, because it holds {code[1] if code else 'objects'} beside tensors, and reading "
            "those could run any program. Where you trust it, open it and save its tensors as safetensors."
        ) from error
    except (RuntimeError, EOFError, LookupError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{damaged} ({reason}); copy or download it again.") from error
    while isinstance(state, Mapping):
        inner = [state[name] for name in _WRAPPERS if isinstance(state.get(name), Mapping)]
        if not inner:
            break
        state = inner[0]
    if not isinstance(state, Mapping) or not state:
        raise ValueError(f"{file}: expected tensors by name, got {type(state).__name__}; name another file.")
    other = [str(key) for key, value in state.items() if not isinstance(value, Tensor)]
    if other:
        raise ValueError(f"{file}: not a file of weights: {listed(other)} are no tensors. Name another file.")
    return dict(state)
