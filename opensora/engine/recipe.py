"""Recipe: what a file was made from, written into the file, and making it again from that."""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import av
import torch
from mmengine.config import Config

from opensora import __version__
from opensora.datasets.feature_files import describe_file, stamp
from opensora.datasets.video_io import read_note
from opensora.engine.build import resolve_run
from opensora.engine.guides import make_guide
from opensora.engine.prompts import Request
from opensora.registry import MODELS, build
from opensora.utils.config import plain
from opensora.utils.config_defaults import base_configs
from opensora.utils.files import write_text
from opensora.utils.logging import get_logger
from opensora.utils.overrides import apply_overrides
from opensora.utils.weight_files import WeightFiles

_FORMAT = 1
# Keys that chose this file among others, or say where files go: the request has what matters of them.
_LEFT_OUT = (
    *("prompt", "prompt_path", "start_index", "end_index", "neg_prompt", "csv_reference_column_name"),
    *("aes", "flow", "camera_motion", "clean_prompts", "score_format"),
    *("llm_refine", "random_prompts", "llm"),
    *("reference_path", "mask_strategy", "references"),
    *(
        "save_dir",
        "sample_name",
        "num_sample",
        "prompt_as_path",
        "skip_existing",
        "verbose",
        "preview",
        "offload",
        "weight_hashes",
        "batch_size",
        "trained",
    ),
)
_ENCODER_FILES = (".safetensors", ".json", ".model", ".txt")  # weights, settings, tokenizer
_COMPARED = ("weights", "references", "made_by")  # beside the config
_REPLAY_DIR = "samples/replay"


class Recipes:
    """Write the recipes of a run's files.

    Args:
        cfg: Config of the run.
        device: Kind of the device that it runs on.
    """

    def __init__(self, cfg: Mapping[str, Any], device: str) -> None:
        values = {key: value for key, value in plain(cfg).items() if key not in _LEFT_OUT}
        for name in ("model", "vae"):  # the file of a run folder: the run may go on
            values[name] = resolve_run(values[name], name, values["ema"])
        self.config = _pack(values | {"device": device})
        text = json.dumps(self.config, sort_keys=True)
        self.common = {
            "recipe": _FORMAT,
            "config_hash": _digest(text),
            "weights": hash_weight_files(values, cfg["weight_hashes"]),
            "made_by": _versions(),
        }

    def note(self, request: Request) -> str:
        """Return the recipe of one file, as JSON.

        It holds no time and no name of a folder of output, so the same video has the same bytes.
        """
        own = {part.name: getattr(request, part.name) for part in fields(request) if part.name != "index"}
        own["guide"] = [*request.guide.written, request.guide.cond_type]
        first = {"prompt": request.prompt, "seed": self.config["seed"]}
        files = {"references": [describe_file(file)["hash"] for file in request.guide.files]}
        whole = {**first, **self.common, **files, "request": _pack(own), "config": self.config}
        return json.dumps(whole, ensure_ascii=False)


def read_recipe(path: str | Path) -> dict[str, Any]:
    """Read the recipe of a file; nothing in it is executed.

    Args:
        path: A video or PNG, or a folder of frames.

    Returns:
        "prompt", "seed", "request", "config", "config_hash", "weights", "references", "made_by".

    Raises:
        ValueError: There is none, or it is of another format.
        FileNotFoundError: There is no such file.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file; name one that scripts/inference.py made.")
    first = next(iter(sorted(path.glob("*.png"))), path) if path.is_dir() else path
    note = read_note(first)
    try:
        recipe = json.loads(note or "")
        kind = recipe["recipe"]
        found = {name: recipe[name] for name in ("prompt", "seed", "config_hash", *_COMPARED)}
        found["config"] = dict(_unpack(recipe["config"]))
        own = _unpack(recipe["request"])
        found["request"] = Request(**{**own, "index": 0, "guide": make_guide(*own["guide"])})
    except (json.JSONDecodeError, LookupError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{path}: carries no recipe; files made with metadata=True do, as long as no other program "
            "wrote them anew."
        ) from error
    if kind != _FORMAT:
        raise ValueError(f"{path}: its recipe has format {kind!r}, this version reads {_FORMAT}.")
    return found


def replay(path: str | Path, words: Sequence[str] = ()) -> Path:
    """Make a file again from its recipe, and say whether it has the same bytes.

    Args:
        path: The file.
        words: Options as on the command line, such as ["--save-dir", "again"].

    Returns:
        The new file.

    Raises:
        ValueError: There is no recipe, the weights here are others, or the new file would replace the old.
        FileNotFoundError: The file or its weights are missing.
    """
    path = Path(path)
    recipe = read_recipe(path)
    request = recipe["request"]
    values = deepcopy({**base_configs()["inference"], **recipe["config"], "save_dir": _REPLAY_DIR})
    apply_overrides(values, words)
    target = Path(values["save_dir"]) / path.name
    if target.resolve() == path.resolve():
        raise ValueError(f"{path}: would be replaced by its replay; give another --save-dir.")
    _compare_weights(path, recipe["weights"], hash_weight_files(values, values["weight_hashes"]))
    get_logger().info("%s: %r, seed %d", path, request.prompt, recipe["seed"])
    made = _make(request, values, target)
    if _same(made, path):
        get_logger().info("%s: the same as %s, byte for byte", made, path)
        return made
    why = _differences(recipe, read_recipe(made)) if values["metadata"] else []
    get_logger().warning(
        "%s: not the bytes of %s (%s)", made, path, "; ".join(why) or "another processor, or a changed file"
    )
    return made


def _make(request: Request, values: Mapping[str, Any], target: Path) -> Path:
    """Make a request and what belongs to it in a folder of its own, then give all of it the target's name."""
    from opensora.engine.inference import infer

    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".replay-", dir=target.parent) as folder:
        (made,) = infer(Config({**values, "save_dir": folder, "num_sample": 1}), [request])
        shutil.rmtree(target, ignore_errors=True)  # a folder of frames from an earlier replay
        stem = target.name.removesuffix(made.suffix)
        for file in Path(folder).iterdir():
            file.replace(target.parent / file.name.replace(made.stem, stem, 1))
    return target


def _differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Say what two recipes do not share."""
    found = []
    if then["references"] != now["references"]:
        found.append("a reference is another file")
    for part in ("made_by", "config"):
        keys = {**then[part], **now[part]}
        found += [
            f"{key} {then[part].get(key)!r} then, {now[part].get(key)!r} now"
            for key in keys
            if then[part].get(key) != now[part].get(key)
        ]
    return found


def hash_weight_files(cfg: Mapping[str, Any], memory: str | None) -> dict[str, str]:
    """Return a hash of the weight files of each component that has some.

    Hashes are of content. They are remembered by path, size and time of change, since reading 20 GB takes
    half a minute.

    Args:
        cfg: Config with `model`, `vae`, `text_encoder`, `ema`.
        memory: JSON file for the hashes; None remembers none.
    """
    known = _read_memory(memory)
    before = dict(known)
    found = {}
    for name, files in _weight_files(cfg):
        hashes = sorted(_hash(file, known) for file in files)
        found[name] = hashes[0] if len(hashes) == 1 else _digest("".join(hashes))
    if memory is not None and known != before:
        Path(memory).parent.mkdir(parents=True, exist_ok=True)
        write_text(json.dumps(known, indent=1), memory)
    return found


def _weight_files(cfg: Mapping[str, Any]) -> Iterator[tuple[str, list[Path]]]:
    for name in ("model", "vae"):
        yield from _named_in(name, resolve_run(cfg[name], name, cfg["ema"]))
    encoder = build(MODELS, cfg["text_encoder"])
    if hasattr(encoder, "location"):
        folder = Path(encoder.location()).expanduser()
        if not folder.is_dir():
            from huggingface_hub import snapshot_download

            try:
                folder = Path(snapshot_download(encoder.location(), local_files_only=True))
            except (OSError, ValueError):
                return  # not here yet; loading says what is wrong
        yield "text_encoder", [file for file in folder.iterdir() if file.suffix in _ENCODER_FILES]


def _named_in(name: str, part: Any) -> Iterator[tuple[str, list[Path]]]:
    """Yield the files of a component and of the components in it."""
    if not isinstance(part, Mapping):
        return
    if "from_pretrained" in part and part["from_pretrained"] is not None:
        yield name, list(WeightFiles.find(part["from_pretrained"]).keys)
    for key, value in part.items():
        yield from _named_in(f"{name}.{key}", value)


def _hash(file: Path, known: dict[str, Any]) -> str:
    key, state = str(file.resolve()), stamp(file)
    if key not in known or known[key][:2] != list(state.values()):
        known[key] = [*state.values(), describe_file(file)["hash"]]
    return known[key][2]


def _read_memory(memory: str | None) -> dict[str, Any]:
    try:
        return json.loads(Path(memory).read_text(encoding="utf-8")) if memory else {}
    except (OSError, ValueError):
        return {}


def _compare_weights(path: Path, made: Mapping[str, str], here: Mapping[str, str]) -> None:
    flags = {"model": "--ckpt-path", "vae": "--vae.from_pretrained"}
    for name, value in made.items():
        if name in here and here[name] != value:
            flag = flags.get(name, f"--{name}.from_pretrained")
            raise ValueError(
                f"{path}: was made with other weights of {name} ({value} then, {here[name]} now); name those "
                f"with {flag}."
            )


def _same(made: Path, path: Path) -> bool:
    if path.is_dir() != made.is_dir():
        return False
    if path.is_dir():
        names = [sorted(file.name for file in folder.iterdir()) for folder in (made, path)]
        return names[0] == names[1] and all(_same(made / name, path / name) for name in names[0])
    return made.read_bytes() == path.read_bytes()


def _versions() -> dict[str, Any]:
    """Return what else the bytes of a file depend on, on a CPU."""
    packages = {"opensora": __version__, "torch": torch.__version__, "av": av.__version__}
    return {**packages, "threads": torch.get_num_threads()}


def _pack(value: Any) -> Any:
    """Turn a config into JSON that keeps tuples, and keys that are no strings."""
    if isinstance(value, Mapping):
        if all(isinstance(key, str) for key in value):
            return {key: _pack(item) for key, item in value.items()}
        return {"__pairs__": [[_pack(key), _pack(item)] for key, item in value.items()]}
    if isinstance(value, tuple):
        return {"__tuple__": [_pack(item) for item in value]}
    if isinstance(value, list):
        return [_pack(item) for item in value]
    if value is None or isinstance(value, str | int | float):
        return value
    kind = value if isinstance(value, type) else type(value)
    return {"__own__": f"{kind.__module__}.{kind.__qualname__}"}


def _unpack(value: Any) -> Any:
    if isinstance(value, list):
        return [_unpack(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    if "__own__" in value:
        raise ValueError(
            f"this file was made with {value['__own__']}, which a recipe cannot hold; make it again with the "
            "config that names it."
        )
    if "__pairs__" in value:
        return {_unpack(key): _unpack(item) for key, item in value["__pairs__"]}
    if "__tuple__" in value:
        return tuple(_unpack(item) for item in value["__tuple__"])
    return {key: _unpack(item) for key, item in value.items()}


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
