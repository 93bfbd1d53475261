"""Codebook: nearest vectors, straight-through gradients, moving averages, restarts, skipped steps."""

import pytest
import torch

from opensora.layers.codebook import Codebook


def latents(seed: int = 0, frames: int = 2) -> torch.Tensor:
    numbers = torch.Generator().manual_seed(seed)
    return torch.randn(2, 3, frames, 4, 4, generator=numbers)


def book(num_codes: int = 8, decay: float = 0.5) -> Codebook:
    torch.manual_seed(0)
    return Codebook(num_codes, 3, decay)


def test_codes_are_those_of_the_nearest_vectors() -> None:
    one, z = book(), latents()
    distances = (z.movedim(1, -1)[..., None, :] - one.vectors).square().sum(-1)
    assert torch.equal(one.codes(z), distances.argmin(-1))
    assert torch.equal(one.look_up(one.codes(z)).movedim(1, -1), one.vectors[distances.argmin(-1)])


def test_gradients_pass_straight_through_and_distances_pull() -> None:
    one, z = book().eval(), latents().requires_grad_()
    rounded, distance, perplexity = one(z)
    torch.testing.assert_close(rounded.detach(), one.look_up(one.codes(z)))
    (weight,) = torch.autograd.grad((rounded * 3).sum(), z, retain_graph=True)
    torch.testing.assert_close(weight, torch.full_like(z, 3.0))
    (pull,) = torch.autograd.grad(distance.sum(), z)
    torch.testing.assert_close(pull, 2 * (z - rounded).detach())
    torch.testing.assert_close(distance, (z - rounded).square().flatten(1).sum(1))
    assert 1 <= perplexity <= 8


def test_vectors_become_the_means_of_what_they_stand_for() -> None:
    one = book(2, decay=0.0)
    low, high = torch.full((1, 3, 1, 2, 2), -1.0), torch.full((1, 3, 1, 2, 2), 1.0)
    z = torch.cat((low, high), 2) + 0.1 * latents()[:1, :, :, :2, :2]
    one(z.requires_grad_())
    one.vectors.copy_(torch.tensor([[-2.0] * 3, [2.0] * 3]))  # before the codes are counted anew
    one._seen = one._first = None
    one.steps.add_(1)
    one(z)
    one.after_step()
    torch.testing.assert_close(one.vectors, z.detach().mean((0, 3, 4)).t(), atol=1e-5, rtol=1e-5)


def test_idle_vectors_move_to_latents_and_draws_repeat() -> None:
    found = []
    for _ in range(2):
        one = book()
        one(latents().requires_grad_())
        one.vectors[3:] = 50.0  # too far away to be used
        one._seen = one._first = None
        one.steps.add_(1)
        for step in range(3):
            one(latents(step).requires_grad_())
            one.after_step()
        assert one.vectors.abs().max() < 10 and (one.counts >= 1).all()
        found.append(one.vectors.clone())
    assert torch.equal(*found)


def test_the_first_batch_fills_it_and_no_other_call_changes_it() -> None:
    one, before = book(), book().vectors
    with torch.no_grad():
        one(latents())
    one.eval()(latents().requires_grad_())
    one.after_step()
    assert torch.equal(one.vectors, before) and one._seen is None
    one.train()(latents().requires_grad_())
    flat = latents().movedim(1, -1).flatten(0, -2)
    assert torch.cdist(one.vectors, flat).min(1).values.max() < 0.05  # latents, moved a little


@pytest.mark.parametrize("spoil", ["skipped", "nan"])
def test_a_step_that_is_given_up_leaves_nothing(spoil: str) -> None:
    one = book()
    one(latents().requires_grad_())
    one.after_step()
    before = {key: value.clone() for key, value in one.state_dict().items()}
    z = latents(1) * (float("nan") if spoil == "nan" else 1.0)
    one(z.requires_grad_())
    one.after_step(skipped=spoil == "skipped")
    assert all(torch.equal(value, before[key]) for key, value in one.state_dict().items())


def test_two_batches_of_a_step_count_as_one() -> None:
    both, apart = book(), book()
    for one in (both, apart):
        one(latents().requires_grad_())
        one.after_step()
    z = latents(1)
    both(z.requires_grad_())
    for part in z.detach().split(1):
        apart(part.requires_grad_())
    both.after_step()
    apart.after_step()
    used = (both.counts > 1) & (apart.counts > 1)
    torch.testing.assert_close(both.vectors[used], apart.vectors[used])
