"""Measures: aims, lines, interleaving, peak memory."""

import json

import pytest
import torch

from benchmarks.measure import Measure, interleaved


@pytest.mark.parametrize(
    ("value", "aim", "ok", "text"),
    [
        (1.0, {}, None, None),
        (1.0, {"at_most": 1.15}, True, "<= 1.15"),
        (1.2, {"at_most": 1.15}, False, "<= 1.15"),
        (2.0, {"at_least": 2.0}, True, ">= 2.0"),
        (1.9, {"at_least": 2.0}, False, ">= 2.0"),
    ],
)
def test_a_line_says_whether_the_aim_is_met(value, aim, ok, text):
    line = json.loads(Measure("a/b", value, "x", **aim, conditions={"threads": 2}).line())
    assert (line["value"], line["ok"], line["aim"]) == (value, ok, text)
    assert line["conditions"]["threads"] == 2
    assert line["conditions"]["torch"] == torch.__version__


def test_calls_take_turns_and_the_median_ignores_one_slow_round():
    order = []
    now, slow = [0.0], iter([1.0, 20.0, 1.0, 1.0])

    def first():
        order.append("a")
        now[0] += next(slow)

    calls = {"a": first, "b": lambda: order.append("b")}
    times = interleaved(calls, repeats=3, warm_up=1, clock=lambda: now[0])
    assert order == ["a", "b"] * 4
    assert times == {"a": 1.0, "b": 0.0}
