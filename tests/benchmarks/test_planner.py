"""The published sampler beside the planner's figures: what it is said to do, it does here."""

import numpy as np

from benchmarks.planner import Published, mixed_table, window_shares
from opensora.datasets.buckets import Buckets
from opensora.datasets.planner import Planner

BUCKETS = Buckets({"360p": {51: (1.0, 4)}})


def columns(*lengths):
    return np.array(lengths), np.full(len(lengths), 360), np.full(len(lengths), 640)


def test_the_published_rule_drops_the_same_tail_in_every_epoch():
    published = Published(BUCKETS, columns(*[60] * 11), ranks=1)
    assert {tuple(sorted(published.epoch(epoch).rows.tolist())) for epoch in range(5)} == {tuple(range(8))}


def test_the_published_rule_refuses_the_exact_length_and_cuts_to_the_processes():
    assert len(Published(BUCKETS, columns(*[51] * 8), ranks=1).epoch(0).rows) == 0
    published = Published(BUCKETS, columns(*[60] * 20), ranks=2)
    first, second = (published.epoch(epoch) for epoch in (0, 1))
    assert len(first.costs) == 4 and len(first.rows) == 16
    assert sorted(first.rows) != sorted(second.rows)  # which batch is cut is drawn anew
    assert first.imbalance(2, 2) == 1.0


def test_shares_of_windows():
    table = mixed_table(4000)
    assert all(len(column) == 4000 for column in table)
    buckets = Buckets({"144p": {1: (1.0, 4), 51: (1.0, 4)}})
    rare, common = window_shares(Planner("mixed", table, buckets, 4, 0).plan(0), buckets)
    assert rare <= 5 and common < 0.2
