"""Folders of clips as tables: captions beside the files, a folder per class, or a folder per clip."""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa

from opensora.datasets.frame_folder import IMAGE_EXTENSIONS, natural
from opensora.datasets.table_files import Piece
from opensora.datasets.video_io import is_image, is_video

_SHOWN = 5
_ROWS = 100_000


def read_folder(folder: Path, layout: str) -> Iterator[Piece]:
    """List the clips of a folder, in the order of their names.

    Args:
        folder: Searched with its subfolders; names that begin with a dot are passed over.
        layout: One of `LAYOUTS`. "captions": clips and images, each with its caption in a `.txt` file of the
            same name, or none of them with one. "classes": each subfolder is a class, numbered by name; its
            name, cut before capitals, is the caption. "frames": each folder with images is a clip, with its
            caption in a `.txt` file beside the folder.

    Returns:
        Columns `path`, from the folder on, and `text`, `label` and `num_frames` where the layout says them.

    Raises:
        ValueError: Nothing was found, or captions are missing for some.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout={layout!r}: use one of {', '.join(LAYOUTS)}.")
    rows = LAYOUTS[layout](folder)
    if not rows["path"]:
        raise ValueError(
            f"{folder}: layout={layout!r} found no clip in this folder. Layouts are {', '.join(LAYOUTS)}; "
            "docs/data.md shows their folders."
        )
    for start in range(0, len(rows["path"]), _ROWS):
        yield {name: pa.array(column[start : start + _ROWS]) for name, column in rows.items()}


def class_caption(name: str) -> str:
    """Turn the name of a class into words: "ApplyEyeMakeup" and "apply_eye_makeup" have three."""
    return " ".join(re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name.replace("_", " ")).split())


def _captions(folder: Path) -> dict[str, list]:
    paths = [at + name for at, names in _walk(folder) for name in names if _is_clip(name)]
    return {"path": paths, **_side_cars(folder, paths, [os.path.splitext(path)[0] for path in paths])}


def _classes(folder: Path) -> dict[str, list]:
    found = [(at, name) for at, names in _walk(folder) for name in names if _is_clip(name)]
    loose = [name for at, name in found if not at]
    if loose:
        raise ValueError(
            f"{folder}: layout='classes' takes files from one folder per class; {loose[0]} lies in none. "
            "Move it, or use layout='captions'."
        )
    names = [at.split("/")[0] for at, _ in found]
    number = {name: label for label, name in enumerate(sorted(set(names)))}
    return {
        "path": [at + name for at, name in found],
        "label": [number[name] for name in names],
        "text": [class_caption(name) for name in names],
    }


def _frames(folder: Path) -> dict[str, list]:
    clips = {}
    for at, names in _walk(folder):
        images = sum(name.lower().endswith(IMAGE_EXTENSIONS) for name in names)
        if images:
            clips[at or "./"] = images
    captions = _side_cars(folder, list(clips), [path.rstrip("/") for path in clips])
    return {"path": list(clips), "num_frames": list(clips.values()), **captions}


LAYOUTS: dict[str, Callable[[Path], dict[str, list]]] = {
    "captions": _captions,
    "classes": _classes,
    "frames": _frames,
}


def _is_clip(name: str) -> bool:
    return is_video(name) or is_image(name)


def _walk(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield each folder with its files, in natural order; links are followed, never in circles.

    A folder is given from `folder` on, with a slash at its end; `folder` itself is "".
    """
    seen = set()
    for at, folders, names in os.walk(folder, followlinks=True):
        stat = os.stat(at)
        if (stat.st_dev, stat.st_ino) in seen:
            folders.clear()
            continue
        seen.add((stat.st_dev, stat.st_ino))
        folders[:] = sorted((name for name in folders if name[0] != "."), key=natural)
        here = os.path.relpath(at, folder).replace(os.sep, "/")
        files = sorted((name for name in names if name[0] != "."), key=natural)
        yield "" if here == "." else f"{here}/", files


def _side_cars(folder: Path, paths: list[str], stems: list[str]) -> dict[str, list[str]]:
    """Return the captions that lie beside files; nothing if there is none at all."""
    texts, missing = [], []
    for path, stem in zip(paths, stems, strict=True):
        try:
            with open(folder / f"{stem}.txt", encoding="utf-8-sig") as file:
                texts.append(" ".join(file.read().split()))
        except FileNotFoundError:
            missing.append(path)
        except UnicodeDecodeError as error:
            raise ValueError(f"{stem}.txt: not in UTF-8 ({error}); save it as UTF-8.") from error
    if missing and texts:
        shown = "\n".join(f"  {path}" for path in missing[:_SHOWN])
        raise ValueError(
            f"{folder}: {len(missing)} of {len(paths)} clips have no caption in a .txt file of their name:\n"
            f"{shown}\nWrite them, or take all .txt files away to train without captions."
        )
    return {"text": texts} if texts else {}
