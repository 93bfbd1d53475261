"""The optimizer holds what is trained, and the learning rate is a function of the step."""

import pytest
import torch
from torch import nn

from opensora.engine.optimizer import LrSchedule, build_optimizer

CFG = {"lr": 0.1, "weight_decay": 0.0, "eps": 1e-8, "betas": (0.9, 0.999)}


def test_only_trained_parameters_are_held():
    module = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    module[0].requires_grad_(False)
    held = [p for group in build_optimizer(module, CFG).param_groups for p in group["params"]]
    assert [id(p) for p in held] == [id(p) for p in module[1].parameters()]
    module.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter is trained: model.freeze and model.train_only"):
        build_optimizer(module, CFG)


def test_settings_reach_the_optimizer_and_wrong_ones_are_refused():
    module = nn.Linear(1, 1)
    assert build_optimizer(module, {**CFG, "weight_decay": 0.3}).defaults["weight_decay"] == 0.3
    with pytest.raises(ValueError, match="Invalid learning rate"):
        build_optimizer(module, {**CFG, "lr": -1.0})
    with pytest.raises(TypeError, match="momentum"):
        build_optimizer(module, {**CFG, "momentum": 0.9})


def test_a_step_of_the_optimizer_moves_by_the_rate():
    module = nn.Linear(1, 1, bias=False)
    before = module.weight.item()
    optimizer = build_optimizer(module, {**CFG, "lr": 0.01})
    module(torch.ones(1, 1)).sum().backward()
    optimizer.step()
    assert module.weight.item() == pytest.approx(before - 0.01, abs=1e-6)


def test_constant_rate():
    assert [LrSchedule(0.5, 10)(step) for step in (0, 5, 100)] == [0.5] * 3


def test_warm_up_is_a_line_from_the_initial_rate_to_the_rate():
    schedule = LrSchedule(1.0, 100, warmup_steps=4, initial_lr=0.5)
    assert [schedule(step) for step in range(6)] == pytest.approx([0.6, 0.7, 0.8, 0.9, 1.0, 1.0])


def test_cosine_starts_after_the_warm_up_and_ends_at_zero():
    schedule = LrSchedule(2.0, 14, warmup_steps=4, cosine=True)
    assert schedule(4) == 2.0
    assert schedule(9) == pytest.approx(1.0)
    assert schedule(14) == pytest.approx(0.0, abs=1e-12)
    assert schedule(20) == schedule(14)  # a run that is longer than planned
    rates = [schedule(step) for step in range(4, 15)]
    assert rates == sorted(rates, reverse=True)
