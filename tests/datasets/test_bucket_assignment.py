"""Which clip belongs to which bucket, against the rules written as a loop."""

import numpy as np
import pytest

from opensora.datasets import buckets as module
from opensora.datasets.buckets import (
    NO_IMAGES,
    NO_VIDEOS,
    PROBABILITY,
    REASONS,
    TAKEN,
    TOO_SHORT,
    TOO_SMALL,
    Buckets,
    hashed_uniform,
)
from opensora.datasets.resolutions import area, nearest_ratio, sizes

CONFIG = {
    "144p": {1: (0.7, 9), 17: (0.5, 4), 51: (1.0, 2)},
    "360p": {17: ((0.5, 0.6), 3), 51: (0.3, 1), 102: (0.0, None)},
    "720p": {1: (1.0, 2), 51: ((1.0, 0.4), 1)},
}


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


@pytest.mark.parametrize("interval", [1, 2])
def test_equals_the_rules_clip_by_clip(interval):
    buckets = Buckets(CONFIG)
    table = buckets.assign(*columns(0, 400), seed=3, epoch=2, frame_interval=interval)
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
    whole = Buckets(CONFIG).assign(*columns(1, 300), seed=0, epoch=0)
    monkeypatch.setattr(module, "_ROWS_AT_ONCE", 7)
    assert np.array_equal(Buckets(CONFIG).assign(*columns(1, 300), seed=0, epoch=0).shape, whole.shape)


@pytest.mark.parametrize("frames, interval", [(17, 1), (51, 1), (17, 3)])
def test_exactly_the_length_belongs(frames, interval):
    buckets = Buckets({"360p": {frames: (1.0, 1)}})
    length = np.array([frames * interval - 1, frames * interval, frames * interval + 1])
    table = buckets.assign(length, np.full(3, 360), np.full(3, 640), 0, 0, interval)
    assert table.reason.tolist() == [TOO_SHORT, TAKEN, TAKEN]


def test_reasons():
    def reason(config, num_frames, height=360, width=640):
        table = Buckets(config).assign(*(np.array([n]) for n in (num_frames, height, width)), seed=0, epoch=0)
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
    table = buckets.assign(length, height, width, seed=0, epoch=0)
    taken = [buckets.shapes[s].num_frames for s in table.shape if s >= 0]
    assert taken.count(51) / count == pytest.approx(0.6 * 0.5, abs=0.01)
    assert taken.count(17) / count == pytest.approx(0.4 * 0.2, abs=0.01)
    again = buckets.assign(length, height, width, seed=0, epoch=0)
    assert np.array_equal(table.shape, again.shape)
    other = buckets.assign(length, height, width, seed=0, epoch=1)
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
    table = buckets.assign(np.array([16, 17, 500, 1]), np.full(4, 20), np.full(4, 2000), 0, 0)
    assert table.reason.tolist() == [TOO_SHORT, TAKEN, TAKEN, NO_IMAGES]
    assert buckets.shapes[0][2:] == (17, 64, 96, 4)
    with pytest.raises(ValueError, match="batch_size=0"):
        Buckets.fixed(17, 64, 96, 0)


def test_fingerprint_names_the_config():
    assert Buckets(CONFIG).fingerprint == Buckets(dict(reversed(CONFIG.items()))).fingerprint
    assert Buckets(CONFIG).fingerprint != Buckets({**CONFIG, "144p": {1: (0.7, 8)}}).fingerprint


def test_evaluation_takes_all_that_fits():
    table = Buckets({"360p": {17: (None, 2)}}, "evaluate").assign(
        *(np.full(3, n) for n in (20, 360, 640)), 0, 0
    )
    assert table.counts()["taken"] == 3
