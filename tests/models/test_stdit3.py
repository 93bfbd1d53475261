"""STDiT3: per-frame time, conditions, freezing, and figures of the published network."""

import math

import pytest
import torch

from opensora.acceleration.activation_checkpoint import set_activation_checkpoint
from opensora.layers.windows import token_order
from opensora.models.stdit3 import STDiT3
from opensora.registry import MODELS, build

CONDITIONS = {
    "text": {"type": "TextCondition", "text_width": 32, "text_length": 10},
    "size": {"type": "SizeCondition"},
    "frames": {"type": "FrameCondition"},
}


def filler(count: int, number: int) -> torch.Tensor:
    """Deterministic numbers in [-1, 1), exact in 32-bit integers."""
    h = (torch.arange(count, dtype=torch.int64) * 2654435761 + number * 40503 + 12345) & 0xFFFFFFFF
    h = ((h ^ (h >> 16)) * 0x45D9F3B) & 0xFFFFFFFF
    h = h ^ (h >> 16)
    return 2 * h.double() / 2**32 - 1


def published_model(**settings):
    """STDiT3 of width 96 whose tensors are filled by the order of their published names."""
    model = build(
        MODELS,
        {
            "type": "STDiT3",
            "hidden_size": 96,
            "depth": 2,
            "num_heads": 4,
            "conditions": CONDITIONS,
            **settings,
        },
        in_channels=4,
    ).eval()
    state = model.state_dict()
    names = {}
    for key in state:
        name = key
        for old, new in STDiT3.renames:
            if key.startswith(new):
                name = old + key[len(new) :]
        names[name] = key
    for number, name in enumerate(sorted(names)):
        tensor = state[names[name]]
        if name == "rope.freqs":
            continue
        value = filler(tensor.numel(), number).view(tensor.shape)
        if tensor.ndim > 1:
            value = value * math.sqrt(3 / math.prod(tensor.shape[1:]))
        else:
            value = 0.1 * value + (1.0 if name.endswith(".weight") else 0.0)
        tensor.copy_(value)
    return model


def published_inputs():
    x = filler(2 * 4 * 6 * 9 * 13, 1001).view(2, 4, 6, 9, 13).float()
    text = filler(2 * 10 * 32, 1002).view(2, 10, 32).float()
    mask = torch.arange(10) < torch.tensor([[7], [4]])
    cond = {
        "fps": torch.tensor([24.0, 120.0]),
        "height": torch.full((2,), 360.0),
        "width": torch.full((2,), 640.0),
    }
    t = torch.tensor([871.25, 13.5], dtype=torch.float64) / 1000
    return x, t, {"text_features": text, "text_mask": mask, **cond}


WINDOWS = {"window_size": (-1, 2, 3), "spatial_rope": True}
KNOWN = ~torch.tensor([[1, 0, 1, 1, 0, 1], [0, 0, 0, 1, 1, 1]]).bool()
FIGURES = {  # mean, std, largest magnitude, elements at 0, 1, 2, n // 3, n // 2, n - 1
    "windows": (0.166440, 1.257529, 4.607300, -1.24796, 1.41115, -0.36917, 0.49981, 0.70308, 2.55939),
    "known": (0.080908, 1.448448, 5.457483, -1.07807, 1.47095, -0.17004, 0.36550, 0.49278, 2.53120),
    "reference": (0.022031, 1.272135, 4.795788, 0.14301, -0.15730, 0.29051, 0.53639, 0.71045, 0.70816),
    "biases": (0.167639, 1.250203, 4.706138, -1.21030, 1.30260, -0.26097, 0.52696, 0.75352, 2.59537),
    "temporal": (0.161086, 1.256108, 4.664975, -1.41694, 1.62413, -0.51502, 0.73769, 0.83453, 2.52878),
    "skip_temporal": (0.184756, 1.209473, 4.967324, -1.11063, 0.82718, -0.36503, 0.49098, -1.84995, 1.42354),
}


@pytest.mark.parametrize("case", FIGURES)
@torch.no_grad()
def test_published_figures(case):
    settings = {"temporal": {}, "skip_temporal": {"window_size": (-1, 2, 3), "skip_temporal": True}}
    model = published_model(**settings.get(case, WINDOWS))
    x, t, cond = published_inputs()
    known = KNOWN if case == "known" else None
    if case == "biases":
        cond |= {"reference": torch.zeros_like(x), "reference_mask": torch.zeros(2, 6)}
    if case == "reference":
        mask = torch.zeros(2, 6)
        mask[:, [0, 5]] = 1
        null = filler(2 * 10 * 32, 1003).view(2, 10, 32).float()
        outs = []
        for b in range(2):  # the figure has a null caption per sample, the model holds one
            model.conditions["text"].y_embedding.copy_(null[b])
            one = {key: value[b : b + 1] for key, value in cond.items()}
            one |= {
                "reference": (x * mask[:, None, :, None, None])[b : b + 1],
                "reference_mask": mask[b : b + 1],
            }
            outs.append(model(x[b : b + 1], t[b : b + 1], one))
        out = torch.cat(outs)
    else:
        out = model(x, t, cond, known=known)
    check(out, FIGURES[case], atol=2e-5)


@torch.no_grad()
def test_bfloat16_rounds_as_the_published_network_did():
    model = published_model(**WINDOWS, compat_bf16=True).bfloat16()
    x, t, cond = published_inputs()
    cond |= {key: cond[key].bfloat16() for key in ("fps", "height", "width")}
    figures = (0.166435, 1.256902, 4.593750, -1.25000, 1.39844, -0.36328, 0.50391, 0.70703, 2.54688)
    out = model(x, t, cond)
    assert out.dtype == torch.float32
    check(out, figures, atol=1.6e-2, mean_atol=5e-4)  # a step of bfloat16 at 2 is 1.6e-2


def check(out, figures, atol, mean_atol=None):
    flat, n = out.flatten(), out.numel()
    mean_atol = mean_atol or atol
    assert flat.mean().item() == pytest.approx(figures[0], abs=mean_atol)
    assert flat.std().item() == pytest.approx(figures[1], abs=10 * mean_atol)
    assert flat.abs().max().item() == pytest.approx(figures[2], abs=4 * atol)
    elements = flat[torch.tensor([0, 1, 2, n // 3, n // 2, n - 1])]
    torch.testing.assert_close(elements, torch.tensor(figures[3:]), atol=atol, rtol=1e-4)


@torch.no_grad()
def test_all_frames_known_equals_time_zero_up_to_the_last_layer():
    model = published_model(**WINDOWS, final_layer="once")
    x, t, cond = published_inputs()
    every = torch.ones(2, 6, dtype=torch.bool)
    torch.testing.assert_close(model(x, t, cond, known=every), model(x, torch.zeros_like(t), cond))
    torch.testing.assert_close(model(x, t, cond, known=~every), model(x, t, cond))


@torch.no_grad()
def test_a_sample_does_not_depend_on_its_neighbour():
    model = published_model(**WINDOWS)
    x, t, cond = published_inputs()
    both = model(x, t, cond, known=KNOWN)
    alone = model(x[1:], t[1:], {key: value[1:] for key, value in cond.items()}, known=KNOWN[1:])
    torch.testing.assert_close(both[1:], alone, atol=2e-6, rtol=1e-5)


@torch.no_grad()
def test_dropped_text_is_the_null_caption_under_the_prompts_mask():
    model = published_model(**WINDOWS)
    x, t, cond = published_inputs()
    out = model(x, t, cond, {"text": torch.tensor([True, False])})
    null = {**cond, "text_features": cond["text_features"].clone()}
    null["text_features"][0] = model.conditions["text"].y_embedding
    assert torch.equal(out, model(x, t, null))
    assert not torch.equal(out[0], model(x, t, cond)[0])


@torch.no_grad()
def test_a_patch_of_several_frames_pads_and_crops():
    settings = {"type": "STDiT3", "hidden_size": 24, "depth": 1, "num_heads": 2, "conditions": CONDITIONS}
    model = build(MODELS, {**settings, "patch_size": (2, 2, 2)}, in_channels=4)
    x, t, cond = published_inputs()
    known = torch.tensor([[1, 1, 1, 0, 0, 0]] * 2).bool()
    assert model(x[:, :, :5], t, cond, known=known[:, :5]).shape == (2, 8, 5, 9, 13)


def test_activation_checkpointing_leaves_gradients_alone():
    model = published_model(**WINDOWS)
    x, t, cond = published_inputs()
    grads = []
    for enabled in (False, True):
        set_activation_checkpoint(model, enabled)
        model.zero_grad()
        model(x, t, cond).square().mean().backward()
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert torch.equal(*grads)


@pytest.mark.parametrize("window", [None, (-1, 2, 2)])
def test_training_after_inference_mode_at_the_same_size(window):
    token_order.cache_clear()
    model = published_model(window_size=window, spatial_rope=window is not None)
    x, t, cond = published_inputs()[:3]
    with torch.inference_mode():
        inferred = model(x, t, cond)
        published_model()(x, t, cond)  # made in this mode too
    out = model(x, t, cond)
    torch.testing.assert_close(out, inferred, atol=1e-5, rtol=1e-5)
    out.square().mean().backward()
    assert model.temporal_blocks[0].attn.qkv.weight.grad.any()


def test_tables_of_the_last_sizes_are_kept(monkeypatch):
    model, made = published_model(), []
    positions = STDiT3._positions
    monkeypatch.setattr(
        STDiT3, "_positions", lambda self, grid, *_: made.append(grid) or positions(self, grid, *_)
    )

    def ask(*rows):
        made.clear()
        shapes = [model._shape((2, row, 3), 1.0, model.x_embedder.proj.weight) for row in rows]
        return shapes[-1], [grid[1] for grid in made]

    monkeypatch.setattr("opensora.models.stdit3._MOST_SHAPES", 3)
    assert ask(1, 2, 3)[1] == [1, 2, 3]
    assert ask(1, 2, 3, 2, 1)[1] == []  # a full cache loses nothing when it is asked
    assert ask(4, 2, 3, 1)[1] == [4, 1]  # the oldest went, and only that
    shape, _ = ask(5)
    assert shape.num_bytes == 4 * 5 * 3 * 96 + 8 * 2 * 5 * 3 * 12  # positions, phases of pairs of channels
    monkeypatch.setattr("opensora.models.stdit3._MOST_SHAPES", 16)
    monkeypatch.setattr("opensora.models.stdit3._MOST_BYTES", 2 * shape.num_bytes)  # ten rows
    assert ask(2, 5, 1, 4)[1] == [2, 4]
    assert ask(2, 4, 1, 5)[1] == [1, 5]
    monkeypatch.setattr("opensora.models.stdit3._MOST_BYTES", 0)
    assert ask(7, 7, 6, 7)[1] == [7, 6, 7]
    model.double()
    assert ask(7)[0].positions.dtype == torch.float64


def test_new_temporal_blocks_and_references_have_no_effect():
    torch.manual_seed(0)
    settings = {"type": "STDiT3", "hidden_size": 24, "depth": 2, "num_heads": 2, "conditions": CONDITIONS}
    model = build(MODELS, {**settings, "window_size": (-1, 2, 2)}, in_channels=4)
    x, t, cond = published_inputs()
    with torch.no_grad():
        out = model(x, t, cond)
        model.skip_temporal = True
        torch.testing.assert_close(model(x, t, cond), out)
        reference = {"reference": x, "reference_mask": torch.zeros(2, 6)}
        torch.testing.assert_close(model(x, t, cond | reference), out)


def test_shifted_windows_move_every_second_block():
    x, t, cond = published_inputs()
    with torch.no_grad():
        outs = [published_model(**WINDOWS, shift_window=shift)(x, t, cond) for shift in (False, True)]
    assert torch.isfinite(outs[1]).all()
    assert not torch.allclose(*outs, atol=1e-3)


def test_freezing_by_prefix():
    settings = {"type": "STDiT3", "hidden_size": 24, "depth": 2, "num_heads": 2, "conditions": CONDITIONS}
    trained = lambda **kw: {  # noqa: E731
        n.split(".")[0]
        for n, p in build(MODELS, settings | kw, in_channels=4).named_parameters()
        if p.requires_grad
    }
    everything = trained()
    assert "rope" not in everything
    assert trained(train_only=("temporal_blocks.",)) == {"temporal_blocks"}
    model = build(MODELS, {**settings, "freeze": ("conditions.text.",)}, in_channels=4)
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"rope.freqs"} | {
        n for n, _ in model.named_parameters() if n.startswith("conditions.text.")
    }
    with pytest.raises(ValueError, match=r"no parameter starts with 'temporal_block\.'"):
        build(MODELS, {**settings, "train_only": ("temporal_block.",)}, in_channels=4)


def test_settings_that_contradict_each_other():
    settings = {"type": "STDiT3", "hidden_size": 24, "depth": 1, "num_heads": 2, "conditions": CONDITIONS}
    with pytest.raises(
        ValueError, match=r"spatial_rope and shift_window need window_size, for example \(-1, 8, 8\)"
    ):
        build(MODELS, {**settings, "spatial_rope": True}, in_channels=4)
    with pytest.raises(ValueError, match=r"final_layer='v1.2': use one of v1.3, once"):
        build(MODELS, {**settings, "final_layer": "v1.2"}, in_channels=4)


@pytest.mark.parametrize(
    ("name", "channels", "parameters"),
    [
        ("STDiT3-XL/2", 16, 1_207_959_692),
        ("STDiT3-XL/2", 4, 1_207_643_972),
        ("STDiT3-3B/2", 16, 3_182_724_572),
    ],
)
def test_presets_have_the_published_size(name, channels, parameters):
    text = {"type": "TextCondition", "text_width": 4096, "text_length": 300}
    conditions = {"text": text, "size": CONDITIONS["size"]} | (
        {"frames": CONDITIONS["frames"]} if channels == 16 else {}
    )
    window = {"window_size": (-1, 8, 8), "spatial_rope": True} if channels == 16 else {}
    with torch.device("meta"):
        model = build(MODELS, {"type": name, "conditions": conditions, **window}, in_channels=channels)
    assert sum(p.numel() for p in model.parameters()) == parameters
