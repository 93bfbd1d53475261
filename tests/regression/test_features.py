"""Features on disk stay true: readers and encoders give the recorded numbers, or FEATURE_VERSION is raised.

Whoever changes what an encoder, a transform or a reader gives raises FEATURE_VERSION in
opensora/datasets/features.py, and then records the new numbers:

    UPDATE_FEATURES=1 python -m pytest tests/regression/test_features.py
"""

import json
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from opensora.datasets.buckets import ClipIndex
from opensora.datasets.features import FEATURE_VERSION
from opensora.datasets.video import VideoDataset
from opensora.datasets.video_io import write_image, write_video
from opensora.engine.features import encode_moments
from opensora.registry import MODELS, build
from opensora.utils.random import Draws

RECORD = Path(__file__).with_name("features.json")
IMAGE = {"type": "ImageVAE", "block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "norm_num_groups": 4}
TEMPORAL = {"type": "TemporalVAE", "channels": 8, "num_res_blocks": 1, "num_groups": 4}
VIDEO = {
    "type": "VideoVAE",
    "latent_channels": 4,
    "channels": 32,
    "channel_multipliers": (1, 1, 1, 1),
    "num_res_blocks": 1,
    "micro_frame_size": 9,
}
VAES = {"VideoVAE": VIDEO, "VideoVAE in one piece": {**VIDEO, "micro_frame_size": None}, "ImageVAE": IMAGE}
VAES["StackedVAE"] = {"type": "StackedVAE", "spatial": IMAGE, "temporal": TEMPORAL}
TEXT, CLIPS = ("SentenceEncoder", "T5Encoder", "CLIPTextEncoder"), ("resize_crop", "center")
CAPTIONS = ("a dog, running on a beach", "Größe 12.5 — 3/4!")


def fill(module: nn.Module) -> nn.Module:
    """Give a module weights that no version of torch changes."""
    for name, parameter in module.named_parameters():
        scale = 1.0 if parameter.ndim < 2 else parameter[0].numel() ** -0.5
        values = Draws(1, [0]).normal(name, 0, (1, parameter.numel())).reshape(parameter.shape)
        parameter.data = scale * values
    return module.eval().requires_grad_(False)


def some(values: torch.Tensor) -> list[float]:
    """Return mean, deviation and a few numbers of a tensor."""
    flat = values.double().flatten()
    places = torch.linspace(0, len(flat) - 1, 6).long()
    return [round(float(x), 6) for x in (flat.mean(), flat.std(), *flat[places])]


def moments(name: str) -> list[float]:
    clip = Draws(2, [0]).uniform("video", 0, (1, 3, 17, 24, 32))[0] * 2 - 1
    return some(encode_moments(fill(build(MODELS, VAES[name])), clip))


def captions(kind: str) -> list[float]:
    """Return numbers of text features: of the real MiniLM, of small T5 and CLIP models."""
    if kind == "SentenceEncoder":
        return some(build(MODELS, {"type": kind}).encode(CAPTIONS)[0])
    transformers = pytest.importorskip("transformers")
    if kind == "T5Encoder":
        sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": 40}
        model = transformers.T5EncoderModel(transformers.T5Config(feed_forward_proj="gated-gelu", **sizes))
    else:
        sizes = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 40}
        config = transformers.CLIPTextConfig(num_attention_heads=4, eos_token_id=1, **sizes)
        model = transformers.CLIPTextModel(config)
    encoder = build(MODELS, {"type": kind, "from_pretrained": "nowhere"})
    encoder.model = fill(model)
    encoder._tokenizer = lambda texts, **_: {"input_ids": [[5, 9, 1], [3, 8, 8, 30, 1]]}
    return some(encoder.encode(CAPTIONS)[0])


def clips(folder: Path, transform: str) -> list[float]:
    """Return numbers of a clip and of an image, as the dataset reads them."""
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, 48), torch.linspace(-1, 1, 64), indexing="ij")
    frames = [torch.stack((rows, columns * (t / 20 - 0.5), rows * columns)) for t in range(20)]
    write_video(torch.stack(frames, 1), folder / "clip.mp4", 24)
    write_image(frames[3], folder / "image.png")
    table = f"path,num_frames,height,width,fps\n{folder}/clip.mp4,20,48,64,24\n{folder}/image.png,1,48,64,\n"
    (folder / "table.csv").write_text(table)
    dataset = VideoDataset(str(folder / "table.csv"), transform=transform, frame_interval=2, seed=3)
    clip, image = dataset[ClipIndex(0, 5, 32, 32, 1)], dataset[ClipIndex(1, 1, 32, 32, 1)]
    return [*some(clip["video"]), clip["fps"], *some(image["video"]), image["fps"]]


def check(record: dict, version: int, name: str, found: list[float], tolerance: float) -> None:
    """Complain about numbers that moved under the same version, and about a record of another one."""
    if found != pytest.approx(record["numbers"][name], rel=tolerance, abs=tolerance):
        pytest.fail(
            f"{name} gives other features than in version {record['version']}: {found}. Features on disk "
            f"would be stale. Raise FEATURE_VERSION (now {version}) and record anew: UPDATE_FEATURES=1."
        )
    assert record["version"] == version, "FEATURE_VERSION was raised: record anew with UPDATE_FEATURES=1"


def made(name: str, folder: Path) -> list[float]:
    if name in TEXT:
        return captions(name)
    return moments(name) if name in VAES else clips(folder, name)


@pytest.mark.parametrize("name", [*VAES, *TEXT, *CLIPS])
def test_features_are_the_recorded_ones(name, tmp_path):
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {"version": 0, "numbers": {}}
    found = made(name, tmp_path)
    if os.environ.get("UPDATE_FEATURES"):
        assert record["version"] <= FEATURE_VERSION
        if record["version"] == FEATURE_VERSION and name in record["numbers"]:
            check(record, FEATURE_VERSION, name, found, 1e-4)  # a version has one set of numbers
        numbers = record["numbers"] if record["version"] == FEATURE_VERSION else {}
        record = {"version": FEATURE_VERSION, "numbers": {**numbers, name: found}}
        RECORD.write_text(json.dumps(record, indent=1) + "\n")
    # H.264 is decoded alike everywhere, and encoded for this test with a little freedom.
    check(record, FEATURE_VERSION, name, found, 1e-4 if name not in CLIPS else 0.02)


def test_the_check_sees_changes_and_forgotten_records():
    record = {"version": 3, "numbers": {"x": [1.0, 2.0]}}
    check(record, 3, "x", [1.0, 2.00001], 1e-4)
    with pytest.raises(pytest.fail.Exception, match="x gives other features than in version 3"):
        check(record, 3, "x", [1.0, 2.1], 1e-4)
    with pytest.raises(AssertionError, match="FEATURE_VERSION was raised"):
        check(record, 4, "x", [1.0, 2.0], 1e-4)
