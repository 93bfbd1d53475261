"""What a GPU computes: the same as the CPU. Skipped where there is none."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from opensora.acceleration.activation_checkpoint import set_activation_checkpoint
from opensora.acceleration.block_compile import compile_blocks
from opensora.acceleration.engine import build_engine
from opensora.acceleration.parallel import init_distributed, shut_down
from opensora.engine.optimizer import build_optimizer
from opensora.layers.attention import attention
from opensora.registry import MODELS, build

pytestmark = pytest.mark.gpu

_NORMS = {"norm": "pixel", "attention": "none"}
_VIDEO_VAE = {
    "type": "VideoVAE",
    "channels": 32,
    "channel_multipliers": (1, 2, 2, 2),
    "num_res_blocks": 1,
    "latent_channels": 4,
    "micro_batch_size": None,
    "micro_batch_size_2d": None,
}
AUTOENCODERS = {
    "published layout": {**_VIDEO_VAE, "micro_frame_size": 9, "temporal_overlap": True},
    "streaming": {**_VIDEO_VAE, **_NORMS, "micro_frame_size": None, "temporal_overlap": False},
    "streaming in chunks": {**_VIDEO_VAE, **_NORMS, "micro_frame_size": 9, "temporal_overlap": False},
}


@pytest.fixture(autouse=True)
def _exact_products() -> Iterator[None]:
    """Multiply float32 numbers as float32, also in convolutions."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def denoiser(windowed: bool) -> nn.Module:
    """Return a small STDiT3 in which nothing is zero."""
    torch.manual_seed(0)
    form = {"window_size": (-1, 4, 4), "shift_window": True, "spatial_rope": True} if windowed else {}
    conditions = {
        "text": {"type": "TextCondition", "text_width": 32, "text_length": 12},
        "size": {"type": "SizeCondition"},
    }
    cfg = {"type": "STDiT3", "hidden_size": 96, "depth": 2, "num_heads": 4, "conditions": conditions, **form}
    model = build(MODELS, cfg, in_channels=4)
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.05)
    return model


def inputs(device: str, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Return latents whose sides fill no window, times, and conditions."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 4, 3, 12, 18, generator=generator).to(device, dtype)
    cond = {"text_features": torch.randn(2, 12, 32, generator=generator).to(device, dtype)}
    cond["text_mask"] = torch.tensor([[True] * 12, [True] * 5 + [False] * 7], device=device)
    sizes = {"fps": 24.0, "height": 96.0, "width": 144.0, "num_frames": 9.0}
    cond |= {name: torch.full((2,), value) for name, value in sizes.items()}
    return x, torch.tensor([0.3, 0.8], device=device), cond


def relative(found: Tensor, expected: Tensor) -> float:
    """Return the relative error as RMS."""
    found, expected = found.double().cpu(), expected.double().cpu()
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("windowed", [False, True])
def test_denoiser_and_its_gradients_are_those_of_the_cpu(windowed: bool) -> None:
    model = denoiser(windowed)
    results = {}
    for device in ("cpu", "cuda"):
        model = model.to(device)
        model.zero_grad(set_to_none=True)
        out = model(*inputs(device))
        out.square().mean().backward()
        gradients = {name: p.grad.cpu() for name, p in model.named_parameters() if p.grad is not None}
        with torch.no_grad():
            assert relative(model(*inputs(device)), out) < 1e-5  # without gradients other code runs
        results[device] = out.detach().cpu(), gradients
    assert relative(results["cuda"][0], results["cpu"][0]) < 1e-5
    assert results["cuda"][1].keys() == results["cpu"][1].keys()
    for name, expected in results["cpu"][1].items():
        assert relative(results["cuda"][1][name], expected) < 1e-3, name


@pytest.mark.parametrize("windowed", [False, True])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_denoiser_in_bf16_is_near(windowed: bool, checkpointed: bool) -> None:
    model = denoiser(windowed)
    expected = model(*inputs("cpu")).detach()
    model = model.to("cuda", torch.bfloat16)
    set_activation_checkpoint(model, checkpointed)
    found = model(*inputs("cuda", torch.bfloat16))
    assert relative(found, expected) < 0.03
    found.float().square().mean().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("windowed", [False, True])
def test_compiled_blocks_are_near(windowed: bool) -> None:
    model = denoiser(windowed).cuda()
    expected = model(*inputs("cuda"))
    expected.square().mean().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    compile_blocks(model)
    found = model(*inputs("cuda"))
    assert relative(found, expected) < 1e-4
    found.square().mean().backward()
    for name, gradient in gradients.items():
        assert relative(model.get_parameter(name).grad, gradient) < 1e-2, name


@pytest.mark.parametrize("backend", ["math", "sdpa", "cudnn", "auto"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_is_the_formula(backend: str, dtype: torch.dtype) -> None:
    q, k, v = (torch.randn(3, 4, 200, 72, dtype=torch.float64) for _ in range(3))
    expected = torch.softmax(q @ k.mT / 72**0.5, -1) @ v
    found = attention(*(x.to("cuda", dtype) for x in (q, k, v)), backend=backend)
    assert relative(found, expected) < (1e-5 if dtype == torch.float32 else 1e-2)


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_autoencoders_are_those_of_the_cpu(name: str) -> None:
    torch.manual_seed(0)
    vae = build(MODELS, AUTOENCODERS[name]).eval()
    video = torch.randn(1, 3, 17, 32, 48).clamp(-1, 1)
    with torch.no_grad():
        z = vae.encode(video)
        expected = vae.decode(z, 17)
        vae = vae.cuda()
        assert relative(vae.encode(video.cuda()), z) < 1e-3
        assert relative(vae.decode(z.cuda(), 17), expected) < 1e-3
        parts = torch.cat(list(vae.decode_stream(z.cuda(), 17)), 2)
        assert relative(parts, expected) < 1e-3


@pytest.mark.parametrize("plugin", ["none", "fsdp2", "zero1", "zero2"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_engines_train(plugin: str, dtype: str) -> None:
    if plugin == "fsdp2" and not hasattr(FSDPModule, "set_reduce_scatter_unused_params"):
        pytest.skip("needs torch 2.13")
    if plugin.startswith("zero"):
        pytest.importorskip("colossalai")
        if dtype == "fp32":
            pytest.skip("ZeRO on GPUs is for half precision")
    init_distributed("cuda")
    try:
        losses = _train(plugin, dtype)
    finally:
        shut_down()
    assert losses[-1] < 0.9 * losses[0], losses


def _train(plugin: str, dtype: str) -> list[float]:
    model = denoiser(True)
    optimizers = {"model": build_optimizer(model, {"lr": 1e-3, "weight_decay": 0.0})}
    engine = build_engine(plugin, dtype, {"model": model}, optimizers)
    losses = []
    for _ in range(8):
        out = engine.module("model")(*inputs("cuda", torch.bfloat16 if dtype == "bf16" else torch.float32))
        loss = (out[:, :4].float() - 1).square().mean()
        engine.backward(loss, "model")
        norm = engine.clip("model", 1.0)
        assert norm > 0
        assert engine.step("model")
        losses.append(float(loss))
    return losses


@pytest.mark.parametrize("windowed", [False, True])
def test_many_tokens_in_parts(windowed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without gradients, q and k are normalised and turned some tokens at a time."""
    model = denoiser(windowed).cuda()
    with torch.no_grad():
        expected = model(*inputs("cuda"))
        monkeypatch.setattr("opensora.layers.fused._DEVICE_CHUNK", 1 << 10)
        assert torch.equal(model(*inputs("cuda")), expected)
