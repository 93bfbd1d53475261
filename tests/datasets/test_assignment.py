"""Which clip belongs to which bucket, against the rules written as a loop."""

import numpy as np
import pytest

from opensora.datasets import assignment as module
from opensora.datasets.assignment import (
    NO_IMAGES,
    NO_VIDEOS,
    PROBABILITY,
    REASONS,
    STARVED,
    TAKEN,
    TOO_SHORT,
    TOO_SMALL,
    Assignment,
)
from opensora.datasets.buckets import Buckets, hashed_uniform
from opensora.datasets.resolutions import area, nearest_ratio, resolution_names, sizes

CONFIG = {
    "144p": {1: (0.7, 9), 17: (0.5, 4), 51: (1.0, 2)},
    "360p": {17: ((0.5, 0.6), 3), 51: (0.3, 1), 102: (0.0, None)},
    "720p": {1: (1.0, 2), 51: ((1.0, 0.4), 1)},
}


def assign(buckets, columns, seed=0, epoch=0, interval=1):
    return Assignment.of(buckets, columns, interval).draw(seed, epoch)


def columns(seed, count):
    rng = np.random.default_rng(seed)
    length = rng.choice([1, 2, 16, 17, 18, 33, 34, 50, 51, 52, 102, 200], count)
    return length, rng.integers(60, 1200, count), rng.integers(60, 1200, count)


def by_hand(config, num_frames, height, width, row, seed, epoch, interval):
    """Follow the rules for one clip; the order of resolutions and lengths is found anew."""
    ordered = sorted(config, key=lambda name: -area(name))
    number = 0
    for name in ordered:
        lengths = sorted(config[name], reverse=True)
        if height * width >= 0.8 * area(name):
            for place, frames in enumerate(lengths):
                probability, batch_size = config[name][frames]
                keep, considered = probability if isinstance(probability, tuple) else (probability, None)
                if (frames == 1) != (num_frames == 1):
                    continue
                if frames > 1 and num_frames < frames * interval:
                    continue
                u = [
                    float(hashed_uniform(seed, epoch, np.array([row]), number + place, i)[0]) for i in (0, 1)
                ]
                if considered is not None and u.pop(0) >= considered:
                    continue
                if u[0] < keep:
                    return name, frames, nearest_ratio(name, height, width)
                break
        number += len(lengths)
    return None


def by_hand_ratio_first(config, num_frames, height, width, row, seed, epoch):
    """Follow the rule "ratio" for one clip: the nearest aspect ratio of all, then sizes inside the clip."""
    ordered = sorted(config, key=lambda name: -area(name))
    every = list(dict.fromkeys(key for name in ordered for key in sizes(name)))
    nearest = min(every, key=lambda key: abs(float(key) - height / width))
    fitting = [name for name in ordered if nearest in sizes(name)]
    for name in list(fitting):
        h, w = sizes(name)[nearest]
        if height >= h and width >= w:
            break
        fitting.remove(name)
    number = 0
    for name in ordered:
        lengths = sorted(config[name], reverse=True)
        for place, frames in enumerate(lengths if name in fitting else ()):
            probability, _ = config[name][frames]
            keep, considered = probability if isinstance(probability, tuple) else (probability, None)
            if (frames == 1) != (num_frames == 1) or num_frames < frames:
                continue
            u = [float(hashed_uniform(seed, epoch, np.array([row]), number + place, i)[0]) for i in (0, 1)]
            if considered is not None and u.pop(0) >= considered:
                continue
            if u[0] < keep:
                return name, frames, nearest
            break
        number += len(lengths)
    return None


def test_ratio_first_equals_its_rules_clip_by_clip():
    config = {**CONFIG, "256": {1: (0.5, 3), 17: (0.8, 2)}}
    buckets = Buckets(config, rule="ratio")
    table = assign(buckets, columns(5, 600), 3, 2)
    taken = set()
    for row, (t, h, w) in enumerate(zip(*columns(5, 600), strict=True)):
        found = None
        if table.shape[row] >= 0:
            shape = buckets.shapes[table.shape[row]]
            found = (buckets.buckets[shape.bucket].resolution, shape.num_frames, shape.aspect_ratio)
            assert h >= shape.height and w >= shape.width  # nothing is enlarged
            taken.add((found[0], t == 1))
        assert found == by_hand_ratio_first(config, t, h, w, row, 3, 2)
    assert len(taken) >= 6 and ("144p", True) in taken  # images too, and the smallest resolution
    assert not np.array_equal(table.shape, assign(Buckets(config), columns(5, 600), 3, 2).shape)
    assert buckets.fingerprint != Buckets(config).fingerprint
    with pytest.raises(ValueError, match="bucket_rule='first'"):
        Buckets(config, rule="first")


def test_tables_shrink_in_both_directions():
    """What the rule "ratio" relies on: of one aspect ratio, a size of a smaller resolution lies inside."""
    names = sorted(resolution_names(), key=lambda name: -area(name))
    for place, larger in enumerate(names):
        for smaller in names[place + 1 :]:
            for key in sizes(larger).keys() & sizes(smaller).keys():
                assert np.less_equal(sizes(smaller)[key], sizes(larger)[key]).all()


def test_a_lookup_of_a_ratio_is_a_comparison_with_all():
    """Also in the middle of two keys, where one unit in the last place decides."""
    for name in ("360p", "512"):
        keys = sorted(float(key) for key in sizes(name))
        width = 20_000
        middles = [(a + b) / 2 for a, b in zip(keys, keys[1:], strict=False)]
        heights = np.array([round(m * width) + d for m in middles for d in (-1, 0, 1)])
        rows = (np.full(len(heights), 17), heights, np.full(len(heights), width))
        buckets = Buckets({name: {17: (1.0, 1)}})
        found = [buckets.shapes[n].aspect_ratio for n in assign(buckets, rows).shape]
        assert found == [nearest_ratio(name, int(h), width) for h in heights]


def closed(config, rows, merge=False, excluded=()):
    buckets = Buckets(config)
    found = Assignment.of(buckets, rows).close_starved(np.array(excluded, dtype=np.int64), merge)
    table = found.draw(0, 0)
    names = [None if n < 0 else (buckets.shapes[n][2], buckets.shapes[n].aspect_ratio) for n in table.shape]
    return found, table, names


def rows_of(*clips):
    return tuple(np.array(column) for column in zip(*clips, strict=True))


def test_clips_of_a_starved_bucket_go_to_the_next_one():
    wide, tall = (360, 640), (640, 360)
    config = {"360p": {51: (1.0, 3), 17: (1.0, 2)}}
    rows = rows_of((60, *wide), (60, *wide), (20, *wide), (60, *tall))
    found, table, names = closed(config, rows)
    assert names == [(17, "0.56")] * 3 + [None]  # two long clips become shorter; a portrait alone is lost
    assert table.reason[3] == STARVED
    assert sorted((s.rows, s.home) for s in found.starved) == [(1, None), (1, None), (2, None)]
    found, table, names = closed(config, rows, merge=True)
    assert names == [(17, "0.56")] * 3 + [(17, "0.56")]
    left = closed(config, rows, excluded=[0, 3])[2]
    assert left[1:3] == [(17, "0.56")] * 2  # one long clip is left, which alone fills no batch


def test_starved_ratios_share_a_batch():
    rows = rows_of((60, 360, 640), (60, 640, 360), (60, 640, 360), (60, 480, 480))
    assert closed({"360p": {51: (1.0, 4)}}, rows)[2] == [None] * 4
    found, _, names = closed({"360p": {51: (1.0, 4)}}, rows, merge=True)
    assert names == [(51, "1.78")] * 4  # the ratio of most
    assert len([s for s in found.starved if s.home is not None]) == 2
    assert found.eligible.sum() == 4


def test_probabilities_do_not_starve():
    """A bucket that a clip may go to in some epoch can fill a batch in the end."""
    rows = rows_of(*[(60, 720, 1280)] * 5)
    config = {"720p": {51: (0.1, 5)}, "360p": {51: ((1.0, 0.0), 2), 17: (1.0, 6)}}
    found, table, names = closed(config, rows)
    shapes = found.buckets.shapes
    ever = {(s[2], s.batch_size): int(n) for s, n in zip(shapes, found.eligible, strict=True) if n}
    assert ever == {(51, 5): 5}  # never 51 frames of 360p, and five are too few for six
    assert {s.rows for s in found.starved} == {5}


@pytest.mark.parametrize("interval", [1, 2])
def test_equals_the_rules_clip_by_clip(interval):
    buckets = Buckets(CONFIG)
    table = assign(buckets, columns(0, 400), 3, 2, interval)
    for row, (t, h, w) in enumerate(zip(*columns(0, 400), strict=True)):
        expected = by_hand(CONFIG, t, h, w, row, 3, 2, interval)
        found = None
        if table.shape[row] >= 0:
            shape = buckets.shapes[table.shape[row]]
            resolution = buckets.buckets[shape.bucket].resolution
            found = (resolution, shape.num_frames, shape.aspect_ratio)
            assert (shape.height, shape.width) == sizes(resolution)[shape.aspect_ratio]
        assert found == expected
        assert (table.reason[row] == TAKEN) == (found is not None)


def test_pieces_make_no_difference(monkeypatch):
    whole = assign(Buckets(CONFIG), columns(1, 300))
    monkeypatch.setattr(module, "CHUNK", 7)
    pieces = assign(Buckets(CONFIG), columns(1, 300))
    assert np.array_equal(pieces.shape, whole.shape) and np.array_equal(pieces.reason, whole.reason)


@pytest.mark.parametrize("frames, interval", [(17, 1), (51, 1), (17, 3)])
def test_exactly_the_length_belongs(frames, interval):
    buckets = Buckets({"360p": {frames: (1.0, 1)}})
    length = np.array([frames * interval - 1, frames * interval, frames * interval + 1])
    table = assign(buckets, (length, np.full(3, 360), np.full(3, 640)), interval=interval)
    assert table.reason.tolist() == [TOO_SHORT, TAKEN, TAKEN]


def test_reasons():
    def reason(config, num_frames, height=360, width=640):
        table = assign(Buckets(config), tuple(np.array([n]) for n in (num_frames, height, width)))
        assert table.counts()[REASONS[table.reason[0]]] == 1
        return table.reason[0]

    videos, images, both = {17: (1.0, 1)}, {1: (1.0, 1)}, {1: (1.0, 1), 17: (1.0, 1)}
    assert reason({"360p": both}, 17) == TAKEN
    assert reason({"360p": both}, 16) == TOO_SHORT
    assert reason({"360p": both}, 99, 287, 640) == TOO_SMALL
    assert reason({"360p": videos}, 1) == NO_IMAGES
    assert reason({"360p": images}, 20) == NO_VIDEOS
    assert reason({"360p": {17: (0.0, None)}}, 17) == PROBABILITY
    assert reason({"360p": both}, 0, 0, 0) == TOO_SMALL  # a file that could not be read
    assert reason({"360p": {51: (1.0, 1)}, "144p": {17: (0.0, 1)}}, 20) == PROBABILITY  # the nearest miss
    assert reason({"720p": both, "360p": images}, 20) == NO_VIDEOS


def test_draws_have_their_probabilities():
    count = 20_000
    length, height, width = np.full(count, 60), np.full(count, 360), np.full(count, 640)
    buckets = Buckets({"360p": {51: ((0.5, 0.6), 1), 17: (0.2, 1)}})
    table = assign(buckets, (length, height, width))
    taken = [buckets.shapes[s].num_frames for s in table.shape if s >= 0]
    assert taken.count(51) / count == pytest.approx(0.6 * 0.5, abs=0.01)
    assert taken.count(17) / count == pytest.approx(0.4 * 0.2, abs=0.01)
    again = assign(buckets, (length, height, width))
    assert np.array_equal(table.shape, again.shape)
    other = assign(buckets, (length, height, width), epoch=1)
    assert not np.array_equal(table.shape, other.shape)


def test_hash_is_uniform_and_named():
    rows = np.arange(50_000)
    u = hashed_uniform(7, 0, rows, 3, 0)
    assert u.min() >= 0 and u.max() < 1
    assert np.abs(np.histogram(u, 20, (0, 1))[0] / len(rows) - 0.05).max() < 0.005
    assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 0.02
    for other in ((8, 0, 3, 0), (7, 1, 3, 0), (7, 0, 4, 0), (7, 0, 3, 1)):
        v = hashed_uniform(other[0], other[1], rows, *other[2:])
        assert abs(np.corrcoef(u, v)[0, 1]) < 0.02
    assert np.array_equal(hashed_uniform(7, 0, rows[::-1], 3, 0), u[::-1])


def test_resolutions_of_one_area_stay_apart():
    buckets = Buckets({"360p": {17: (0.0, None), 49: (0.0, None)}, "360p_16d": {17: (1.0, 1), 51: (1.0, 1)}})
    assert [(b.resolution, b.num_frames) for b in buckets.buckets] == [
        ("360p", 49),
        ("360p", 17),
        ("360p_16d", 51),
        ("360p_16d", 17),
    ]


def test_one_size_takes_every_long_clip():
    buckets = Buckets.fixed(17, 64, 96, 4)
    table = assign(buckets, (np.array([16, 17, 500, 1]), np.full(4, 20), np.full(4, 2000)))
    assert table.reason.tolist() == [TOO_SHORT, TAKEN, TAKEN, NO_IMAGES]
    assert buckets.shapes[0][2:] == (17, 64, 96, 4)
    with pytest.raises(ValueError, match="batch_size=0"):
        Buckets.fixed(17, 64, 96, 0)


def test_fingerprint_names_the_config():
    assert Buckets(CONFIG).fingerprint == Buckets(dict(reversed(CONFIG.items()))).fingerprint
    assert Buckets(CONFIG).fingerprint != Buckets({**CONFIG, "144p": {1: (0.7, 8)}}).fingerprint


def test_evaluation_takes_all_that_fits():
    buckets = Buckets({"360p": {17: (None, 2)}}, "evaluate")
    table = assign(buckets, tuple(np.full(3, n) for n in (20, 360, 640)))
    assert table.counts()["taken"] == 3
