"""Published component configs (Open-Sora 1.2 and 1.3) in our names: one table per type.

A table says for each published key what it is called here; defaults that the published code had and ours
lacks are written out, so that the component that is built is the published one.
"""

import copy
import difflib
from collections.abc import Mapping
from typing import Any

from opensora.utils.published_models import MODELS
from opensora.utils.published_table import Component, same, translate_key


def translate_component(
    published: Mapping[str, Any], notes: list[str] | None = None, version: str | None = None
) -> dict[str, Any]:
    """Translate one published component config.

    Args:
        published: The config, with a published `type`.
        notes: Takes one line per translation.
        version: "1.2" or "1.3", for denoiser and scheduler; None is "1.3".

    Returns:
        The config in our form. Keys that stand elsewhere here (guidance, dropout) are left out.

    Raises:
        ValueError: The type or a key has no counterpart.
    """
    notes = [] if notes is None else notes
    if version not in (None, "1.2", "1.3"):
        raise ValueError(f"version={version!r}: use '1.2' or '1.3'.")
    kind = published["type"] if "type" in published else None
    if kind not in COMPONENTS:
        near = difflib.get_close_matches(str(kind), COMPONENTS, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"Published types with one: {', '.join(COMPONENTS)}."
        raise ValueError(
            f"type={kind!r}: no counterpart of this published type. {hint} Or write the config in our form."
        )
    table = COMPONENTS[kind]
    out: dict[str, Any] = {"type": table.type or kind}
    if out["type"] != kind:
        notes.append(f"{table.slot}.type={kind!r} -> {out['type']!r}")
    values = {**table.defaults, **{key: value for key, value in published.items() if key != "type"}}
    for key, value in values.items():
        translate_key(table, out, key, value, notes if key in published else None)
    if table.finish is not None:
        before = copy.deepcopy(out)
        table.finish(out, values, version or "1.3")
        changed = [
            f"{key}={_short(value)}"
            for key, value in out.items()
            if key not in before or before[key] != value
        ]
        if changed:
            notes.append(f"{table.slot}: {kind} implies {', '.join(changed)}")
    return out


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"({len(value)} entries)"


def _finish_scheduler(out: dict[str, Any], values: Mapping[str, Any], version: str) -> None:
    by_version = {"1.2": "chunk17", "1.3": "stride4"}[version]
    out["frame_factor"] = by_version if values["scale_temporal"] else None


_RFLOW = Component(
    slot="scheduler",
    type="RectifiedFlow",
    keys={
        **same("num_sampling_steps", "num_timesteps", "uniform_over_threshold"),
        "use_discrete_timesteps": "discrete_time",
        "sample_method": "time_distribution",
        "loc": "time_loc",
        "scale": "time_scale",
        "use_timestep_transform": "shift_time",
        "transform_scale": "shift_scale",
        "x_cond_weight": "reference_weight",
    },
    defaults={"scale_temporal": True},
    elsewhere={
        "scale_temporal": "scheduler.frame_factor",
        "drop_condition": "condition_dropout",
        **dict.fromkeys(("cfg_scale", "use_oscillation_guidance", "use_flaw_fix", "force_num"), "guidance"),
        **dict.fromkeys(("scale_image_weight", "initial_image_scale"), "guidance"),
    },
    finish=_finish_scheduler,
)
_FIXED_CLIPS = Component(
    slot="dataset",
    type="VideoDataset",
    keys={
        **same("data_path", "num_frames", "frame_interval"),
        "image_size": ("image_size", lambda size: None if size is None or None in size else tuple(size)),
        "transform_name": "transform",
    },
    defaults={"num_frames": 16, "frame_interval": 1, "image_size": (256, 256), "transform_name": "center"},
    dropped={
        "tokenize_fn": "text encoders tokenize",
        "bucket_class": "there is one kind of bucket",
        "return_path": "batches name their samples",
        "dummy_text_feature": "there is no stand-in for text: captions are encoded",
    },
)
_BUCKETED_CLIPS = Component(
    slot="dataset",
    type="VideoDataset",
    keys=_FIXED_CLIPS.keys,
    defaults={"num_frames": None, "frame_interval": 1, "image_size": None},
    dropped=_FIXED_CLIPS.dropped,
)
_FEATURES = Component(slot="dataset", type="FeatureDataset", keys=same("data_path"))

COMPONENTS: dict[str, Component] = {
    **MODELS,
    "rflow": _RFLOW,
    "VideoTextDataset": _FIXED_CLIPS,
    "VariableVideoTextDataset": _BUCKETED_CLIPS,
    "BatchFeatureDataset": _FEATURES,
}
