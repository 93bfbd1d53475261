"""What of a config makes a run what it is."""

import pytest

from opensora.engine.run_settings import differences, listed_differences, run_settings
from opensora.utils.config_defaults import base_configs


def settings(table="40 rows", **changes):
    base = base_configs()
    return run_settings(
        {**base["video"], **base["runtime"], "model": {"depth": 2, "from_pretrained": None}, **changes}, table
    )


def changed(**changes):
    return differences(settings(), settings(**changes))


def test_what_matters_is_found_with_both_values():
    assert changed(seed=43, table="41 rows") == ['table: "40 rows" -> "41 rows"', "seed: 42 -> 43"]
    assert changed(model={"depth": 3, "from_pretrained": None}) == ["model.depth: 2 -> 3"]
    assert changed(bucket_config={"360p": {49: (1.0, 4)}}) == [
        "bucket_config: null -> absent",
        "bucket_config.360p.49: absent -> [1.0, 4]",
    ]
    assert changed(key_of_a_later_version=None) == ["key_of_a_later_version: absent -> null"]


@pytest.mark.parametrize(
    "changes",
    [
        {"outputs": "elsewhere", "log_every": 1, "ckpt_keep": 3, "plugin": "ddp", "num_workers": 0},
        {"epochs": 7, "max_steps": 9},
        {"model": {"depth": 2, "from_pretrained": "weights.safetensors"}},
        {"dataset": {**base_configs()["video"]["dataset"], "data_path": "moved.csv", "root": "there"}},
    ],
)
def test_what_does_not_matter_passes(changes):
    assert not changed(**changes)


def test_the_length_matters_where_the_rate_falls_towards_the_end():
    cosine = {**base_configs()["runtime"]["lr_schedule"], "cosine": True}
    one, two = settings(lr_schedule=cosine), settings(lr_schedule=cosine, max_steps=9)
    assert differences(one, two) == ["max_steps: null -> 9"]


def test_a_long_list_is_cut():
    found = [f"key{i}: 0 -> 1" for i in range(9)]
    assert listed_differences(found).endswith("key5: 0 -> 1 (and 3 more)")
    assert listed_differences(found[:2]) == "key0: 0 -> 1; key1: 0 -> 1"
