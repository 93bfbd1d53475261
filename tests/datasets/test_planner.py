"""Plans of epochs: what holds for every table, every config and every number of processes."""

from dataclasses import replace

import numpy as np
import pytest

from opensora.datasets.assignment import REASONS
from opensora.datasets.buckets import Buckets, ClipIndex
from opensora.datasets.epoch_plan import EpochPlan
from opensora.datasets.planner import Planner, PlanRules
from opensora.datasets.samplers import BucketSampler

STAGE = {  # of a published training: images and clips of five lengths
    "360p": {1: (1.0, 60), 49: (1.0, 5), 65: (1.0, 3), 81: (1.0, 3), 97: (1.0, 2), 113: (1.0, 2)},
}


def table(seed, count, lengths=(1, 1, 16, 17, 40, 51, 60)):
    rng = np.random.default_rng(seed)
    sides = [(144, 256), (256, 144), (360, 640), (480, 480), (720, 1280)]
    height, width = np.array(sides)[rng.integers(0, len(sides), count)].T
    return rng.choice(lengths, count), height, width


FREE = PlanRules(max_dropped=1.0)


def rows_of(plan):
    return [clip.row for number in range(len(plan.sizes)) for clip in plan.batch(number)]


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_processes_only_share_out(ranks):
    planner = Planner(
        "table",
        table(0, 400),
        Buckets({"144p": {1: (0.8, 3), 16: (0.6, 2), 51: (1.0, 2)}, "360p": {17: (0.7, 1)}}),
        4,
        1,
    )
    whole = planner.plan(0)
    parts = [list(BucketSampler(planner, rank, ranks)) for rank in range(ranks)]
    share = 4 // ranks
    for step in range(whole.num_steps):
        found = [batch for part in parts for batch in part[step * share : (step + 1) * share]]
        assert sorted(found) == sorted(whole.step(step))


@pytest.mark.parametrize("ranks", [1, 2])
def test_resuming_is_an_offset(ranks):
    def planner():
        return Planner("table", table(1, 300), Buckets({"144p": {1: (0.5, 3), 16: (0.7, 2)}}), 2, 9)

    sampler = BucketSampler(planner(), ranks - 1, ranks)
    sampler.next_epoch()
    whole = list(sampler)
    fresh, running = planner(), sampler.plan
    start = sampler.plan.num_steps // 2
    resumed = BucketSampler(fresh, ranks - 1, ranks, fresh.plan(1, running.carried, running.excluded), start)
    assert list(resumed) == whole[start * 2 // ranks :]
    assert len(resumed) == len(list(resumed))
    resumed.next_epoch()
    sampler.next_epoch()
    assert resumed.plan.hash == sampler.plan.hash
    assert resumed.plan.carried.size > 0


def test_a_plan_is_a_function_of_its_inputs():
    buckets = Buckets({"144p": {1: (0.5, 3), 16: (0.7, 2)}})
    base = Planner("table", table(2, 300), buckets, 2, 9)
    plan = base.plan(0)
    assert replace(base).plan(0).hash == plan.hash
    changes = [
        replace(base, table_fingerprint="other").plan(0),
        replace(base, buckets=Buckets({"144p": {1: (0.5, 3), 16: (0.7, 4)}})).plan(0),
        replace(base, batches_per_step=1).plan(0),
        replace(base, seed=8).plan(0),
        replace(base, frame_interval=2).plan(0),
        base.plan(1),
        base.plan(0, carry=plan.carry),
        base.plan(0, excluded=plan.rows[:1]),
    ]
    assert len({plan.hash for plan in changes} | {plan.hash}) == len(changes) + 1


def test_what_is_left_over_goes_first():
    """Seven clips, batches of five: the two that are left come in the next epoch, whatever the draws."""
    columns = (np.full(7, 20), np.full(7, 144), np.full(7, 256))
    planner = Planner("table", columns, Buckets({"144p": {16: (1.0, 5)}}), 1, 0)
    plan = planner.plan(0)
    for epoch in range(1, 5):
        left = plan.carry[:, 0].tolist()
        assert len(left) == 2
        plan = planner.plan(epoch, plan.carry)
        assert plan.batch(0)[:2] == [ClipIndex(row, 16, 144, 256, epoch) for row in left]


def test_left_over_batches_are_not_left_over_again():
    """Five batches, two per step: the one that fills no step is in the next epoch."""
    columns = (np.full(20, 20), np.full(20, 144), np.full(20, 256))
    planner = Planner("table", columns, Buckets({"144p": {16: (1.0, 4)}}), 2, 0)
    plan = planner.plan(0)
    for epoch in range(1, 8):
        left = set(plan.carry[:, 0].tolist())
        assert len(left) == 4
        plan = planner.plan(epoch, plan.carry)
        assert left <= set(rows_of(plan))


def test_clips_left_over_before_never_end_a_run(caplog):
    """Of four shapes, so many batches can be owed that no step fits around them; then some wait again."""
    again = 0
    for seed in range(40):
        sides = np.array([(300, 300), (300, 400), (400, 300), (300, 533)])
        height, width = sides[np.random.default_rng(seed).integers(0, 4, 64)].T
        buckets = Buckets({"256": {17: (1.0, 4)}})
        planner = Planner("table", (np.full(64, 40), height, width), buckets, 8, seed, rules=FREE)
        plan = planner.plan(0)
        for epoch in range(1, 6):
            caplog.clear()
            owed = plan.carry[plan.carry[:, 2] > 0, 0]
            plan = planner.plan(epoch, plan.carry)
            assert plan.num_steps >= 1 and len(set(rows_of(plan))) == len(rows_of(plan))
            sizes = {tuple(size) for size in plan.sizes.tolist()}
            has_batch = np.array([shape[2:5] in sizes for shape in buckets.shapes])
            cut = plan.carry[has_batch[plan.carry[:, 1]], 0]
            is_said = "so some of these clips are left over again" in caplog.text
            assert is_said or not np.isin(cut, owed).any()
            again += is_said
            assert planner.plan(epoch, plan.carried).hash == plan.hash  # as when resumed
    assert 0 < again < 150


def test_left_over_clips_keep_their_bucket():
    """They were drawn once; a second draw would lose some of them."""
    columns = table(4, 200)
    planner = Planner("table", columns, Buckets({"144p": {1: (0.2, 8), 16: (0.2, 8)}}), 1, 0)
    plan = planner.plan(0)
    assert len(plan.carry)
    after = planner.plan(1, plan.carry)
    left = set(after.carry[:, 0].tolist())
    assert set(plan.carry[:, 0].tolist()) <= set(rows_of(after)) | left


def test_excluded_rows_are_in_no_plan(tmp_path):
    planner = Planner("table", table(6, 200), Buckets({"144p": {1: (1.0, 7), 16: (0.9, 5)}}), 2, 3)
    before = planner.plan(0)
    gone = np.concatenate([before.carry[:2, 0], before.rows[:3]])
    plan = planner.plan(1, before.carry, np.concatenate([gone, gone[:1]]))
    assert plan.excluded.tolist() == sorted(gone.tolist())
    everywhere = [*rows_of(plan), *plan.carry[:, 0].tolist(), *plan.carried[:, 0].tolist()]
    assert not set(gone.tolist()) & set(everywhere)
    assert set(before.carry[2:, 0].tolist()) <= set(everywhere)
    assert plan.counts["excluded"] == 5
    assert sum(plan.counts[name] for name in REASONS) == 200
    plan.save(tmp_path / "plan.npz")
    assert EpochPlan.load(tmp_path / "plan.npz").excluded.tolist() == plan.excluded.tolist()
    with pytest.raises(ValueError, match="this table has 200 rows"):
        planner.plan(1, excluded=np.array([200]))
    with pytest.raises(ValueError, match=r"200 excluded(.|\n)*mend the files"):
        planner.plan(1, excluded=np.arange(200))


def test_steps_cost_the_same_on_all_processes():
    columns = table(3, 6000, lengths=(1, 1, 1, 1, 1, 1, 1, 1, 49, 65, 81, 97, 113))
    plan = Planner("table", columns, Buckets(STAGE), 8, 0).plan(0)
    costs = plan.costs.reshape(-1, 8)
    ratio = costs.max(1) / costs.mean(1)
    assert ratio.mean() < 1.05
    shuffled = np.random.default_rng(0).permutation(plan.costs).reshape(-1, 8)
    assert (shuffled.max(1) / shuffled.mean(1)).mean() > 1.15


def test_orders_are_random():
    columns = (np.full(400, 20), np.full(400, 144), np.full(400, 256))
    planner = Planner("table", columns, Buckets({"144p": {16: (1.0, 4)}}), 2, 0)
    one, two = (np.array(rows_of(planner.plan(epoch))) for epoch in (0, 1))
    assert not np.array_equal(one, two)
    assert abs(np.corrcoef(np.arange(400), one)[0, 1]) < 0.15
    assert abs(np.corrcoef(one, two)[0, 1]) < 0.15


def test_saved_plans(tmp_path):
    planner = Planner("table", table(1, 300), Buckets({"144p": {1: (1.0, 3)}}), 2, 9, rules=FREE)
    plan = planner.plan(0)
    path = tmp_path / "plan.npz"
    plan.save(path)
    assert EpochPlan.load(path).hash == plan.hash
    assert EpochPlan.load(path).counts == plan.counts
    assert [p.name for p in tmp_path.iterdir()] == ["plan.npz"]
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match="delete it"):
        EpochPlan.load(path)
    with pytest.raises(FileNotFoundError, match="no such plan"):
        EpochPlan.load(tmp_path / "none.npz")


def test_wrong_numbers():
    planner = Planner("table", table(1, 300), Buckets({"144p": {1: (1.0, 3)}}), 6, 9, rules=FREE)
    with pytest.raises(ValueError, match="not a multiple of the 4 processes; use 4 or 8"):
        BucketSampler(planner, 0, 4)
    with pytest.raises(ValueError, match="ranks go from 0"):
        BucketSampler(planner, 2, 2)
    with pytest.raises(ValueError, match="start_step=999"):
        BucketSampler(planner, 0, 2, start_step=999)
    with pytest.raises(ValueError, match="at least one batch"):
        replace(planner, batches_per_step=0).plan(0)
    with pytest.raises(ValueError, match="another table or bucket_config"):
        planner.plan(1, np.array([[500, 0, 0]]))


def test_stand_ins_have_the_same_shape():
    planner = Planner("table", table(1, 300), Buckets({"144p": {1: (0.5, 3), 16: (0.5, 2)}}), 1, 9)
    clip = planner.plan(0).batch(0)[0]
    rows = planner.same_shape(clip)
    assigned = planner.assignment(np.array([], dtype=np.int64)).draw(9, 0).shape
    assert clip.row in rows
    assert {planner.buckets.shapes[n][2:5] for n in assigned[rows]} == {clip[1:4]}
    assert len(planner.same_shape(clip._replace(epoch=1))) > 0
    gone = rows[::2]
    assert planner.same_shape(clip, gone).tolist() == rows[1::2].tolist()
    assert planner.same_shape(clip).tolist() == rows.tolist()


VIDEOS, NEVER, IMAGES = {49: (1.0, 5)}, {49: (0.0, 5)}, {1: (1.0, 5)}
RARELY = {49: (0.3, 5)}
EMPTY_PLANS = [
    # length, height, width, rows, lengths of 360p, batches per step, what the error says
    (49, 360, 640, 3, VIDEOS, 1, r"can never fill a batch(.|\n)*360 x 640: 3 rows for batches of 5"),
    (49, 360, 640, 3, VIDEOS, 1, r"\['360p'\]\[49\] to 3, or add 2 such clips"),
    (49, 360, 640, 9, RARELY, 1, r"in buckets, but too few(.|\n)*has 1 clips for batches of 5"),
    (49, 360, 640, 9, RARELY, 1, r"\['360p'\]\[49\] to 1, or add 4 such clips"),
    (49, 360, 640, 10, VIDEOS, 8, "2 full batches(.|\n)*Set batches_per_step=2"),
    (30, 360, 640, 10, VIDEOS, 1, r"10 too short(.|\n)*has 30 frames; .* 49(.|\n)*length of 30 or less"),
    (49, 100, 100, 10, VIDEOS, 1, "10 too small(.|\n)*10000 pixels, 360p needs 0.8 of its 230400"),
    (49, 360, 640, 10, NEVER, 1, "10 probability(.|\n)*raise them"),
    (1, 360, 640, 10, VIDEOS, 1, r"10 no bucket for images(.|\n)*add 1: \(1.0, BATCH\)"),
    (30, 360, 640, 10, IMAGES, 1, r"10 no bucket for videos(.|\n)*add 30: \(1.0, BATCH\)"),
    (1, 360, 640, 0, IMAGES, 1, "The table is empty"),
]


@pytest.mark.parametrize("length, height, width, rows, lengths, n, message", EMPTY_PLANS)
def test_no_step_is_an_error_with_a_remedy(length, height, width, rows, lengths, n, message):
    columns = tuple(np.full(rows, value) for value in (length, height, width))
    rules = PlanRules(max_dropped=1.0)
    with pytest.raises(ValueError, match=message):
        Planner("table", columns, Buckets({"360p": lengths}), n, 0, rules=rules).plan(0)


def test_the_remedies_work():
    """What the errors above propose gives a step."""
    columns = tuple(np.full(3, value) for value in (30, 360, 640))
    for config, n in [({"360p": {30: (1.0, 3)}}, 1), ({"360p": {30: (1.0, 1)}}, 3)]:
        assert Planner("table", columns, Buckets(config), n, 0).plan(0).num_steps == 1


def planned(columns, config, n=1, **rules):
    return Planner("table", columns, Buckets(config), n, 0, rules=PlanRules(**rules)).plan(0)


def mixed(*groups):
    """Make columns of (rows, frames, height, width)."""
    return tuple(np.concatenate([np.full(g[0], g[i]) for g in groups]) for i in (1, 2, 3))


DROPS = [
    # columns, lengths of 360p, rules; what the error says; the lengths and rules that it proposes
    (
        *(
            mixed((10, 49, 360, 640), (2, 30, 360, 640), (6, 20, 360, 640)),
            {49: (1.0, 1)},
            {"max_dropped": 0.4},
        ),
        r"drops 8 of 18 rows(.|\n)*8 too short(.|\n)*Add a length of 30 or less(.|\n)*max_dropped=0.445",
        *({49: (1.0, 1), 30: (1.0, 1)}, {"max_dropped": 0.4}),
    ),
    (
        *(mixed((10, 49, 360, 640), (8, 1, 360, 640)), {49: (1.0, 1)}, {"max_dropped": 0.4}),
        r"8 no bucket for images(.|\n)*add 1: \(1.0, BATCH\)",
        *({49: (1.0, 1), 1: (1.0, 8)}, {"max_dropped": 0.4}),
    ),
    (
        *(mixed((15, 49, 360, 640)), {49: (1.0, 8)}, {"max_dropped": 0.4}),
        r"7 fill no batch or no step(.|\n)*smaller batches(.|\n)*plan.remainder='pad'",
        *({49: (1.0, 8)}, {"max_dropped": 0.4, "remainder": "pad"}),
    ),
    (
        *(mixed((10, 49, 360, 640), (9, 49, 100, 100)), {49: (1.0, 1)}, {"max_dropped": 0.4}),
        r"9 too small(.|\n)*set plan.max_dropped=0.474",
        *({49: (1.0, 1)}, {"max_dropped": 0.474}),
    ),
]


@pytest.mark.parametrize("columns, lengths, rules, message, new_lengths, new_rules", DROPS)
def test_too_many_dropped_rows_are_an_error(columns, lengths, rules, message, new_lengths, new_rules):
    with pytest.raises(ValueError, match=message):
        planned(columns, {"360p": lengths}, **rules)
    assert planned(columns, {"360p": new_lengths}, **new_rules).num_steps


def test_starved_buckets_are_merged_dropped_or_an_error():
    columns = mixed((10, 60, 360, 640), (3, 20, 360, 640), (2, 60, 640, 360))
    config = {"360p": {49: (1.0, 5), 17: (1.0, 3)}}
    with pytest.raises(ValueError, match=r"49 frames, 640 x 360: 2 rows for batches of 5(.|\n)*'merge'"):
        planned(columns, config, starved="error")
    assert planned(columns, config, starved="merge").counts["starved"] == 0
    dropped = planned(columns, config, starved="drop")
    assert dropped.counts["starved"] == 2 and dropped.counts["used"] == 13
    alone = mixed((10, 60, 360, 640), (2, 1, 360, 640))
    with pytest.raises(
        ValueError, match=r"2 rows for batches of 3(.|\n)*plan.starved='drop' leaves them out"
    ):
        planned(alone, {"360p": {49: (1.0, 5), 1: (1.0, 3)}})


def test_padding_repeats_rows_and_leaves_none_over():
    columns = mixed((7, 20, 144, 256), (3, 1, 144, 256))
    plan = planned(columns, {"144p": {16: (1.0, 5), 1: (1.0, 3)}}, n=4, remainder="pad")
    assert plan.num_steps == 1 and set(plan.rows.tolist()) == set(range(10)) and len(plan.carry) == 0
    assert plan.counts["repeated"] == len(plan.rows) - 10 > 0


def test_owed_rows_go_before_all_others():
    """A batch was cut; next time it is in the plan, and so are the rows that were left over beside it."""
    columns = mixed((11, 20, 144, 256), (40, 20, 256, 144))
    planner = Planner("table", columns, Buckets({"144p": {16: (1.0, 4)}}), 6, 0)
    plan = planner.plan(0)
    for epoch in range(1, 12):
        owed = set(plan.carry[plan.carry[:, 2] > 0, 0].tolist())
        plan = planner.plan(epoch, plan.carry)
        assert owed and owed <= set(rows_of(plan))


def test_measured_costs_decide_the_steps(tmp_path):
    columns = mixed((40, 20, 144, 256), (40, 40, 144, 256))
    config = {"144p": {16: (1.0, 4), 32: (1.0, 4)}}
    path = tmp_path / "costs.json"
    path.write_text('{"144p": {"16": 3.0, "32": 1.0}}')
    base = {"bucket_rule": "resolution", "remainder": "carry", "starved": "merge", "max_dropped": 0.5}
    rules = PlanRules.from_config({**base, "costs": str(path)})
    assert rules == PlanRules(costs={"144p": {16: 3.0, 32: 1.0}})
    plan = Planner("table", columns, Buckets(config), 2, 0, rules=rules).plan(0)
    assert set(zip(plan.sizes[:, 0].tolist(), plan.costs.tolist(), strict=True)) == {(16, 3.0), (32, 1.0)}
    assert plan.imbalance(2) == pytest.approx(1.0) and plan.imbalance(1) == 1.0
    with pytest.raises(ValueError, match=r"plan.costs\['144p'\]\[32\] is None"):
        planned(columns, config, costs={"144p": {16: 3.0}})
    path.write_text("[1]")
    with pytest.raises(ValueError, match="no JSON of the form"):
        PlanRules.from_config({**base, "costs": str(path)})
    with pytest.raises(FileNotFoundError, match="no such file"):
        PlanRules.from_config({**base, "costs": str(tmp_path / "none.json")})
    for name, value in [("remainder", "keep"), ("starved", "no"), ("max_dropped", 2)]:
        with pytest.raises(ValueError, match=f"plan.{name}={value!r}"):
            PlanRules(**{name: value})


def shares(plan, frames, window=50):
    """Return how far any window of steps is from a bucket's share, and what is expected, in batches."""
    total = np.cumsum((plan.sizes[:, 0] == frames).reshape(plan.num_steps, -1).sum(1))
    found = total[window - 1 :] - np.concatenate([[0], total[:-window]])
    return np.abs(found - total[-1] / plan.num_steps * window).max(), total[-1] / plan.num_steps * window


@pytest.mark.parametrize("n", [1, 8, 12])
def test_steps_draw_from_one_mix(n):
    """In any 50 steps a bucket has its share within a fifth, or within five batches if it is rare."""
    lengths = (*(1,) * 40, *(49,) * 9, *(65,) * 5, 81, 97, 113, 113)
    rows = 45_000 if n > 1 else 8000
    plan = Planner("table", table(3, rows, lengths), Buckets(STAGE), n, 0).plan(0)
    assert plan.num_steps > 200
    for frames in STAGE["360p"]:
        off, expected = shares(plan, frames)
        assert off <= max(0.2 * expected, 5), (frames, off, expected)
    assert plan.imbalance(n) < 1.05
    if n > 1:  # what a shuffle gives
        shuffled = np.random.default_rng(0).permutation(plan.costs).reshape(-1, n)
        assert (shuffled.max(1) / shuffled.mean(1)).mean() > 1.1
