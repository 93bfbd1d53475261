"""Embeddings: patches invert, a table of positions has the structure that it promises."""

import pytest
import torch

from opensora.layers.embeddings import (
    PatchEmbed3D,
    SizeEmbedder,
    TimestepEmbedder,
    position_embedding_2d,
    timestep_embedding,
    unpatchify,
)


@pytest.mark.parametrize("size", [(3, 5, 7), (2, 4, 6), (1, 1, 1)])
def test_patches_equal_the_convolution_and_cover_odd_sizes(size):
    torch.manual_seed(0)
    embed, x = PatchEmbed3D((1, 2, 2), 3, 8), torch.randn(2, 3, *size)
    padded = torch.nn.functional.pad(x, (0, size[2] % 2, 0, size[1] % 2))
    want = embed.proj(padded).flatten(2).transpose(1, 2)
    torch.testing.assert_close(embed(x), want, atol=1e-6, rtol=1e-5)


def test_unpatchify_inverts_an_identity_patch_embedding():
    embed, x = PatchEmbed3D((1, 2, 2), 3, 12), torch.randn(2, 3, 4, 5, 7)
    with torch.no_grad():  # token channels become (h, w, C)
        embed.proj.weight.copy_(
            torch.eye(12).view(2, 2, 3, 12).permute(3, 2, 0, 1).reshape(12, 3, 1, 2, 2) * 0
        )
        for h in range(2):
            for w in range(2):
                for c in range(3):
                    embed.proj.weight[(h * 2 + w) * 3 + c, c, 0, h, w] = 1
        embed.proj.bias.zero_()
    assert torch.equal(unpatchify(embed(x).unflatten(1, (4, -1)), (1, 2, 2), (4, 5, 7)), x)


def test_timestep_embedding_starts_with_cosines_and_pads_odd_widths():
    table = timestep_embedding(torch.tensor([0.0, 2.0]), 5, max_period=100)
    assert table.shape == (2, 5)
    assert torch.equal(table[0], torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0]))
    torch.testing.assert_close(table[1, :2], torch.cos(torch.tensor([2.0, 0.2])))


def test_sizes_of_a_sample_are_embedded_side_by_side():
    torch.manual_seed(0)
    embedder, size = SizeEmbedder(6), torch.tensor([[24.0, 360.0], [120.0, 720.0]])
    out = embedder(size)
    torch.testing.assert_close(out[:, :6], TimestepEmbedder.forward(embedder, size[:, 0]))
    torch.testing.assert_close(out[:, 6:], TimestepEmbedder.forward(embedder, size[:, 1]))


def test_positions_tell_the_column_first_and_scale_alike():
    table = position_embedding_2d(16, (3, 5), 0.5, 4)[0].view(3, 5, 16)
    assert torch.equal(table[0, :, :8], table[2, :, :8])
    assert torch.equal(table[:, 0, 8:], table[:, 4, 8:])
    wide = position_embedding_2d(16, (6, 10), 0.5, 4)[0].view(6, 10, 16)
    torch.testing.assert_close(wide[::2, ::2], table)  # the same range, twice as fine


def test_a_width_that_is_not_a_multiple_of_four_is_an_error():
    with pytest.raises(ValueError, match="position embedding of width 10: it must be divisible by 4"):
        position_embedding_2d(10, (2, 2))
