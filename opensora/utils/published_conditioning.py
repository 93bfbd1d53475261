"""Guidance, dropped conditions, given frames and degraded input of published configs, in our form."""

from collections.abc import Mapping
from typing import Any

from opensora.utils.published_table import as_tuple

# Published options of guidance, and their defaults.
SAMPLING = {
    **{"cfg_scale": 4.0, "use_oscillation_guidance": False, "use_flaw_fix": False},
    **{"scale_image_weight": False},
    **{"initial_image_scale": 1.0, "force_num": 10, "image_cfg_scale": None, "guidance_scale": None},
    **{"use_oscillation_guidance_for_text": None, "use_oscillation_guidance_for_image": None},
}


def translate_guidance(published: Mapping[str, Any], conditioned: bool) -> dict[str, Any]:
    """Translate the published options of guidance.

    Args:
        published: Options of the scheduler and of its `sample`; others are not looked at.
        conditioned: Whether reference frames are a condition: then they have a scale, and the published code
            did not rescale.

    Returns:
        `scales` and `rescale` of our `guidance`.
    """
    values = {**SAMPLING, **published}
    scale = values["cfg_scale"] if values["guidance_scale"] is None else values["guidance_scale"]
    image = scale if values["image_cfg_scale"] is None else values["image_cfg_scale"]

    def oscillation(name: str) -> int | None:
        own = values[f"use_oscillation_guidance_for_{name}"]
        return values["force_num"] if (values["use_oscillation_guidance"] if own is None else own) else None

    scales = {}
    if conditioned:
        ramp = values["initial_image_scale"] if values["scale_image_weight"] else None
        scales["frames"] = {"scale": image, "oscillate_from": oscillation("image"), "ramp_from": ramp}
    scales["text"] = {"scale": scale, "oscillate_from": oscillation("text"), "ramp_from": None}
    scales = {name: {**values, "interval": None} for name, values in scales.items()}
    return {"scales": scales, "rescale": 0.7 if values["use_flaw_fix"] and not conditioned else 0.0}


def set_frames_given(
    out: dict[str, Any], frames: dict[str, Any] | None, published: Mapping[str, Any], notes: list[str]
) -> None:
    """Translate mask_ratios (frames that stay clean) and mask_types (frames given as a condition)."""
    ratios = published["mask_ratios"] if "mask_ratios" in published else None
    if ratios is not None:
        ours = {"interpolate" if name == "intepolate" else name: ratio for name, ratio in ratios.items()}
        out["frame_mask"] = {"type": "FrameMask", "ratios": ours}
        notes.append("mask_ratios -> frame_mask=dict(type='FrameMask', ratios=...)")
    classes = published["mask_types"] if "mask_types" in published else None
    if classes is None:
        return
    if frames is None:
        raise ValueError(f"mask_types={classes!r}: v1.2 has no frames as a condition; remove it.")
    frames["classes"] = {"i2v_head" if name == "i2v" else name: weight for name, weight in classes.items()}
    notes.append("mask_types -> model.conditions.frames.classes")


def translate_dropout(
    published: Mapping[str, Any], frames: Mapping[str, Any] | None, notes: list[str]
) -> dict[tuple[str, ...], float]:
    """Translate class_dropout_prob and drop_condition, which names what is kept."""
    model = published["model"]
    rate = model["class_dropout_prob"] if "class_dropout_prob" in model else 0.1
    scheduler = published["scheduler"] if "scheduler" in published else {}
    table = scheduler["drop_condition"] if "drop_condition" in scheduler else None
    if table is None or frames is None or frames["classes"] is None:
        if table is not None or "drop_condition" in published:
            notes.append(
                "drop_condition -> dropped: nothing read it without mask_types and without the scheduler's"
            )
        dropout = {("text",): rate} if rate else {}
        notes.append(f"model.class_dropout_prob={rate!r} -> condition_dropout={dropout!r}")
        return dropout
    weights = {"keep": 0.0, "text": 0.0, "cond": 0.0, "null": 0.0, **table}
    unknown = sorted(set(weights) - {"keep", "text", "cond", "null"})
    if unknown or sum(weights.values()) <= 0:
        raise ValueError(f"scheduler.drop_condition={table!r}: use weights of keep, text, cond and null.")
    total = sum(weights.values())
    dropped = {("frames",): weights["text"], ("text",): weights["cond"], ("text", "frames"): weights["null"]}
    dropout = {names: round(weight / total, 12) for names, weight in dropped.items() if weight}
    notes.append(
        f"scheduler.drop_condition={table!r} (is kept) -> condition_dropout={dropout!r} (is dropped)"
    )
    ours = sum(share for names, share in dropout.items() if "text" in names)
    if abs(ours - rate) > 1e-9:
        notes.append(
            f"model.class_dropout_prob={rate!r} -> {ours:g}: clips without given frames drop text as all do"
        )
    return dropout


def set_noise(out: dict[str, Any], published: Mapping[str, Any], notes: list[str]) -> None:
    """Translate noise_disable_threshold and the three keys of noise augmentation."""
    threshold = published["noise_disable_threshold"] if "noise_disable_threshold" in published else None
    if threshold is not None:
        out["scheduler"]["clean_above"] = threshold / 1000
        notes.append(f"noise_disable_threshold={threshold!r} -> scheduler.clean_above={threshold / 1000!r}")
    if "noise_augmentation" not in published or not published["noise_augmentation"]:
        return
    rates = published["noise_prob"] if "noise_prob" in published else {}
    strengths = published["noise_strength"] if "noise_strength" in published else {}
    if set(rates) != set(strengths):
        raise ValueError(
            f"noise_prob={rates!r} and noise_strength={strengths!r}: they must name the same kinds."
        )
    out["noise_augmentation"] = {
        name: {"probability": rates[name], "strength": as_tuple(strengths[name])} for name in rates
    }
    notes.append(
        "noise_augmentation, noise_prob, noise_strength -> "
        "noise_augmentation=dict(KIND=dict(probability, strength))"
    )
