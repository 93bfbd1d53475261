"""The files that features were made from, and whether they are as they were."""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from opensora.datasets.buckets import ClipIndex
from opensora.datasets.frame_folder import frame_files, is_frame_folder


def describe_file(path: str | Path) -> dict[str, Any]:
    """Return the hash of a file's bytes, its size and its time of change.

    For a folder of frames: the hash of the names and bytes of its frames, their size and the last change.

    Raises:
        OSError: It cannot be read.
    """
    if is_frame_folder(str(path)):
        whole = hashlib.blake2b(digest_size=16)
        for frame in _frames(str(path)):
            with open(frame, "rb") as file:
                content = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest()
            name = hashlib.blake2b(os.fsencode(os.path.basename(frame)), digest_size=16).digest()
            whole.update(name + content)
        return {"hash": whole.hexdigest(), **stamp(path)}
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
        found = os.fstat(file.fileno())
    return {"hash": digest, "bytes": found.st_size, "mtime_ns": found.st_mtime_ns}


def stamp(path: str | Path) -> dict[str, int]:
    """Return what `describe_file` tells without reading: the size and the time of change.

    Raises:
        OSError: It is not there.
    """
    found = os.stat(path)
    if not is_frame_folder(str(path)):
        return {"bytes": found.st_size, "mtime_ns": found.st_mtime_ns}
    frames = [os.stat(frame) for frame in _frames(str(path))]
    last = max(found.st_mtime_ns, *(frame.st_mtime_ns for frame in frames))
    return {"bytes": sum(frame.st_size for frame in frames), "mtime_ns": last}


def stamp_if_there(path: str | Path) -> dict[str, int] | None:
    """Return the `stamp` of a file, None if there is none."""
    try:
        return stamp(path)
    except OSError:
        return None


def is_unchanged(path: str | Path, known: Mapping[str, Any]) -> bool:
    """Say whether a file still has the bytes it had; it is read only if its size or time differ.

    Args:
        path: The file, or the folder of frames.
        known: What `describe_file` returned.

    Raises:
        OSError: It cannot be read.
    """
    found = stamp(path)
    if found == {name: known[name] for name in found}:
        return True
    return found["bytes"] == known["bytes"] and describe_file(path)["hash"] == known["hash"]


def why_stale(
    entries: Sequence[Mapping[str, Any]],
    clips: Sequence[ClipIndex],
    key_of: Callable[[ClipIndex, str], str],
) -> str | None:
    """Return why the entries of a shard are not those that an extraction would write now; None if they are.

    A file that is gone since its features were made is no reason, nor is one that could not be read and has
    not changed since.

    Args:
        entries: What `read_entries` returned.
        clips: The clips that the shard should hold.
        key_of: Returns the key of a clip whose file has a hash.
    """
    if [entry["row"] for entry in entries] != [clip.row for clip in clips]:
        return "it holds clips of other rows"
    for entry, clip in zip(entries, clips, strict=True):
        path = entry["path"]
        if "error" in entry:
            if "file" not in entry or entry["file"] != stamp_if_there(path):
                return f"{path} could not be read, and has changed since"
        elif entry["key"] != key_of(clip, entry["file"]["hash"]):
            return f"it holds another clip of {path}"
        elif _has_changed(path, entry["file"]):
            return f"{path} has changed"
    return None


def _has_changed(path: str, known: Mapping[str, Any]) -> bool:
    try:
        return not is_unchanged(path, known)
    except OSError:  # gone, or out of reach: its features are still right
        return False


def _frames(folder: str) -> tuple[str, ...]:
    try:
        return frame_files(folder)
    except ValueError as error:
        raise FileNotFoundError(f"{folder}: {error}") from None
