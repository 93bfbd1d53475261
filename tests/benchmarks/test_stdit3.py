"""The benchmark of STDiT3: what its bare products replay, and which calls take turns."""

import pytest
import torch

from benchmarks import stdit3
from benchmarks.bare import BareProducts
from opensora.layers.host_attention import host_attention


def test_the_ignored_start_of_a_sum_is_neither_copied_nor_given_a_gradient():
    q, k, v = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 7, 8), torch.randn(2, 3, 7, 8)
    with BareProducts() as products, torch.no_grad():
        host_attention(q, k, v)
    function, (start, *rest), _ = products.calls[0]
    assert function is torch.baddbmm
    assert start.untyped_storage().nbytes() == start.element_size()
    assert [x.requires_grad for x in (start, *rest)] == [False, True, True]
    products.replay_with_gradients()


@pytest.mark.parametrize(("dtype", "calls"), [("fp32", ["ours", "bare"]), ("bf16", ["ours", "bare", "fp32"])])
@pytest.mark.parametrize("mode", stdit3.MODES)
def test_precisions_take_turns(dtype, calls, mode, monkeypatch):
    monkeypatch.setattr(stdit3, "OVER_BARE", {(16, 1, 4, 4): 1.15})
    monkeypatch.setattr(stdit3, "REPEATS", {(16, 1, 4, 4): 2})
    monkeypatch.setattr(stdit3, "fresh_process", lambda *_: 1.0)
    turns = []

    def timed(given, repeats):
        assert repeats == 2
        turns.extend(given)
        for call in given.values():
            call()
        return dict.fromkeys(given, 2.0)

    monkeypatch.setattr(stdit3, "interleaved", timed)
    measures = {m.name: m for m in stdit3._case("x", (16, 1, 4, 4), False, dtype, mode)}
    assert turns == calls
    assert ("x/over_fp32" in measures) == (dtype == "bf16")
    assert measures["x/over_bare"].value == 1.0
