"""Weights: reading every format that they are published in, loading them strictly, writing safetensors.

`docs/weights.md` tells users where the files come from and how configs name them.
"""

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import einops
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from opensora.utils.files import flush_to_disk
from opensora.utils.logging import get_logger
from opensora.utils.weight_files import INDEX, SAFE, Shape, WeightFiles, listed

Renames = Sequence[tuple[str, str]]

_PATCHES = "x_embedder.proj.weight"
_ADAPTED = (_PATCHES, "final_layer.linear.weight", "final_layer.linear.bias")


@dataclass
class _Fit:
    """How a file's names and shapes compare with a module's.

    Args:
        loaded: Our names that are loaded.
        missing: Our names that the file lacks.
        unexpected: Names that only the file has.
        mismatched: Our names with another shape in the file.
    """

    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)

    def split(self, prefixes: Sequence[str]) -> tuple["_Fit", "_Fit"]:
        """Return what `prefixes` excuse, and what they do not."""
        kinds = ("missing", "unexpected", "mismatched")
        parts = {True: _Fit(), False: _Fit()}
        for kind in kinds:
            for name in getattr(self, kind):
                getattr(parts[name.startswith(tuple(prefixes))], kind).append(name)
        return parts[True], parts[False]


def read_state_dict(path: str | Path, device: str | torch.device = "cpu") -> dict[str, Tensor]:
    """Read all tensors of a file, a folder or a hub repository.

    A file is `.safetensors`, a torch file (`.pt`, `.pth`, `.bin`, `.ckpt`), or an index (`*.index.json`) of
    shards of either. A folder holds one such file or index, or a `model` folder, as checkpoints of a run do.
    A name `owner/name` that is not on the disk is fetched from the hub. `{"state_dict": ...}` and
    `{"model": ...}` are unwrapped. Tensors on the CPU may be mapped from the file rather than copied.

    Args:
        path: File, folder or hub name.
        device: Where the tensors go.

    Returns:
        Tensors by the names that the file gives them.

    Raises:
        FileNotFoundError: There is nothing at `path`, a shard is missing, or the hub cannot be reached.
        ValueError: A file is damaged, holds more than tensors, or a folder does not say which file is meant.
    """
    return dict(WeightFiles.find(path).tensors(device))


def read_shapes(path: str | Path) -> dict[str, Shape]:
    """Read names and shapes; of safetensors only the headers are read. Arguments as for `read_state_dict`."""
    return WeightFiles.find(path).shapes()


@dataclass
class _Match:
    """A file beside a module.

    Args:
        files: The files.
        own: State dict of the module.
        names: Our names by the file's.
        adapters: What stretches tensors of the file, by our names.
        fit: How names and shapes compare.
        ignored: What does not fit and need not.
    """

    files: WeightFiles
    own: dict[str, Tensor]
    names: dict[str, str]
    adapters: dict[str, Callable[[Tensor], Tensor]]
    fit: _Fit
    ignored: _Fit


def check_weights(
    module: nn.Module, path: str | Path, ignore_keys: Sequence[str] | str = (), adapt_channels: bool = False
) -> None:
    """Raise what `load_weights` would raise about names and shapes; read no tensor, change nothing.

    The module may be on the meta device. Arguments and errors as for `load_weights`.
    """
    _match(module, path, ignore_keys, adapt_channels)


def load_weights(
    module: nn.Module, path: str | Path, ignore_keys: Sequence[str] | str = (), adapt_channels: bool = False
) -> None:
    """Load weights strictly: names and shapes are compared before any tensor is read.

    Published names are translated by `type(module).renames`; a file in our own names loads too. Tensors
    take the dtype of the module. Those on the meta device become real on torch's default device
    (`with torch.device("cuda"): ...` loads straight to the GPU), real ones are filled in place.

    Args:
        module: The module to fill.
        path: File, folder or hub name, as for `read_state_dict`.
        ignore_keys: Prefixes of our names that may be missing, unexpected or of another shape. They keep
            their values. On the meta device they are initialised: by `module.reset_missing(names)` where it
            exists, else by `reset_parameters` of the modules around them, torch's own first, then ours from
            the outside in, so that the nearest one decides. Buffers that no file holds are rebuilt by their
            module's `init_buffers()`.
        adapt_channels: Stretch patch embedding and final layer to a multiple of the file's latent channels.

    Raises:
        FileNotFoundError: See `read_state_dict`.
        ValueError: The file does not fit the module, or an ignored tensor cannot be initialised.
        NotImplementedError: A buffer stays on the meta device because its module has no `init_buffers`.
    """
    match = _match(module, path, ignore_keys, adapt_channels)
    files, own, fit, ignored, adapters = match.files, match.own, match.fit, match.ignored, match.adapters

    device = _default_device()
    absent = [name for name in ignored.missing + ignored.mismatched if own[name].is_meta]
    if absent:
        _initialise(module, absent, device)
    loaded = set(fit.loaded)
    _fill(module, own, files, {key: name for key, name in match.names.items() if name in loaded}, adapters)
    _rebuild_buffers(module, device)

    logger = get_logger()
    logger.info("%d of %d tensors loaded from %s", len(fit.loaded), len(own), files.name)
    for name in adapters:
        logger.info("%s: stretched to %d latent channels", name, own[_PATCHES].shape[1])
    kept = ignored.missing + ignored.mismatched
    for text, some in (("kept as initialised", kept), ("in the file only", ignored.unexpected)):
        if some:
            logger.info("ignore_keys: %d tensors %s: %s", len(some), text, listed(some))


def save_safetensors(
    state: Mapping[str, Tensor],
    path: str | Path,
    metadata: Mapping[str, str] | None = None,
    max_shard_bytes: int | None = None,
) -> list[Path]:
    """Write tensors to a safetensors file, or to shards and an index.

    Files appear whole or not at all: they are written beside their place, flushed to the disk and renamed,
    the index last. When writing fails midway, the old files are still there.

    Args:
        state: Tensors by name, on any device but meta. Those that share memory are written in full.
        path: The file, `NAME.safetensors`. Shards are `NAME-00001-of-00002.safetensors`, and so on, with
            `NAME.safetensors.index.json`; readers accept `path` for them too.
        metadata: Text to keep in the file.
        max_shard_bytes: Largest size of a file in bytes, as far as single tensors allow; None for one file.

    Returns:
        The files written, the index last.

    Raises:
        ValueError: `path` has another suffix, or a tensor is on the meta device.
    """
    path = Path(path)
    if path.suffix != SAFE:
        raise ValueError(f"{path}: weights are written as safetensors; end the name with {SAFE}.")
    meta = [name for name, tensor in state.items() if tensor.is_meta]
    if meta:
        raise ValueError(
            f"{path}: {listed(meta)} on the meta device hold no numbers; load their weights first."
        )
    metadata = {"format": "pt", **(metadata or {})}
    index = path.with_name(path.name + INDEX)
    shards = _shards(state, max_shard_bytes)
    path.parent.mkdir(parents=True, exist_ok=True)
    if len(shards) == 1:
        old = [index, *path.parent.glob(f"{path.stem}-?????-of-?????{SAFE}")]
        _replace({path: lambda file: _write_tensors(state, file, metadata=metadata)}, before=(), after=old)
        return [path]

    endings = [f"-{number:05d}-of-{len(shards):05d}{SAFE}" for number in range(1, len(shards) + 1)]
    files = {path.with_name(path.stem + ending): shard for ending, shard in zip(endings, shards, strict=True)}
    weight_map = {name: file.name for file, shard in files.items() for name in shard}
    total = sum(tensor.nbytes for tensor in state.values())
    text = json.dumps({"metadata": {**metadata, "total_size": total}, "weight_map": weight_map}, indent=1)
    writes: dict[Path, Callable[[Path], object]] = {
        file: partial(_write_tensors, shard, metadata=metadata) for file, shard in files.items()
    }
    writes[index] = lambda file: file.write_text(text)
    old = set(path.parent.glob(f"{path.stem}-?????-of-?????{SAFE}")) - set(files)
    _replace(writes, before=[index], after=[path, *old])
    return list(writes)


def to_published(state: Mapping[str, Tensor], renames: Renames) -> dict[str, Tensor]:
    """Give tensors their published names, the inverse of what `load_weights` does.

    Args:
        state: Tensors by our names.
        renames: Pairs of (published prefix, our prefix).
    """
    backwards = [(ours, published) for published, ours in renames]
    return {_renamed(name, backwards): tensor for name, tensor in state.items()}


def published_state_dict(module: nn.Module) -> dict[str, Tensor]:
    """Return the module's state dict under published names, by `type(module).renames`."""
    return to_published(module.state_dict(), getattr(type(module), "renames", ()))


# Comparing names and shapes.


def _match(
    module: nn.Module, path: str | Path, ignore_keys: Sequence[str] | str, adapt_channels: bool
) -> _Match:
    files, own = WeightFiles.find(path), module.state_dict()
    shapes = files.shapes()
    names = _our_names(shapes, own, getattr(type(module), "renames", ()), files.name)
    found = {names[key]: shape for key, shape in shapes.items()}
    adapters = _channel_adapters(found, own) if adapt_channels else {}
    found |= {name: adapt(torch.empty(found[name], device="meta")).shape for name, adapt in adapters.items()}

    fit = _compare(found, own)
    ignored, wrong = fit.split((ignore_keys,) if isinstance(ignore_keys, str) else ignore_keys)
    if wrong.missing or wrong.unexpected or wrong.mismatched:
        raise ValueError(_misfit(files.name, type(module).__name__, fit, wrong, found, own))
    return _Match(files, own, names, adapters, fit, ignored)


def _renamed(name: str, renames: Renames) -> str:
    for old, new in sorted(renames, key=lambda pair: -len(pair[0])):
        if name.startswith(old):
            return new + name[len(old) :]
    return name


def _our_names(keys: Iterable[str], own: Mapping[str, Tensor], renames: Renames, path: str) -> dict[str, str]:
    names = {key: key if key in own else _renamed(key, renames) for key in keys}
    taken: dict[str, str] = {}
    for key, name in names.items():
        if taken.setdefault(name, key) != key:
            raise ValueError(
                f"{path}: {taken[name]} and {key} are both our {name}; take one out of the file."
            )
    return names


def _compare(found: Mapping[str, Shape], own: Mapping[str, Tensor]) -> _Fit:
    fit = _Fit(unexpected=[name for name in found if name not in own])
    for name, tensor in own.items():
        fits = found.get(name) == tensor.shape
        (fit.missing if name not in found else fit.loaded if fits else fit.mismatched).append(name)
    return fit


def _misfit(
    path: str, kind: str, fit: _Fit, wrong: _Fit, found: Mapping[str, Shape], own: Mapping[str, Tensor]
) -> str:
    """Say how a file does not fit, and what to do."""
    lines = [
        f"{path} does not fit {kind}: {len(fit.loaded)} of {len(own)} tensors fit, {len(wrong.missing)} are "
        f"missing in the file, {len(wrong.unexpected)} are in the file only, {len(wrong.mismatched)} have "
        "another shape."
    ]
    if wrong.missing:
        lines.append("missing: " + listed(f"{n} {list(own[n].shape)}" for n in wrong.missing))
    if wrong.unexpected:
        lines.append("in the file only: " + listed(f"{n} {list(found[n])}" for n in wrong.unexpected))
    if wrong.mismatched:
        pairs = (f"{n} {list(found[n])} in the file, {list(own[n].shape)} here" for n in wrong.mismatched)
        lines.append("other shape: " + listed(pairs))
    if not fit.loaded:
        lines.append("Nothing fits: this is another model's file; check from_pretrained and type.")
        return "\n".join(lines)
    if _PATCHES in wrong.mismatched and own[_PATCHES].shape[1] % found[_PATCHES][1] == 0:
        lines.append("adapt_channels=True stretches x_embedder and final_layer to more latent channels.")
    lines.append("Check the config's sizes, or name in ignore_keys the prefixes that need not fit.")
    return "\n".join(lines)


def _channel_adapters(
    found: Mapping[str, Shape], own: Mapping[str, Tensor]
) -> dict[str, Callable[[Tensor], Tensor]]:
    """Return what stretches tensors of a file to more latent channels, by name.

    Channel i of the new latents stands for channel i mod C of the old ones. On latents that repeat so, the
    stretched network gives the old one's output, repeated.
    """
    if _PATCHES not in found or _PATCHES not in own or found[_PATCHES][1] == own[_PATCHES].shape[1]:
        return {}
    old, new, patch = found[_PATCHES][1], own[_PATCHES].shape[1], math.prod(found[_PATCHES][2:])
    if new % old:
        raise ValueError(
            f"adapt_channels: {new} latent channels are no multiple of the file's {old}; turn it off."
        )

    def stretch_inputs(weight: Tensor) -> Tensor:
        return einops.repeat(weight, "D C ... -> D (times C) ...", times=new // old) / (new // old)

    def stretch_outputs(rows: Tensor) -> Tensor:
        pattern = "(patch kinds C) ... -> (patch kinds times C) ..."  # kinds: velocity, or also variance
        return einops.repeat(rows, pattern, patch=patch, C=old, times=new // old)

    outputs = [name for name in _ADAPTED[1:] if name in found and found[name][0] % (patch * old) == 0]
    return {_PATCHES: stretch_inputs, **dict.fromkeys(outputs, stretch_outputs)}


# Filling modules.


def _default_device() -> torch.device:
    device = torch.get_default_device()
    return torch.device("cpu") if device.type == "meta" else device


@torch.no_grad()
def _fill(
    module: nn.Module,
    own: Mapping[str, Tensor],
    files: WeightFiles,
    names: Mapping[str, str],
    adapters: Mapping[str, Callable[[Tensor], Tensor]],
) -> None:
    device, made = _default_device(), {}
    for key, tensor in files.tensors():
        if key not in names:
            continue
        name = names[key]
        target, tensor = own[name], adapters.get(name, lambda same: same)(tensor)
        if not target.is_meta:
            target.copy_(tensor)
            continue
        # A copy, not the mapped file: that may change, and the last bit of results depends on alignment.
        made[name] = tensor.to(device, target.dtype, copy=True)
    module.load_state_dict(made, strict=False, assign=True)


@torch.no_grad()
def _initialise(module: nn.Module, names: Sequence[str], device: torch.device) -> None:
    """Initialise some tensors of a module on the meta device, where work on all others costs nothing."""
    own = module.state_dict()
    blanks = {name: torch.full_like(own[name], _blank(own[name].dtype), device=device) for name in names}
    module.load_state_dict(blanks, strict=False, assign=True)
    with device:
        if hasattr(module, "reset_missing"):
            module.reset_missing(list(names))
        else:
            for part in _initialisers(module, names):
                part.reset_parameters()
    own = module.state_dict()
    left = [name for name in names if _is_unset(own[name])]
    if left:
        raise ValueError(
            f"ignore_keys: nothing initialises {listed(left)}. Give {type(module).__name__} a method "
            "reset_missing(names), or the owning module a reset_parameters() that sets them, or build "
            "it off the meta device before load_weights."
        )


def _blank(dtype: torch.dtype) -> float | int | bool:
    """Return a value that shows that a tensor was never set."""
    if dtype.is_floating_point or dtype.is_complex:
        return math.nan
    return False if dtype == torch.bool else torch.iinfo(dtype).max


def _is_unset(tensor: Tensor) -> bool:
    if tensor.is_floating_point() or tensor.is_complex():
        return bool(tensor.isnan().any())
    return tensor.dtype != torch.bool and bool((tensor == _blank(tensor.dtype)).any())


def _initialisers(module: nn.Module, names: Sequence[str]) -> list[nn.Module]:
    """Return the modules around `names` that have `reset_parameters`, in the order to call it."""
    paths = {"": 0}
    for name in names:
        parts = name.split(".")[:-1]
        paths |= {".".join(parts[: i + 1]): i + 1 for i in range(len(parts))}
    found = [(depth, module.get_submodule(path)) for path, depth in paths.items()]
    found = [(depth, part) for depth, part in found if hasattr(part, "reset_parameters")]
    theirs = [part for _, part in found if type(part).__module__.startswith("torch.")]
    ours = [part for _, part in sorted(found, key=lambda pair: pair[0]) if part not in theirs]
    return theirs + ours


def _rebuild_buffers(module: nn.Module, device: torch.device) -> None:
    for part in module.modules():
        if hasattr(part, "init_buffers") and any(b.is_meta for b in part.buffers(recurse=False)):
            with device:
                part.init_buffers()
    tensors = (*module.named_parameters(), *module.named_buffers())
    left = [name for name, tensor in tensors if tensor.is_meta]
    if left:
        raise NotImplementedError(
            f"{type(module).__name__}: {listed(left)} are in no file and still on the meta device; give the "
            "modules that own them a method init_buffers() that computes them."
        )


# Writing files.


def _shards(state: Mapping[str, Tensor], most: int | None) -> list[dict[str, Tensor]]:
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in state.items():
        if most is not None and shards[-1] and size + tensor.nbytes > most:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    return shards


def _write_tensors(state: Mapping[str, Tensor], file: Path, *, metadata: Mapping[str, str]) -> None:
    ready, seen = {}, set()
    for name, tensor in state.items():
        tensor = tensor.detach().cpu().contiguous()
        place = tensor.untyped_storage().data_ptr()
        if place in seen:
            tensor = tensor.clone()  # safetensors refuses tensors that share memory
        seen.add(place)
        ready[name] = tensor
    save_file(ready, file, metadata=dict(metadata))


def _replace(
    writes: Mapping[Path, Callable[[Path], object]], before: Sequence[Path], after: Sequence[Path]
) -> None:
    """Write all files beside their places, then put them there in order.

    Args:
        writes: What writes each file.
        before: Files that contradict the new ones; removed when all is written, before the first moves in.
        after: Files that the new ones replace; removed at the end.
    """
    temporary = {file: file.with_name(f".{file.name}.{os.getpid()}.tmp") for file in writes}
    try:
        for file, write in writes.items():
            temporary[file].touch()
            mode = temporary[file].stat().st_mode  # safetensors would let only its own user read
            write(temporary[file])
            temporary[file].chmod(mode)
            flush_to_disk(temporary[file])
        for file in before:
            file.unlink(missing_ok=True)
        for file in writes:
            os.replace(temporary[file], file)
        for file in after:
            file.unlink(missing_ok=True)
        for folder in {file.parent for file in writes}:
            flush_to_disk(folder)
    finally:
        for file in temporary.values():
            file.unlink(missing_ok=True)
