"""Draws: a number depends on its name only, and has the distribution that it should."""

import os

import pytest
import torch

from opensora.utils.random import Draws, ReplayDraws, use_deterministic_kernels

NORMAL = [0.9901059, 1.5040896, 1.0240198]
UNIFORM = [0.0824917, 0.07344896]
CHOICES = [2, 2, 2, 2, 1, 2, 2, 1]


def test_rows_depend_on_seed_epoch_sample_name_and_step_only():
    whole = Draws(7, range(10), 3).normal("noise", 2, (10, 4, 5))
    assert torch.equal(Draws(7, [8, 1], 3).normal("noise", 2, (2, 4, 5)), whole[[8, 1]])
    base = whole[0]
    for other in (Draws(8, [0], 3), Draws(7, [1], 3), Draws(7, [0], 4)):
        assert not torch.equal(other.normal("noise", 2, (1, 4, 5))[0], base)
    same = Draws(7, [0], [3])
    assert not torch.equal(same.normal("other", 2, (1, 4, 5))[0], base)
    assert not torch.equal(same.normal("noise", 1, (1, 4, 5))[0], base)
    assert torch.equal(same.normal("noise", 2, (1, 4, 5))[0], base)


def test_these_numbers_never_change():
    draws = Draws(42, [0], 0)
    normal, uniform = draws.normal("noise", 0, (1, 3))[0], draws.uniform("t", 0, (1, 2))[0]
    assert normal.tolist() == pytest.approx(NORMAL, abs=1e-6)
    assert uniform.tolist() == pytest.approx(UNIFORM, abs=1e-7)
    assert [Draws(42, range(8)).choice("c", 0, [1, 2, 3])] == [CHOICES]


def test_distributions():
    draws = Draws(0, range(50))
    normal, uniform = draws.normal("n", 0, (50, 4001)), draws.uniform("u", 0, (50, 4001))
    assert normal.mean().item() == pytest.approx(0, abs=0.01) and normal.std().item() == pytest.approx(
        1, abs=0.01
    )
    assert (normal**4).mean().item() == pytest.approx(3, abs=0.05)
    assert 0 <= uniform.min() and uniform.max() < 1 and uniform.mean().item() == pytest.approx(0.5, abs=0.005)
    assert abs(torch.corrcoef(normal)[0, 1:]).max() < 0.07
    picks = Draws(0, range(6000)).choice("c", 0, [1.0, 0.0, 3.0])
    assert picks.count(1) == 0 and picks.count(2) / 6000 == pytest.approx(0.75, abs=0.02)


def test_refused_arguments():
    with pytest.raises(ValueError, match=r"shape \(3, 2\) for 'n': its first size must be the batch, 2"):
        Draws(0, [0, 1]).normal("n", 0, (3, 2))
    with pytest.raises(ValueError, match=r"weights for 'c' are \[0, 0\]"):
        Draws(0, [0]).choice("c", 0, [0, 0])
    with pytest.raises(ValueError, match="epoch has 2 entries for 3 samples"):
        Draws(0, [0, 1, 2], [0, 1])
    replay = ReplayDraws({"noise": [torch.zeros(2)]})
    assert replay.normal("noise", 0, (2,)).tolist() == [0, 0]
    with pytest.raises(KeyError, match="no draw recorded for 'noise', step 1"):
        replay.normal("noise", 1, (2,))
    with pytest.raises(ValueError, match=r"recorded as \(2,\), asked \(3,\)"):
        replay.uniform("noise", 0, (3,))


def test_deterministic_kernels_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    try:
        use_deterministic_kernels()
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.utils.deterministic.fill_uninitialized_memory = before[1]
