"""Golden cases of inference: prompts, mask strategies, references, loops, and masks of training."""

import tempfile
from collections.abc import Mapping
from dataclasses import astuple
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from opensora.conditions.frames import entries_of
from opensora.engine.guides import parse_strategy
from opensora.engine.lengths import chunk_latents, longest_clip
from opensora.engine.long_video import check_loops, join, sizes_of
from opensora.engine.output import file_path
from opensora.engine.prompt_files import merge_sections, read_rows, split_json, split_sections, text_of_loop
from opensora.engine.prompts import Request, make_requests
from opensora.layers.known_frames import align_start, chain, lay, of_class
from opensora.registry import LOADING_KEYS, MODELS, build
from opensora.schedulers.frame_masks import FrameMask
from opensora.utils.caption_cleaning import without_opening
from opensora.utils.config_defaults import base_configs
from opensora.utils.meta_device import meta_device
from opensora.utils.random import Draws
from opensora.utils.score_words import Scores, append_scores

Case = Mapping[str, Any]
CFG = base_configs()["inference"]
VERSION = {"inference_helpers_v12": "numbers", "inference_helpers_v13": "words"}


def _split(case: Case, *_: Any) -> dict[str, Any]:
    prompt = case["args"]["prompt_text"]
    sections = split_sections(prompt)
    loops = (
        [loop for loop, _ in sections] if prompt.startswith("|0|") else None
    )  # the reference marks plain ones
    return {"out": [[text for _, text in sections], loops]}


def _merge(case: Case, *_: Any) -> dict[str, Any]:
    texts, loops = case["args"]["text_list"], case["args"]["loop_idx_list"]
    plain = loops is None
    return {"out": texts[0] if plain else merge_sections(list(zip(loops, texts, strict=True)))}


def _loop_texts(case: Case, *_: Any) -> dict[str, Any]:
    prompts, loop = case["args"]["prompts"], case["args"]["num_loop"]
    return {"out": [text_of_loop(split_sections(prompt), loop) for prompt in prompts]}


def _json(case: Case, *_: Any) -> dict[str, Any]:
    args = case["args"]
    found = [split_json(prompt) for prompt in args["prompts"]]
    references = [
        old if p.reference is None else p.reference for p, old in zip(found, args["reference"], strict=True)
    ]
    strategies = [
        old if p.strategy is None else p.strategy for p, old in zip(found, args["mask_strategy"], strict=True)
    ]
    return {"out": [[p.text for p in found], references, strategies]}


def _scores(case: Case, *_: Any) -> dict[str, Any]:
    args = dict(case["args"])
    prompts = args.pop("prompts")
    scores = Scores(args.get("aes"), args.get("flow"), args.get("camera_motion"))
    return {"out": [append_scores(prompt, scores, VERSION[case["file"]]) for prompt in prompts]}


def _word(name: str, start: str) -> Any:
    def run(case: Case, *_: Any) -> dict[str, Any]:
        (score,) = case["args"].values()
        text = append_scores("", Scores(**{name: score}), "words")
        return {"out": text.removeprefix(start).removesuffix(".")}

    return run


def _vae12() -> Any:
    config = base_configs()["stacked_vae"]["vae"]
    with meta_device():
        return build(MODELS, {key: value for key, value in config.items() if key not in LOADING_KEYS})


def _length(case: Case, *_: Any) -> dict[str, Any]:
    vae, latents = _vae12(), case["args"]["num"]
    if latents % chunk_latents(vae):
        raise ValueError(f"{latents} latent frames are no whole chunks")
    return {"out": longest_clip(vae, latents) if latents else 0}


def _file_name(case: Case, *_: Any) -> dict[str, Any]:
    names = {"sample_idx": "index", "k": "sample", "prompt": "prompt"}
    args = case["args"]
    known = {ours: args[theirs] for theirs, ours in names.items() if theirs in args}
    fixed = {"text": "x", "negative": None, "num_frames": 1, "height": 1, "width": 1, "fps": 24.0}
    request = Request(**{"prompt": "x", "sample": 0, "index": 0, **known}, **fixed)
    path = file_path(request, {**CFG, **{k: v for k, v in args.items() if k not in names}})
    return {"out": str(path.with_suffix(""))}


def _sizes(case: Case, *_: Any) -> dict[str, Any]:
    """The sizes that reach the network. The reference names families of networks; ours are alike."""
    args = case["args"]
    if args["info_type"] not in (None, "STDiT2", "OpenSora", "PixArtMS"):
        raise ValueError(f"{args['info_type']}: no such network")
    cfg = {**CFG, "prompt": ["x"], "num_sample": args["batch_size"], "fps": args["fps"]}
    requests = make_requests(cfg, tuple(args["image_size"]), args["num_frames"])
    batch = {name: value.tolist() for name, value in sizes_of(requests, tuple(args["image_size"])).items()}
    ratio = [float(np.float32(h / w)) for h, w in zip(batch["height"], batch["width"], strict=True)]
    if args["info_type"] is None:
        return {"out": {}}
    if args["info_type"] == "PixArtMS":
        pairs = [list(pair) for pair in zip(batch["height"], batch["width"], strict=True)]
        return {"out": {"ar": [[r] for r in ratio], "hw": pairs}}
    return {"out": {**batch, "ar": ratio}}


def _prompt_file(case: Case, *_: Any) -> dict[str, Any]:
    args = case["args"]
    column = args.get("csv_ref_column_name")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"prompts{args['ext']}"
        path.write_text(args["content"])
        rows = read_rows(path, column)[args.get("start_idx") : args.get("end_idx")]
    texts = [row.text for row in rows]
    return {"out": texts if column is None else [texts, [row.reference for row in rows]]}


def _parse(case: Case, *_: Any) -> dict[str, Any]:
    return {"out": [list(astuple(entry)) for entry in parse_strategy(case["args"]["mask_strategy"])]}


def _align(case: Case, *_: Any) -> dict[str, Any]:
    args = case["args"]
    return {"out": align_start(args["value"], args["point"], args["max_value"])}


def _latents(value: Any) -> Tensor:
    return torch.tensor(value, dtype=torch.float32)[:, :, None, None]


def _lists(z: Tensor) -> list:
    return z[..., 0, 0].tolist()


def _apply(case: Case, *_: Any) -> dict[str, Any]:
    args = case["args"]
    rows = []
    for b, text in enumerate(args["mask_strategys"]):
        references = [_latents(r) for r in args["refs"][b]]
        rows.append(
            lay(parse_strategy(text), references, _latents(args["z"][b]), args["loop_i"], args["align"])
        )
    z = [_lists(row[0]) for row in rows] or args["z"]  # without strategies all is as it was
    masks = [[round(value, 6) for value in row[1].tolist()] for row in rows] or None
    return {"out": {"z": z, "mask": masks}}


def _append(case: Case, *_: Any) -> dict[str, Any]:
    args = case["args"]
    references = [[*refs, clip] for refs, clip in zip(args["refs"], args["generated"], strict=True)]
    strategies = []
    for refs, text in zip(args["refs"], args["mask_strategy"], strict=True):
        entry = chain(args["loop_i"], len(refs), args["condition_frame_length"], args["condition_frame_edit"])
        strategies.append(";".join(filter(None, (text, str(entry)))))
    return {"out": {"refs": references, "mask_strategy": strategies}}


def _given(case: Case, loop: int, loops: int, previous: list | None) -> dict[str, Any]:
    args = case["args"]
    overlap, frames = args["condition_frame_length"], args["target_shape"][2]
    length = min(overlap, frames, *(refs[0][0].__len__() for refs in args["refs"]))  # of the batch, as there
    rows = []
    for b, refs in enumerate(args["refs"]):
        references = [_latents(ref) for ref in refs]
        entries = list(of_class(args["cond_type"] or "none", length, loops, len(refs)))
        if previous is not None:
            entries.insert(0, chain(loop, len(refs), overlap))
            references.append(_latents(previous[b]))
        rows.append(lay(entries, references, torch.zeros(args["target_shape"][1:]), loop))
    index = (rows[0][1] < 1).nonzero()[:, 0].tolist()
    return {"out": {"ref": [_lists(row[0]) for row in rows], "mask_index": index}}


def _first_loop(case: Case, *_: Any) -> dict[str, Any]:
    return _given(case, 0, case["args"]["loop"], None)


def _later_loop(case: Case, *_: Any) -> dict[str, Any]:
    return _given(case, 1, 2 if case["args"]["is_last_loop"] else 3, case["args"]["samples"])


def _join(case: Case, *_: Any) -> dict[str, Any]:
    overlap, vae = case["args"]["condition_frame_length"], _vae12()
    clips = [_latents(clip)[None] for clip in case["args"]["clips"]]
    joined = join([clip[:, 0][:, None] for clip in clips], overlap)
    return {"out": {"video": _lists(joined[0]), "num_frames": longest_clip(vae, joined.shape[2])}}


def _class_frames(case: Case, *_: Any) -> dict[str, Any]:
    name, frames = case["args"]["mask_cond"], case["args"]["latent_t"]
    entries = entries_of({"i2v": "i2v_head"}.get(name, name), frames, 0.0, 0.0)
    spans = [entry.span(frames, frames) for entry in entries]
    return {"out": [target + i for _, target, length in spans for i in range(length)]}


def _mask(ratios: Mapping[str, float]) -> FrameMask:
    return FrameMask({"interpolate" if name == "intepolate" else name: p for name, p in ratios.items()})


def _outcomes(case: Case, *_: Any) -> dict[str, Any]:
    frames = case["args"]["num_frames"]
    rows = _mask({case["args"]["name"]: 1.0}).draw(torch.empty(1500, 1, frames, 1, 1), Draws(0, range(1500)))
    return {"out": sorted({"".join(map(str, row)) for row in rows.int().tolist()})}


def _choice(case: Case, *_: Any) -> dict[str, Any]:
    args = case["args"]
    with patch("opensora.utils.random._uniform64", lambda stream, count: np.full(count, args["u"])):
        row = _mask(args["mask_ratios"]).draw(torch.empty(1, 1, args["num_frames"], 1, 1), Draws(0, [0]))
    return {"out": "".join(map(str, row[0].int().tolist()))}


def _ratios(case: Case, *_: Any) -> dict[str, Any]:
    if _too_much(case):
        return {}
    ours = {name: round(p, 12) for name, p in _mask(case["args"]["mask_ratios"]).ratios.items()}
    return {"out": ours}


def _too_much(case: Case) -> bool:
    return sum(case["args"]["mask_ratios"].values()) > 1 and max(case["args"]["mask_ratios"].values()) <= 1


def _refused(case: Case) -> str:
    try:
        _mask(case["args"]["mask_ratios"])
    except ValueError as error:
        return f"refused: {error}"
    raise AssertionError("ratios above 1 were accepted")


def _unaligned(case: Case) -> bool:
    return bool(len(case["args"]["clips"]) > 1 and case["args"]["condition_frame_length"] % 5)


def _unaligned_refused(case: Case) -> str:
    overlap = case["args"]["condition_frame_length"]
    cfg = {**CFG, "loop": len(case["args"]["clips"]), "condition_frame_length": overlap}
    try:
        check_loops(_vae12(), 34, cfg)
    except ValueError as error:
        return f"refused: {error}"
    raise AssertionError("clips that share part of a chunk were accepted")


def _all(marked: Any) -> Any:
    """Mark every output of the cases that a function picks."""

    def excused(case: Case, output: str, expected: Any) -> Any:
        size = len(expected) if isinstance(expected, dict) else ()
        return np.ones(size, dtype=bool) if marked(case) else None

    return excused


KINDS = {
    "remove_caption_prefix": lambda case, *_: {"out": without_opening(case["args"]["caption"])},
    "split_prompt": _split,
    "merge_prompt": _merge,
    "extract_prompts_loop": _loop_texts,
    "extract_json_from_prompts": _json,
    "append_score_to_prompts": _scores,
    "transform_aes": _word("aes", " The aesthetic score is "),
    "transform_motion": _word("flow", " The motion strength is "),
    "dframe_to_frame": _length,
    "get_save_path_name": _file_name,
    "prepare_multi_resolution_info": _sizes,
    "load_prompts": _prompt_file,
    "parse_mask_strategy": _parse,
    "find_nearest_point": _align,
    "apply_mask_strategy": _apply,
    "append_generated": _append,
    "prep_ref_and_mask": _first_loop,
    "prep_ref_and_update_mask_in_loop": _later_loop,
    "loop_concat": _join,
    "get_mask_index": _class_frames,
    "mask_outcomes": _outcomes,
    "mask_choice": _choice,
    "mask_generator_ctor": _ratios,
}
DEVIATIONS = [
    {
        "name": "end_frame_in_every_loop",
        "reason": "The reference forces the end of a loop into every later clip; ours into the last only.",
        "kinds": {"prep_ref_and_update_mask_in_loop"},
        "excused": _all(lambda c: c["args"]["cond_type"] == "i2v_loop" and not c["args"]["is_last_loop"]),
    },
    {
        "name": "clips_share_part_of_a_chunk",
        "reason": "The reference joins latents that stand for other frames in their clip than in the video, "
        "and cuts what is left over; ours refuses such lengths.",
        "kinds": {"loop_concat"},
        "excused": _all(_unaligned),
        "check": _unaligned_refused,
    },
    {
        "name": "ratios_above_one",
        "reason": "The reference makes the probability of no mask negative; ours refuses such ratios.",
        "kinds": {"mask_generator_ctor"},
        "excused": _all(_too_much),
        "check": _refused,
    },
]
