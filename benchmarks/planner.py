"""The epoch planner: speed, memory, balance and lost rows, beside the rules of the published sampler."""

import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.measure import Measure
from opensora.datasets.assignment import Assignment, Columns
from opensora.datasets.buckets import Buckets
from opensora.datasets.epoch_plan import EpochPlan
from opensora.datasets.planner import Planner, PlanRules
from opensora.utils.config import read_config

ROOT = Path(__file__).parents[1]
STAGES = [
    *("opensora-v1-3/train/stage1", "opensora-v1-3/train/stage2"),
    *("opensora-v1-2/train/stage1", "opensora-v1-2/train/stage2", "opensora-v1-2/train/stage3"),
]
MANY, MIX, EPOCHS = 10_000_000, 1_000_000, 4
SHORT = [f"v{name[10:13].replace('-', '.')}/{name.rpartition('/')[2]}" for name in STAGES]
_SIDES = {  # (height, width): share of the clips of a mixed collection; a tenth more have odd sizes
    **{(720, 1280): 0.36, (1080, 1920): 0.24, (2160, 3840): 0.04, (480, 854): 0.05, (360, 640): 0.07},
    **{(144, 256): 0.02, (1280, 720): 0.05, (1920, 1080): 0.05, (1080, 1080): 0.05, (480, 640): 0.04},
    **{(1024, 768): 0.03},
}


def run() -> Iterator[Measure]:
    """Measure speed and memory, balance, and lost rows."""
    yield from speed()
    yield from balance()
    yield from lost_rows()
    yield from small_tables()


def mixed_table(count: int, seed: int = 0) -> Columns:
    """Make the columns of a mixed collection: three tenths images, clips of 5 s in the median.

    Args:
        count: Rows.
        seed: Seed.
    """
    rng = np.random.default_rng(seed)
    sides = np.array(list(_SIDES), dtype=np.int32)[rng.choice(len(_SIDES), count, p=list(_SIDES.values()))]
    odd = rng.random(count) < 0.1
    sides[odd] = rng.integers(200, 1600, (int(odd.sum()), 2))
    length = rng.lognormal(np.log(130), 0.7, count).clip(10, 3000).astype(np.int32)
    length[rng.random(count) < 0.3] = 1
    return length, np.ascontiguousarray(sides[:, 0]), np.ascontiguousarray(sides[:, 1])


def speed() -> Iterator[Measure]:
    """Plan ten million rows, each config in a process of its own, whose peak memory is read."""
    for stage, name in zip(STAGES, SHORT, strict=True):
        code = f"from benchmarks.planner import plan_many; plan_many({stage!r})"
        words = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
        ).stdout.split()
        seconds, gib, steps, later = (float(word) for word in words)
        conditions = {"rows": MANY, "steps": int(steps), "table": "in memory, not counted as time"}
        yield Measure(f"planner/{name}/10M rows", seconds, "s", at_most=10, conditions=conditions)
        yield Measure(f"planner/{name}/10M rows, next epoch", later, "s", at_most=10, conditions=conditions)
        yield Measure(f"planner/{name}/rate", MANY / seconds / 1e6, "M rows/s", conditions=conditions)
        yield Measure(f"planner/{name}/peak of the process", gib, "GiB", at_most=2, conditions=conditions)


def plan_many(stage: str) -> None:
    """Plan ten million rows, and print seconds, GiB, steps, and seconds of the next epoch."""
    columns = mixed_table(MANY)
    planner, _ = planner_of(stage, columns, 64)
    start = time.perf_counter()
    plan = planner.plan(0)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    carry, steps = plan.carry, plan.num_steps
    del plan
    start = time.perf_counter()
    planner.plan(1, carry)
    print(seconds, peak, steps, time.perf_counter() - start)


def planner_of(stage: str, columns: Columns, ranks: int) -> tuple[Planner, int]:
    """Make the planner of a config, and return its accumulation too."""
    cfg = read_config(ROOT / "configs" / f"{stage}.py")
    accumulation = cfg["accumulation_steps"]
    buckets = Buckets(cfg["bucket_config"])
    rules = PlanRules(max_dropped=1.0)
    return Planner("mixed", columns, buckets, ranks * accumulation, 0, 1, rules), accumulation


def balance() -> Iterator[Measure]:
    """Mean over the steps of the largest cost of a process by their mean cost, for both rules."""
    columns = mixed_table(MIX)
    for stage, name in zip(STAGES, SHORT, strict=True):
        for ranks in (8, 64):
            planner, accumulation = planner_of(stage, columns, ranks)
            plan = planner.plan(0)
            conditions = {
                "rows": MIX,
                "ranks": ranks,
                "accumulation": accumulation,
                "steps": plan.num_steps,
                "cost": "pixels",
            }
            where = f"planner/{name}/{ranks} ranks"
            yield Measure(
                f"{where}/imbalance", plan.imbalance(ranks), "x", at_most=1.05, conditions=conditions
            )
            found = Published(planner.buckets, columns, ranks).epoch(0)
            published = found.imbalance(ranks, accumulation)
            yield Measure(f"{where}/imbalance, published rule", published, "x", conditions=conditions)
            rare, common = window_shares(plan, planner.buckets)
            conditions = {**conditions, "window": "50 steps"}
            yield Measure(
                f"{where}/share of common buckets, largest deviation",
                100 * common,
                "%",
                at_most=20,
                conditions={**conditions, "common": "from 25 batches per window"},
            )
            yield Measure(
                f"{where}/share of rare buckets, largest deviation",
                rare,
                "batches",
                at_most=5,
                conditions={**conditions, "rare": "below 25 batches per window"},
            )


def window_shares(plan: EpochPlan, buckets: Buckets, window: int = 50) -> tuple[float, float]:
    """Compare the batches of each bucket in all windows of consecutive steps with its share of the epoch.

    Args:
        plan: The plan.
        buckets: Its buckets; no two shapes have the same size.
        window: Steps.

    Returns:
        The largest deviation of buckets with less than 25 batches per window, in batches; and of the others,
        as a share of what is expected.
    """
    bucket_of = {shape[2:5]: shape.bucket for shape in buckets.shapes}
    sizes, inverse = np.unique(plan.sizes, axis=0, return_inverse=True)
    bucket = np.array([bucket_of[tuple(size)] for size in sizes.tolist()])[inverse.reshape(-1)]
    rare = common = 0.0
    for number in np.unique(bucket):
        total = np.cumsum((bucket == number).reshape(plan.num_steps, -1).sum(1))
        found = total[window - 1 :] - np.concatenate([[0], total[:-window]])
        expected = total[-1] / plan.num_steps * window
        deviation = float(np.abs(found - expected).max(initial=0))
        if expected < 25:
            rare = max(rare, deviation)
        else:
            common = max(common, deviation / expected)
    return rare, common


def lost_rows() -> Iterator[Measure]:
    """Rows that fit a bucket, and that no batch of several epochs holds, for both rules."""
    columns = mixed_table(MIX)
    for stage, name in zip(STAGES, SHORT, strict=True):
        planner, accumulation = planner_of(stage, columns, 64)
        whole = Assignment.of(planner.buckets, columns)
        fits = (whole.fits >= 0).any(0)[whole.kind]
        ours, theirs = np.zeros(MIX, dtype=bool), np.zeros(MIX, dtype=bool)
        plan = None
        for epoch in range(EPOCHS):
            plan = planner.plan(epoch, None if plan is None else plan.carry)
            ours[plan.rows] = True
            theirs[Published(planner.buckets, columns, 64).epoch(epoch).rows] = True
        conditions = {"rows": MIX, "fit a bucket": int(fits.sum()), "epochs": EPOCHS, "ranks": 64}
        for rule, seen in (("ours", ours), ("published rule", theirs)):
            yield Measure(
                f"planner/{name}/rows never seen, {rule}",
                int((fits & ~seen).sum()),
                "rows",
                conditions=conditions,
            )


def small_tables(cases: int = 500) -> Iterator[Measure]:
    """Small tables on several processes: how many rows an epoch loses, and plans without a step."""
    lost: dict[str, list[float]] = {"ours, 4 epochs": [], "published rule, 4 epochs": []}
    empty = {"ours": 0, "published rule": 0}
    for seed in range(cases):
        rng = np.random.default_rng(seed)
        count, ranks = int(rng.integers(100, 1000)), int(rng.choice([2, 4, 8]))
        columns = mixed_table(count, seed)
        lengths = rng.choice([17, 51, 102], 2, replace=False)
        entries = {int(frames): (1.0, int(rng.integers(2, 9))) for frames in lengths}
        buckets = Buckets({"240p": {1: (1.0, int(rng.integers(4, 20))), **entries}})
        fits = (whole := Assignment.of(buckets, columns)).fits.max(0)[whole.kind] >= 0
        planner = Planner("small", columns, buckets, ranks, seed, 1, PlanRules("carry", "merge", 1.0))
        seen = {name: np.zeros(count, dtype=bool) for name in lost}
        plan, steps = None, 0
        for epoch in range(EPOCHS):
            try:
                plan = planner.plan(epoch, None if plan is None else plan.carry)
                seen["ours, 4 epochs"][plan.rows] = True
            except ValueError:  # says what to change
                empty["ours"] += epoch == 0
                break
        for epoch in range(EPOCHS):
            found = Published(buckets, columns, ranks).epoch(epoch)
            seen["published rule, 4 epochs"][found.rows] = True
            steps += len(found.costs) // ranks
        empty["published rule"] += steps == 0
        for name, rows in seen.items():
            lost[name].append(float((fits & ~rows).sum() / max(1, fits.sum())))
    conditions = {"tables": cases, "rows": "100 to 1000", "ranks": "2, 4, 8"}
    for name, shares in lost.items():
        for label, q in (("median", 0.5), ("worst tenth", 0.9)):
            value = 100 * float(np.quantile(shares, q))
            yield Measure(
                f"planner/small/rows never seen, {label}, {name}", value, "%", conditions=conditions
            )
    for name, value in empty.items():
        what = "an error that says what to change" if name == "ours" else "silently"
        yield Measure(
            f"planner/small/plans without a step, {name}",
            value,
            "plans",
            conditions={**conditions, "how": what},
        )


class Published:
    """The sampler of Open-Sora 1.2 and 1.3 with `drop_last`, as its rules are described.

    A clip needs more frames than a length. Of each bucket the last rows that fill no batch are dropped, in
    table order, before the shuffle: they are the same in every epoch. The batches of all buckets are
    shuffled, and the last that do not give every process as many are dropped too.

    Args:
        buckets: Where clips belong.
        columns: Length, height and width of each file.
        ranks: Processes.
    """

    def __init__(self, buckets: Buckets, columns: Columns, ranks: int) -> None:
        length, height, width = columns
        self.columns = np.where(length > 1, length - 1, length), height, width  # strictly longer
        self.buckets, self.ranks = buckets, ranks

    def epoch(self, epoch: int) -> "PublishedEpoch":
        """Plan an epoch."""
        rng = np.random.default_rng(epoch)
        shape = Assignment.of(self.buckets, self.columns).draw(0, epoch).shape
        rows = np.argsort(shape, kind="stable")[int((shape < 0).sum()) :]
        count = np.bincount(shape[rows], minlength=len(self.buckets.shapes))
        size = np.array([max(1, s.batch_size) for s in self.buckets.shapes])
        place = np.arange(len(rows)) - np.repeat(np.cumsum(count) - count, count)
        batches = count // size
        kept = rows[place < np.repeat(batches * size, count)]
        number = np.repeat(np.arange(len(count)), batches)
        cut = rng.permutation(len(number))[: len(number) // self.ranks * self.ranks]
        # The rows of a bucket are shuffled, so which of them fall to the batches that are dropped differs.
        kept = kept[np.lexsort((rng.random(len(kept)), np.repeat(number, size[number])))]
        is_used = np.zeros(len(number), dtype=bool)
        is_used[cut] = True
        pixels = np.array([s.num_frames * s.height * s.width * s.batch_size for s in self.buckets.shapes])
        return PublishedEpoch(kept[np.repeat(is_used, size[number])], pixels[number[cut]])


class PublishedEpoch:
    """What such an epoch holds.

    Args:
        rows: Rows that are used.
        costs: Pixels of each batch, in the order in which processes take them.
    """

    def __init__(self, rows: np.ndarray, costs: np.ndarray) -> None:
        self.rows, self.costs = rows, costs

    def imbalance(self, ranks: int, accumulation: int) -> float:
        """Return the mean over the steps of the largest cost of a process by their mean cost."""
        steps = len(self.costs) // (ranks * accumulation)
        cost = self.costs[: steps * ranks * accumulation].reshape(steps, accumulation, ranks).sum(1)
        return float((cost.max(1) / cost.mean(1)).mean())
