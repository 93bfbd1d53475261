"""Compiling ahead: each bucket runs, with captions of one length and of several, and nothing is changed."""

import torch
from torch import nn

from opensora.acceleration.engine import build_engine
from opensora.datasets.buckets import Shape
from opensora.engine.warm_up import warm_up


class Task:
    """A task whose network is one layer."""

    vae = text_encoder = "given"

    def __init__(self) -> None:
        self.model, self.seen = nn.Linear(3, 1), []

    def trainable(self):
        return {"model": self.model}

    def use(self, modules):
        self.forward_model = modules["model"]

    def losses(self, batch, step=0):
        self.seen.append((tuple(batch["video"].shape), len(set(map(len, batch["text"])))))
        assert batch["fps"].shape == batch["sample"].shape == (batch["video"].shape[0],)
        yield "model", {"loss": self.forward_model(batch["video"].mean((2, 3, 4))).mean()}


def engine_of(task):
    optimizer = torch.optim.AdamW(task.model.parameters())
    return build_engine("none", "fp32", {"model": task.model}, {"model": optimizer})


def test_each_bucket_runs_once_with_even_and_uneven_captions():
    task = Task()
    shapes = [
        Shape(0, "0.56", 5, 8, 16, 2),
        Shape(0, "1.00", 5, 12, 12, 2),
        Shape(1, "1.00", 1, 8, 8, 3),
        Shape(2, "1.00", 9, 8, 8, 0),
    ]
    before = task.model.weight.detach().clone()
    assert warm_up(task, engine_of(task), shapes) == 0  # nothing here is compiled
    assert task.seen == [
        ((2, 3, 5, 8, 16), 1),
        ((2, 3, 5, 8, 16), 2),
        ((3, 3, 1, 8, 8), 1),
        ((3, 3, 1, 8, 8), 2),
    ]
    assert task.model.weight.grad is None
    assert torch.equal(task.model.weight, before)


def test_features_are_not_made_up():
    task = Task()
    task.vae = None
    assert warm_up(task, engine_of(task), [Shape(0, "1.00", 1, 8, 8, 1)]) == 0
    assert not task.seen
