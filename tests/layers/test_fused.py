"""Fused steps equal the plain formulas, values and gradients."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from opensora.layers import fused
from opensora.layers.host_attention import host_attention, is_faster
from opensora.layers.rope import RotaryEmbedding, apply_rotary


def agree(ours, plain, *inputs, **tolerance):
    """Compare the results of two functions, and the gradients of all inputs."""
    outs, grads = [], []
    for function in (ours, plain):
        leaves = [x.detach().clone().requires_grad_() for x in inputs]
        out = function(*leaves)
        probe = torch.linspace(-1, 1, out.numel()).view_as(out).to(out.dtype)
        grads.append(torch.autograd.grad((out * probe).sum(), leaves))
        outs.append(out)
    torch.testing.assert_close(*outs, **tolerance)
    for mine, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(mine, theirs, **tolerance)


@pytest.mark.parametrize("frames", [1, 3])
def test_modulated_norm(frames):
    torch.manual_seed(0)
    x, shift, scale = torch.randn(2, 3, 4, 8), torch.randn(2, frames, 1, 8), torch.randn(2, frames, 1, 8)
    plain = lambda x, shift, scale: F.layer_norm(x, (8,), eps=1e-6) * (1 + scale) + shift  # noqa: E731
    agree(fused.modulated_norm, plain, x, shift, scale, atol=1e-5, rtol=1e-5)
    agree(fused.modulated_norm, plain, x[:1], shift[:1, :1], scale[:1, :1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("turn", [False, True])
def test_norm_and_turn(norm, turn, monkeypatch):
    torch.manual_seed(0)
    qkv, weight = torch.randn(2, 5, 3, 2, 12), torch.rand(2, 1, 12) + 0.5
    table = RotaryEmbedding(12).table(5)

    def ours(qkv, weight):
        return (
            torch.stack(fused.norm_and_turn(qkv, weight if norm else None, table.phases if turn else None))
            + 0 * weight.sum()
        )

    def plain(qkv, weight):
        parts = []
        for i in range(2):
            h = F.rms_norm(qkv[:, :, i], (12,), weight[i, 0], 1e-6) if norm else qkv[:, :, i]
            parts.append(apply_rotary(h.transpose(1, 2), table).transpose(1, 2) if turn else h)
        return torch.stack((*parts, qkv[:, :, 2])) + 0 * weight.sum()

    before = qkv.clone()
    agree(ours, plain, qkv, weight, atol=1e-5, rtol=1e-5)
    assert torch.equal(qkv, before)
    for chunk in (1, 100):  # without gradients: in place, some tokens at a time
        monkeypatch.setattr(fused, "_CHUNK", chunk)
        with torch.no_grad():
            found = ours(qkv.clone(), weight)
        assert torch.equal(found, ours(qkv, weight))
        agree(ours, plain, qkv, weight, atol=1e-5, rtol=1e-5)  # gradients as well


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gated_sum_takes_the_place_of_its_first_term_without_gradients(dtype):
    torch.manual_seed(0)
    x, h, gate = torch.randn(2, 3, 4, 6).to(dtype), torch.randn(2, 3, 4, 6).to(dtype), torch.randn(2, 1, 1, 6)
    gate = gate.to(dtype)
    for g in (gate, None):
        own = x.clone()
        expected = torch.addcmul(x, gate, h) if g is not None else x + h
        assert torch.equal(fused.gated_sum(own, h, g), expected)
        assert torch.equal(own, x)  # gradients might need it
        with torch.no_grad():
            found = fused.gated_sum(own, h, g)
        assert torch.equal(found, expected)
        assert found is own


def test_gated_sum_of_mixed_precision():
    x, h, gate = torch.randn(1, 2, 3, 4), torch.randn(1, 2, 3, 4).bfloat16(), torch.randn(1, 1, 1, 4)
    before = x.clone()
    with torch.no_grad():
        found = fused.gated_sum(x, h, gate)
    torch.testing.assert_close(found, before + gate * h.float())


def test_mlp_with_and_without_gradients():
    torch.manual_seed(0)
    fc1, fc2, x = nn.Linear(6, 24), nn.Linear(24, 6), torch.randn(2, 700, 6)
    plain = lambda x, *_: fc2(F.gelu(fc1(x), approximate="tanh"))  # noqa: E731
    agree(lambda x: fused.mlp(x, fc1, fc2), plain, x, atol=1e-5, rtol=1e-5)
    grads = []
    for function in (plain, fused.mlp):
        fc1.zero_grad(), fc2.zero_grad()
        function(x, fc1, fc2).square().sum().backward()
        grads.append([p.grad for p in (*fc1.parameters(), *fc2.parameters())])
    for mine, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-3, rtol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(fused.mlp(x, fc1, fc2), plain(x), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_mlp_leaves_other_weights_to_their_own_product(monkeypatch):
    class Quantised(nn.Parameter):
        """Such weights bring their own `linear`."""

    torch.manual_seed(0)
    fc1, fc2, x = nn.Linear(6, 24), nn.Linear(24, 6), torch.randn(2, 7, 6)
    want = fused.mlp(x, fc1, fc2)
    fc1.weight.__class__ = Quantised
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", None, raising=False)
    torch.testing.assert_close(fused.mlp(x, fc1, fc2), want)


def test_mlp_of_some_tokens_at_a_time_is_that_of_all(monkeypatch):
    torch.manual_seed(0)
    fc1, fc2 = nn.Linear(6, 24).double(), nn.Linear(24, 6).double()
    plain = lambda x: fc2(F.gelu(fc1(x), approximate="tanh"))  # noqa: E731
    for rows in (1, 5, 14, 100):
        monkeypatch.setattr(fused, "_ROWS", rows)
        x = torch.randn(2, 7, 6, dtype=torch.float64)
        agree(lambda x: fused.mlp(x, fc1, fc2), plain, x, atol=1e-12, rtol=1e-12)
        with torch.no_grad():
            torch.testing.assert_close(fused.mlp(x, fc1, fc2), plain(x))


def test_gelu_over_its_whole_range():
    x = torch.linspace(-20, 20, 4001)[None]
    torch.testing.assert_close(fused._gelu_(x.clone()), F.gelu(x, approximate="tanh"), atol=1e-6, rtol=1e-6)


def test_reorder_gathers_both_ways():
    torch.manual_seed(0)
    order = torch.randperm(7)
    for batch in (1, 3):
        x = torch.randn(batch, 7, 4)
        agree(lambda x: fused.reorder(x, order, order.argsort()), lambda x: x[:, order], x, atol=0, rtol=0)


@pytest.mark.parametrize("scores", [1, 80, 110, 250, 1000])  # a head of one sample has 35, a sample 105
def test_explicit_attention_in_parts(scores, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr("opensora.layers.host_attention._SCORES", scores)
    q, k, v = torch.randn(5, 3, 5, 8), torch.randn(5, 3, 7, 8), torch.randn(5, 3, 7, 8)
    sizes, softmax = [], torch.Tensor.softmax
    monkeypatch.setattr(torch.Tensor, "softmax", lambda x, dim: sizes.append(x.numel()) or softmax(x, dim))
    agree(host_attention, F.scaled_dot_product_attention, q, k, v, atol=1e-5, rtol=1e-5)
    assert sum(sizes) == 2 * 5 * 105  # forward, and again for the backward pass
    assert max(sizes) <= max(scores, 35)


def test_explicit_attention_leaves_long_sequences_to_the_fused_kernel(monkeypatch):
    monkeypatch.setattr("opensora.layers.host_attention._multiplies_bf16", lambda: True)
    tokens = lambda count: torch.empty(1, 1, count, 8, dtype=torch.bfloat16)  # noqa: E731
    assert is_faster(tokens(2048), tokens(2048), None, False)
    assert is_faster(tokens(60_000), tokens(64), None, False)
    assert not is_faster(tokens(2049), tokens(2048), None, False)


def test_explicit_attention_in_bfloat16_with_sharp_scores():
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 6, 256, 64).mul(scale).bfloat16() for scale in (4, 4, 1))
    exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
    error = (host_attention(q, k, v) - exact).square().mean().sqrt() / exact.square().mean().sqrt()
    assert error < 0.03
