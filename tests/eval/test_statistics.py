"""Mean, deviation, interval and table."""

import pytest

from eval.statistics import over_runs, summarise, table


def test_mean_and_deviation_are_those_of_the_values():
    found = summarise([1.0, 2.0, 6.0])
    assert found["mean"] == 3.0 and found["deviation"] == pytest.approx(7**0.5) and found["clips"] == 3
    assert found["low"] < 3.0 < found["high"] and 1.0 <= found["low"] and found["high"] <= 6.0
    assert found == summarise([1.0, 2.0, 6.0])


def test_the_interval_covers_the_mean_of_the_population():
    import numpy as np

    random = np.random.default_rng(1)
    hits = sum(
        found["low"] <= 5.0 <= found["high"]
        for found in (summarise(random.normal(5, 2, size=40).tolist()) for _ in range(60))
    )
    assert hits >= 51  # of 60 at 95 %


def test_one_clip_has_no_interval():
    assert summarise([4.0]) == {"mean": 4.0, "clips": 1, "deviation": None, "low": None, "high": None}


def test_the_table_has_a_row_per_name_and_a_column_per_metric():
    rows = {
        "a": {"psnr": summarise([20.0, 22.0])},
        "b": {"psnr": summarise([30.0]), "ssim": summarise([0.9])},
    }
    lines = table(rows).splitlines()
    assert lines[0] == "| | psnr | ssim | clips |"
    assert lines[2].startswith("| a | 21 ± 1.4 (") and lines[2].endswith("|  | 2 |")
    assert lines[3] == "| b | 30 | 0.9 | 1 |"


def test_few_runs_have_a_t_interval():
    found = over_runs([1.0, 2.0, 3.0])
    half = 4.302653 / 3**0.5  # the quantile of two degrees of freedom in printed tables
    assert found["mean"] == 2.0 and found["runs"] == 3 and found["deviation"] == 1.0
    assert (found["low"], found["high"]) == (pytest.approx(2 - half), pytest.approx(2 + half))
    assert over_runs([4.0])["low"] is None
