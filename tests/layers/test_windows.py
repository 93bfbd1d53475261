"""Windows: they cover each token once, invert, and equal a brute-force neighbourhood."""

import itertools
import math

import pytest
import torch

from opensora.layers.attention import SelfAttention, attention
from opensora.layers.windows import plan_windows, token_order

CASES = [
    ((3, 6, 7), (-1, 4, 4), False),
    ((3, 6, 9), (-1, 4, 4), True),
    ((5, 7, 6), (2, 3, 5), True),
    ((4, 8, 8), (1, -1, -1), False),
    ((4, 3, 2), (-1, 1, 1), False),
    ((2, 3, 5), (-1, 8, 8), True),
]


def window_ids(size: int, window: int, shift: bool) -> list[int]:
    """Number the windows along an axis by rolling, as Swin does: wrapped parts get a window of their own."""
    if window == -1:
        return [0] * size
    padded = -(-(size + (window if shift else 0)) // window) * window
    offset = window // 2 if shift else 0
    return [(i + offset) // window for i in range(size)] if padded else []


@pytest.mark.parametrize(("grid", "window", "shift"), CASES)
def test_the_order_holds_each_token_once_and_window_by_window(grid, window, shift):
    plan, places = plan_windows(grid, window, shift), torch.arange(math.prod(grid))
    found = token_order(plan, torch.device("cpu"))
    order, inverse = (places, places) if found is None else found
    assert torch.equal(order[inverse], places)
    start = 0
    for group in plan.groups:
        (t, h, w), (kt, kh, kw) = group.start, group.size
        first = places.view(grid)[t : t + kt, h : h + kh, w : w + kw].flatten()
        assert torch.equal(order[start : start + group.num_tokens], first)
        start += group.num_windows * group.num_tokens
    assert start == len(places)
    assert (found is None) == torch.equal(order, places)


@pytest.mark.parametrize(("grid", "window", "shift"), CASES)
def test_attention_equals_a_brute_force_neighbourhood(grid, window, shift):
    torch.manual_seed(0)
    module = SelfAttention(12, 2, qk_norm=True)
    x = torch.randn(2, grid[0] * grid[1] * grid[2], 12)
    ids = [window_ids(size, k, shift) for size, k in zip(grid, window, strict=True)]
    label = [(ids[0][t], ids[1][h], ids[2][w]) for t, h, w in itertools.product(*map(range, grid))]
    same = torch.tensor([[a == b for b in label] for a in label])
    q, k, v = module.qkv(x).unflatten(-1, (3, 2, 6)).permute(2, 0, 3, 1, 4)
    want = attention(module.q_norm(q), module.k_norm(k), v, same, backend="math")
    want = module.proj(want.transpose(1, 2).flatten(2))
    torch.testing.assert_close(module(x, plan_windows(grid, window, shift)), want, atol=1e-5, rtol=1e-5)


def test_windows_of_full_size_are_full_attention():
    torch.manual_seed(0)
    module, x = SelfAttention(12, 2), torch.randn(1, 24, 12)
    whole = module(x, plan_windows((2, 3, 4)))
    assert torch.equal(module(x, plan_windows((2, 3, 4), (2, 3, 4))), whole)


def test_shifted_windows_have_finite_gradients():
    module, x = SelfAttention(12, 2), torch.randn(1, 2 * 6 * 9, 12, requires_grad=True)
    module(x, plan_windows((2, 6, 9), (-1, 4, 4), True)).square().sum().backward()
    assert torch.isfinite(x.grad).all()
    assert (x.grad.abs().sum(-1) > 0).all()


def test_a_window_of_zero_is_an_error():
    with pytest.raises(ValueError, match=r"window_size=\(0, 8, 8\): sizes are at least 1, or -1"):
        plan_windows((2, 2, 2), (0, 8, 8))


def test_orders_made_in_inference_mode_serve_training():
    token_order.cache_clear()
    plan, device = plan_windows((2, 4, 4), (-1, 2, 2)), torch.device("cpu")
    with torch.inference_mode():
        token_order(plan, device)
    x = torch.randn(1, 32, 3, requires_grad=True)
    for order in token_order(plan, device):
        (gradient,) = torch.autograd.grad(x[:, order].sum(), x)  # indexing keeps the order for backward
        assert torch.equal(gradient, torch.ones_like(x))
