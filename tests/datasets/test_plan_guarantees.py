"""What every plan guarantees, whatever the table, the buckets and the number of processes: random cases."""

import os
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from opensora.datasets.assignment import REASONS
from opensora.datasets.buckets import Buckets
from opensora.datasets.planner import Planner, PlanRules
from opensora.datasets.resolutions import area
from opensora.datasets.samplers import BucketSampler
from opensora.datasets.steps import kept_batches

EPOCHS = 4
SIDES = np.array([(144, 256), (256, 144), (192, 192), (360, 640), (480, 480), (720, 1280), (100, 100)])
RANKS = (*(1, 1, 2, 2, 3, 4, 4, 5, 6, 7, 8, 8, 12, 16, 24, 32, 48, 64),)


def random_case(seed):
    """Make a table, a bucket_config, rules, and a number of processes."""
    rng = np.random.default_rng(seed)
    ranks = int(rng.choice(RANKS))
    count = int(rng.integers(10, 120)) * int(rng.integers(1, 2 + ranks // 2))
    lengths = rng.choice([1, 2, 16, 17, 33, 34, 51, 60, 120], rng.integers(1, 6))
    sides = SIDES[rng.choice(len(SIDES), count, p=rng.dirichlet(np.ones(len(SIDES))))]
    config = {}
    names = ["144p", "240p", "360p", "720p"]
    for resolution in rng.choice(names, rng.integers(1, 4), replace=False, p=[0.5, 0.2, 0.2, 0.1]):
        entries = {}
        for frames in rng.choice([1, 16, 17, 34, 51], rng.integers(1, 4), replace=False):
            keep = float(rng.choice([1.0, 1.0, 0.7, 0.3]))
            pair = frames > 1 and rng.random() < 0.2
            entries[int(frames)] = ((keep, 0.6) if pair else keep, int(rng.integers(1, 5)))
        if len(entries) > 1 and rng.random() < 0.15:
            entries[max(entries)] = (0.0, None)
        config[str(resolution)] = entries
    rules = PlanRules(
        remainder=str(rng.choice(["carry", "pad"], p=[0.7, 0.3])),
        starved=str(rng.choice(["error", "merge", "drop"], p=[0.15, 0.5, 0.35])),
        max_dropped=float(rng.choice([1.0, 1.0, 1.0, 0.5])),
    )
    rule, interval = str(rng.choice(["resolution", "ratio"], p=[0.8, 0.2])), int(rng.choice([1, 1, 2]))
    planner = Planner(
        "table",
        (rng.choice(lengths, count), sides[:, 0], sides[:, 1]),
        Buckets(config, rule=rule),
        ranks * int(rng.choice([1, 1, 2])),
        seed,
        interval,
        rules,
    )
    excluded = np.flatnonzero(rng.random(count) < 0.05) if rng.random() < 0.2 else None
    return SimpleNamespace(planner=planner, ranks=ranks, config=config, excluded=excluded)


def check_case(seed):
    """Plan some epochs of a case, check all that is guaranteed, and say how it ended."""
    case = random_case(seed)
    planner, ended = case.planner, "planned"
    owed, before = set(), None  # rows that were cut while their bucket had a batch
    for epoch in range(EPOCHS):
        excluded = case.excluded if epoch else None
        try:
            carry = None if before is None else before.carry
            plan = planner.plan(epoch, carry, excluded)
        except ValueError as error:
            ended = check_error(case, str(error), before, excluded)
            break
        check_batches(case, plan)
        check_rows(case, plan, before)
        shapes = shapes_of(planner, plan)
        used = set(plan.rows.tolist())
        cut = {row for row, shape, _ in plan.carry.tolist() if shape in shapes}
        gone = set(plan.excluded.tolist())
        if not (epoch == 1 and len(gone)):  # rows that vanish may have been needed to fill a batch
            if owed & cut:
                assert owed_leave_no_step(planner, plan), "cut in two epochs in which the bucket has a batch"
                ended = "cut again"
        owed = ((owed | cut) - used) - gone
        before = plan
    return ended


def check_batches(case, plan):
    """No empty, short or mixed batch, and each process has as many."""
    n, planner = plan.batches_per_step, case.planner
    assert plan.num_steps >= 1 and len(plan.sizes) == plan.num_steps * n
    parts = [list(BucketSampler(planner, rank, case.ranks, plan)) for rank in range(case.ranks)]
    assert {len(part) for part in parts} == {plan.num_steps * n // case.ranks}
    allowed = {(*shape[2:5], shape.batch_size) for shape in planner.buckets.shapes}
    rows = []
    for part in parts:
        for batch in part:
            (shape,) = {clip[1:4] for clip in batch}
            assert (*shape, len(batch)) in allowed
            rows += [clip.row for clip in batch]
    found = Counter(rows)
    assert found == Counter(plan.rows.tolist())
    if planner.rules.remainder == "carry":
        assert max(found.values()) == 1
    else:
        assert len(plan.carry) == 0


def check_rows(case, plan, before):
    """Each row fits its bucket, none is lost, and none is refused that has exactly a bucket's length."""
    planner = case.planner
    length, height, width = planner.columns
    need = plan.sizes[:, 0] * np.where(plan.sizes[:, 0] > 1, planner.frame_interval, 1)
    of_batch = np.repeat(np.arange(len(plan.sizes)), np.diff(plan.starts))
    assert (length[plan.rows] >= need[of_batch]).all()
    assert ((length[plan.rows] == 1) == (plan.sizes[of_batch, 0] == 1)).all()
    table = planner.assignment(plan.excluded).draw(planner.seed, plan.epoch)
    table.shape[plan.excluded] = -1
    taken = set(np.flatnonzero(table.shape >= 0).tolist())
    carried = set(plan.carried[:, 0].tolist())
    assert set(plan.rows.tolist()) | set(plan.carry[:, 0].tolist()) == taken | carried
    assert not set(plan.rows.tolist()) & set(plan.carry[:, 0].tolist())
    assert not set(plan.excluded.tolist()) & (set(plan.rows.tolist()) | set(plan.carry[:, 0].tolist()))
    if before is not None:
        still = planner.assignment(plan.excluded).eligible[before.carry[:, 1]] > 0
        assert carried == set(before.carry[still, 0].tolist()) - set(plan.excluded.tolist())
    if planner.buckets.rule == "resolution":
        pixels = height.astype(np.int64) * width
        for name, entries in case.config.items():
            for frames in entries:
                exact = length == (frames * planner.frame_interval if frames > 1 else 1)
                exact &= pixels >= 0.8 * area(name)
                assert not (exact & (table.reason >= REASONS.index("too short"))).any()


def check_error(case, message, before, excluded):
    """What an error says is so."""
    planner = case.planner
    shapes = planner.buckets.shapes
    batch_size = np.array([max(1, shape.batch_size) for shape in shapes])
    if "these buckets can never fill a batch" in message:
        rows = ever(planner)
        assert before is None and planner.rules.starved != "drop"
        assert ((rows > 0) & (rows < batch_size)).any()
        return "starved"
    if "the plan drops" in message:
        assert before is None and planner.rules.max_dropped == 0.5
        return "drops"
    assert "no training step can be filled" in message
    excluded = np.array([] if excluded is None else excluded, dtype=np.int64)
    table = planner.assignment(excluded).draw(planner.seed, 0 if before is None else before.epoch + 1)
    table.shape[excluded] = -1
    if before is not None:
        rows, numbers, _ = before.carry[~np.isin(before.carry[:, 0], excluded)].T
        table.shape[rows] = numbers
    full = np.bincount(table.shape[table.shape >= 0], minlength=len(shapes)) // batch_size
    least = 1 if planner.rules.remainder == "pad" else planner.batches_per_step
    assert full.sum() < least
    return "no step" if before is None else "no later step"


def owed_leave_no_step(planner, plan):
    """Whether the full batches of an epoch fill a step, but none with all rows that were cut before."""
    shapes, n = planner.buckets.shapes, planner.batches_per_step
    batch_size = np.array([max(1, shape.batch_size) for shape in shapes])
    number = {shape[2:5]: n for n, shape in enumerate(shapes)}
    taken = np.repeat([number[tuple(size)] for size in plan.sizes.tolist()], np.diff(plan.starts))
    count = np.bincount([*taken, *plan.carry[:, 1]], minlength=len(shapes))
    carried = [plan.carried[keep, 1] for keep in (plan.carried[:, 2] > 0, slice(None))]
    late, waiting = (np.bincount(numbers, minlength=len(shapes)) for numbers in carried)
    full, owed = count // batch_size, -(-late // batch_size)
    owed = np.minimum(owed, np.maximum(full, planner.assignment(plan.excluded).eligible // batch_size))
    return full.sum() >= n and not kept_batches(full, owed, waiting / batch_size, n).any()


def ever(planner):
    """Count the rows that may ever go to each shape, by so many draws that each is met."""
    found = np.zeros((len(planner.buckets.shapes), len(planner.columns[0])), dtype=bool)
    for epoch in range(100):  # the rarest shape has 18 % of the rows that may go there
        shapes = planner._whole.draw(1, epoch).shape
        rows = np.flatnonzero(shapes >= 0)
        found[shapes[rows], rows] = True
    return found.sum(1)


def shapes_of(planner, plan):
    """Return the numbers of the shapes that have a batch."""
    number = {shape[2:5]: n for n, shape in enumerate(planner.buckets.shapes)}
    return {number[tuple(size)] for size in plan.sizes.tolist()}


@pytest.mark.parametrize("part", range(8))
def test_two_thousand_random_cases(part):
    ended = Counter(check_case(seed) for seed in range(250 * part, 250 * (part + 1)))
    assert ended["planned"] > 100 and min(ended["no step"], ended["starved"]) > 5, ended


# A thousand cases a part. PLAN_PARTS=100 makes a hundred thousand, 25 minutes of a core.
PARTS = int(os.environ.get("PLAN_PARTS", "40"))


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_thousands_of_random_cases(part):
    ended = Counter(check_case(seed) for seed in range(10_000 + 1000 * part, 11_000 + 1000 * part))
    assert ended["planned"] > 400, ended
