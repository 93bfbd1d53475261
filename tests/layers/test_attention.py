"""Attention: backends agree, masks hide, and errors say what to do."""

import pytest
import torch
import torch.nn.functional as F

from opensora.layers.attention import CrossAttention, SelfAttention, attention, set_attention_backend
from opensora.layers.transformer import FinalLayer, RMSNorm


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_backends_agree(causal, dtype):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 17, 8, dtype=dtype) for _ in range(3))
    tolerance = {"atol": 1e-6, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 2e-2, "rtol": 2e-2}
    math, sdpa = (attention(q, k, v, causal=causal, backend=b) for b in ("math", "sdpa"))
    assert torch.equal(attention(q, k, v, causal=causal, backend="cudnn"), sdpa)  # there is none on a CPU
    torch.testing.assert_close(math, sdpa, **tolerance)


def test_masked_keys_have_no_influence():
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 9, 8) for _ in range(3))
    mask = torch.arange(9)[None, None, None] < torch.tensor([4, 9])[:, None, None, None]
    for backend in ("math", "sdpa", "cudnn"):
        out = attention(q, k, v, mask, backend=backend)
        short = attention(q[:1], k[:1, :, :4], v[:1, :, :4], backend=backend)
        torch.testing.assert_close(out[:1], short, atol=1e-6, rtol=1e-5)


def test_unknown_backend_and_absent_flash():
    q = torch.zeros(1, 1, 2, 4)
    with pytest.raises(ValueError, match="attention_backend='fast': use one of auto, math, sdpa, cudnn"):
        attention(q, q, q, backend="fast")
    with pytest.raises(ValueError, match="attention_backend='flash' needs CUDA, half precision, no mask"):
        attention(q, q, q, backend="flash")
    with pytest.raises(ImportError, match="flash-attn is not installed; install it, or use 'auto' or 'sdpa'"):
        set_attention_backend(SelfAttention(4, 1), "flash")


def test_a_backend_is_set_on_every_attention():
    model = torch.nn.ModuleList([SelfAttention(4, 1), CrossAttention(4, 1)])
    set_attention_backend(model, "math")
    assert [module.backend for module in model] == ["math", "math"]


def test_null_frames_see_the_null_context_and_no_other():
    torch.manual_seed(0)
    module, x = CrossAttention(12, 2), torch.randn(2, 4, 3, 12)
    context, null = torch.randn(2, 5, 12), torch.randn(2, 5, 12)
    mask = torch.arange(5) < torch.tensor([[3], [5]])
    frames = torch.tensor([[True, False, False, True], [False, False, True, False]])
    out = module(x, context, mask, null, frames)
    prompt, nothing = module(x, context, mask), module(x, null, mask)
    torch.testing.assert_close(
        out, torch.where(frames[:, :, None, None], nothing, prompt), atol=1e-6, rtol=1e-5
    )


def test_rms_norm_is_the_formula():
    norm, x = RMSNorm(6), torch.randn(4, 6)
    torch.nn.init.normal_(norm.weight)
    want = x / torch.sqrt((x**2).mean(-1, keepdim=True) + 1e-6) * norm.weight
    torch.testing.assert_close(norm(x), want)
    half = norm.bfloat16()(x.bfloat16())
    assert half.dtype == torch.bfloat16


def test_final_layer_modulates_known_frames_twice_or_once():
    torch.manual_seed(0)
    layer, once = FinalLayer(8, 4, 3), FinalLayer(8, 4, 3, twice=False)
    once.load_state_dict(layer.state_dict())
    x, t, zero = torch.randn(1, 2, 5, 8), torch.randn(1, 8), torch.randn(1, 8)
    known = torch.tensor([[True, False]])
    shift, scale = layer.scale_shift_table[0] + zero, layer.scale_shift_table[1] + zero
    modulated = F.layer_norm(x, (8,), eps=1e-6) * (1 + scale) + shift
    want = F.linear(modulated, layer.linear.weight, layer.linear.bias)
    torch.testing.assert_close(once(x, t, zero, known)[:, 0], want[:, 0])
    torch.testing.assert_close(once(x, t, zero, known)[:, 1], layer(x, t)[:, 1])
    assert not torch.allclose(layer(x, t, zero, known)[:, 0], want[:, 0])


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="hidden size 10 and num_heads=3: the heads must divide the width"):
        SelfAttention(10, 3)
