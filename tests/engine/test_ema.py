"""Averaged weights: the formula, and going on from what was saved."""

import torch
from torch import nn

from opensora.acceleration.engine import build_engine
from opensora.engine.ema import Ema


def engine_of(module):
    trained = [p for p in module.parameters() if p.requires_grad]
    return build_engine("none", "fp32", {"model": module}, {"model": torch.optim.SGD(trained, lr=1.0)})


def frozen_half():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    module[0].requires_grad_(False)
    return module


def move(module, by):
    with torch.no_grad():
        for p in module.parameters():
            p.add_(by)


def test_the_average_is_the_sum_that_the_decay_says():
    module = nn.Linear(1, 1, bias=False)
    nn.init.constant_(module.weight, 1.0)
    ema = Ema(engine_of(module), "model", 0.75)
    for value in (2.0, 4.0):
        nn.init.constant_(module.weight, value)
        ema.update()
    assert ema.whole()["weight"].item() == 0.75 * (0.75 * 1 + 0.25 * 2) + 0.25 * 4


def test_it_starts_from_the_weights_and_is_no_alias_of_them():
    module = nn.Linear(2, 2)
    before = module.weight.detach().clone()
    ema = Ema(engine_of(module), "model", 0.5)
    move(module, 1.0)
    assert torch.equal(ema.whole()["weight"], before)


def test_decay_zero_is_the_weights():
    module = frozen_half()
    ema = Ema(engine_of(module), "model", 0.0)
    move(module, 0.3)
    ema.update()
    assert torch.equal(ema.whole()["1.weight"], module[1].weight)


def test_it_loads_a_checkpoint_that_holds_frozen_parameters_too():
    module = frozen_half()
    engine = engine_of(module)
    ema = Ema(engine, "model", 0.5)
    move(module[1], 1.0)
    ema.update()
    saved = engine.frozen("model") | ema.whole()
    assert saved.keys() == module.state_dict().keys()
    fresh = Ema(engine_of(frozen_half()), "model", 0.5)
    fresh.load(saved)
    assert fresh.whole().keys() == {"1.weight", "1.bias"}
    assert all(torch.equal(value, saved[key]) for key, value in fresh.whole().items())
