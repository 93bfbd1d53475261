"""Wishes: what a visitor set, as the words of the command line that makes the same file."""

import copy
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.config import Config

from opensora.utils.config import plain
from opensora.utils.overrides import apply_overrides

PROGRAM = "scripts/inference.py"


class Maker:
    """Turn wishes into words, and words into configs, as `scripts/inference.py` reads them.

    Args:
        start: Config file and options that the page was started with.
        base: The config that they give.
        folders: Folders that references must lie in.
    """

    def __init__(self, start: Sequence[str], base: Mapping[str, Any], folders: Sequence[str]) -> None:
        self.start, self.base, self.folders = list(start), plain(base), list(folders)

    def words(self, wish: Mapping[str, Any], guide: Mapping[str, str], place: Mapping[str, str]) -> list[str]:
        """Return the options behind the config.

        Args:
            wish: Checked values of the controls, by name.
            guide: Options that say which frames are given.
            place: Options that say where the file goes.
        """
        base = self.base
        options: dict[str, Any] = {"prompt": wish["prompt"]}
        if wish["negative"]:
            options["neg-prompt"] = wish["negative"]
        if " x " in wish["resolution"]:
            height, _, width = wish["resolution"].partition(" x ")
            if tuple(base["image_size"] or ()) != (int(height), int(width)):
                options["image-size"] = f"({height}, {width})"
        else:
            if base["image_size"] is not None:
                options["image-size"] = "none"
            options |= {"resolution": wish["resolution"], "aspect-ratio": wish["aspect"]}
        options |= {"num-frames": wish["frames"], "fps": wish["fps"], "seed": wish["seed"]}
        options["num-sampling-steps"] = wish["steps"]
        if "text" in base["guidance"]["scales"]:
            options["cfg-scale"] = wish["guidance"]
        options["aes"] = wish["aesthetic"] if wish["aesthetic_on"] else None
        options["flow"] = wish["motion"] if wish["motion_on"] else None
        options["camera-motion"] = None if wish["camera"] == "none" else wish["camera"]
        options["loop"] = wish["loops"]
        options["num-sample"] = wish["samples"]
        if base["video_format"] not in ("mp4", "webm"):  # what browsers play
            options["video-format"] = "mp4"
        options |= {**guide, **place}
        return [f"--{key}={value}" for key, value in options.items() if not self._is_so(key, value)]

    def command(self, words: Sequence[str]) -> str:
        """Return the command line, to be run where the page was started."""
        return shlex.join(["python", PROGRAM, *self.start, *words])

    def config(self, words: Sequence[str], guarded: bool = True) -> Config:
        """Return the config that the command line gives.

        Args:
            words: From `words`.
            guarded: Whether references must lie in the folders of the page. No file depends on this.
        """
        values = copy.deepcopy(self.base)
        apply_overrides(values, words)
        if guarded:
            values["references"].update(folders=self.folders, urls=False)
        return Config(values)

    def _is_so(self, key: str, value: Any) -> bool:
        """Return whether the config says so already."""
        name = key.replace("-", "_")
        if name == "num_sampling_steps":
            return self.base["scheduler"]["num_sampling_steps"] == value
        if name == "cfg_scale":
            return self.base["guidance"]["scales"]["text"]["scale"] == value
        return name in self.base and self.base[name] == value
