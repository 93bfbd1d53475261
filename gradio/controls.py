"""Controls: what a visitor can set, with ranges, and defaults that come from the config."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from opensora.engine.lengths import next_legal_length

ASPECTS = ("9:16", "16:9", "3:4", "4:3", "1:1")
AESTHETIC = ("terrible", "very poor", "poor", "fair", "good", "very good", "excellent")
MOTION = ("very low", "low", "fair", "high", "very high", "extremely high")
CAMERA = ("none", "pan right", "pan left", "tilt up", "tilt down", "zoom in", "zoom out", "static")
_SECONDS = 4.0  # the offered length that is nearest to this is the first choice


@dataclass(frozen=True)
class Control:
    """One control.

    Args:
        label: What stands above it.
        default: Its first value.
        choices: Values to choose from; empty for a slider or a text.
        span: Lowest value, highest value and step of a slider.
        note: A short remark below the label.
        most: Letters of a text.
    """

    label: str
    default: Any
    choices: tuple[Any, ...] = ()
    span: tuple[float, float, float] | None = None
    note: str = ""
    most: int = 0

    def check(self, value: Any) -> Any:
        """Return a value that a browser sent, if it is one that the control can have.

        Raises:
            ValueError: It is not.
        """
        if self.choices and value not in self.choices:
            raise ValueError(f"{self.label}: {value!r} is none of {', '.join(map(str, self.choices))}.")
        if self.span:
            low, high, step = self.span
            if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
                raise ValueError(f"{self.label}: {value!r} is no number from {low:g} to {high:g}.")
            return round(value / step) if step == 1 else round(float(value), 3)
        if self.most:
            value = "" if value is None else value
            if not isinstance(value, str) or len(value) > self.most:
                raise ValueError(f"{self.label}: a text of up to {self.most} letters.")
            return value.strip()
        if isinstance(self.default, bool) and not isinstance(value, bool):
            raise ValueError(f"{self.label}: {value!r} is neither on nor off.")
        return value


def make_controls(cfg: Mapping[str, Any], vae: Any) -> dict[str, Control]:
    """Return the controls of a model, by name.

    Args:
        cfg: A config for inference.
        vae: Says which lengths it gives back.
    """
    fixed = cfg["image_size"]
    own = () if fixed is None else (f"{fixed[0]} x {fixed[1]}",)
    names = tuple(cfg["trained"]["resolutions"] or (() if own else (cfg["resolution"],)))
    lengths = offered_lengths(cfg, vae)
    default = min(lengths, key=lambda n: abs(n / cfg["fps"] - _SECONDS))
    numbers = cfg["score_format"] == "numbers"
    scored = bool(cfg["trained"]["scores"])
    aspect = cfg["aspect_ratio"]
    scales = cfg["guidance"]["scales"]
    made = {
        "prompt": Control("Prompt", "", most=2000),
        "negative": Control("Negative prompt", "", most=1000, note="what to move away from"),
        "resolution": Control("Resolution", own[0] if own else cfg["resolution"], own + names),
        "aspect": Control("Aspect ratio (H:W)", aspect, ASPECTS if aspect in ASPECTS else (aspect, *ASPECTS)),
        "frames": Control("Video length (frames)", default, lengths, note="1 is an image"),
        "seed": Control("Seed", min(max(cfg["seed"], 1), 2048), span=(1, 2048, 1)),
        "steps": Control("Sampling steps", cfg["scheduler"]["num_sampling_steps"], span=(1, 200, 1)),
        "guidance": Control(
            "CFG scale",
            scales["text"]["scale"] if "text" in scales else 1.0,
            span=(0, 10, 0.1),
            note="how closely the prompt is followed",
        ),
        "motion_on": Control("Motion strength", scored and not numbers),
        "motion": Control("Motion strength", "fair", MOTION),
        "aesthetic_on": Control("Aesthetic", scored),
        "aesthetic": Control("Aesthetic", "excellent", AESTHETIC),
        "camera": Control("Camera motion", "none", CAMERA),
        "fps": Control("FPS", round(cfg["fps"]), span=(1, 60, 1)),
        "loops": Control(
            "Number of loops", cfg["loop"], span=(1, 20, 1), note="clips that continue each other"
        ),
        "samples": Control("Samples per prompt", 1, span=(1, 4, 1)),
    }
    if numbers:  # models of 1.2 learned scores as numbers
        made["motion"] = Control("Motion score", 5, span=(0, 100, 1))
        made["aesthetic"] = Control("Aesthetic score", 6.5, span=(4, 7, 0.1))
    return made


def offered_lengths(cfg: Mapping[str, Any], vae: Any) -> tuple[int, ...]:
    """Return lengths to choose from: those that the weights have learned, else some around the config's."""
    learned: Sequence[int] | None = cfg["trained"]["num_frames"]
    if learned is not None:
        return tuple(learned)
    own = cfg["num_frames"]
    own = vae.legal_length(own if isinstance(own, int) else 51)
    return tuple(sorted({1, vae.legal_length(max(1, own // 2)), own, next_legal_length(vae, 2 * own - 1)}))
