"""Rotary embedding: scores depend on differences; three axes are each one axis."""

import pytest
import torch

from opensora.layers.rope import RotaryEmbedding, RotaryTable, apply_rotary


def test_scores_depend_on_differences_only():
    torch.manual_seed(0)
    rope, q, k = RotaryEmbedding(8), torch.randn(8), torch.randn(8)
    table = rope.table(12)
    turned_q, turned_k = apply_rotary(q.expand(12, 8), table), apply_rotary(k.expand(12, 8), table)
    scores = turned_q @ turned_k.T
    for offset in range(-5, 6):
        diagonal = scores.diagonal(offset)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-5, rtol=1e-5)


def test_three_axes_are_each_one_axis():
    torch.manual_seed(0)
    rope, x = RotaryEmbedding(4), torch.randn(2 * 3 * 5, 12)
    out = apply_rotary(x, rope.axial_table((2, 3, 5), 0.75, 12)).view(2, 3, 5, 12)
    x = x.view(2, 3, 5, 12)
    for axis, scale in enumerate((1.0, 0.75, 0.75)):
        part = slice(4 * axis, 4 * axis + 4)
        angles = torch.arange((2, 3, 5)[axis])[:, None] / scale * rope.freqs
        shape = [1, 1, 1, 2]
        shape[axis] = -1
        pairs = torch.view_as_complex(x[..., part].unflatten(-1, (2, 2)).contiguous())
        want = torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles).view(shape)).flatten(
            -2
        )
        torch.testing.assert_close(out[..., part], want)


def test_a_table_holds_its_numbers_once():
    table = RotaryEmbedding(6).table(4)
    assert {x.untyped_storage().data_ptr() for x in (table.cos, table.sin)} == {
        table.phases.untyped_storage().data_ptr()
    }
    torch.testing.assert_close(table.cos.square() + table.sin.square(), torch.ones(4, 3))


def test_rotation_keeps_lengths_and_what_lies_behind():
    rope, x = RotaryEmbedding(6), torch.randn(2, 4, 10)
    out = apply_rotary(x, rope.table(4))
    torch.testing.assert_close(out.norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(out[..., 6:], x[..., 6:])
    assert torch.equal(out[:, 0], x[:, 0])


def test_compat_rounds_where_the_default_does_not():
    rope = RotaryEmbedding(24)
    exact, rounded = (rope.axial_table((1, 8, 8), 1.875, 72, compat) for compat in (False, True))
    assert rounded.cos.dtype == torch.bfloat16
    assert exact.cos.dtype == torch.float32
    assert 0 < (exact.cos - rounded.cos.float()).abs().max() < 0.1


def test_a_head_of_64_is_cut_as_chunk_does():
    rope, x = RotaryEmbedding(64 // 3), torch.randn(2 * 3 * 5, 64)
    assert rope.freqs.shape == (10,)
    torch.testing.assert_close(rope.freqs[1], torch.tensor(10000.0 ** (-2 / 21)))
    out = apply_rotary(x, rope.axial_table((2, 3, 5), 1.0, 64))
    for axis, (part, turned) in enumerate(
        zip(x.chunk(3, dim=-1), out.view(2, 3, 5, 64).chunk(3, -1), strict=True)
    ):
        index = torch.cartesian_prod(*(torch.arange(n) for n in (2, 3, 5)))[:, axis]
        table = RotaryTable(*(f(index[:, None] * rope.freqs) for f in (torch.cos, torch.sin)))
        torch.testing.assert_close(turned.flatten(0, 2), apply_rotary(part, table))


def test_a_head_whose_thirds_cut_pairs_is_an_error():
    with pytest.raises(ValueError, match="head_dim 8 must be a multiple of 6, or 4 more"):
        RotaryEmbedding(2).axial_table((1, 2, 2), 1.0, 8)
