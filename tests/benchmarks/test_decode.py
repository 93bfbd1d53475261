"""The benchmark of decoding on a small file: its readers agree, and its figures are ratios of each other."""

import pytest

from benchmarks import decode


def test_readers_agree_and_figures_fit_each_other(monkeypatch):
    small = dict(FRAMES=70, HEIGHT=96, WIDTH=160, SIDE=32, GOPS=(12,), ROUNDS=1)
    for name, value in small.items():
        monkeypatch.setattr(decode, name, value)
    found = {measure.name: measure for measure in decode.run()}
    rates = {name.removeprefix("decode/gop12/"): m.value for name, m in found.items() if m.unit == "clips/s"}
    assert {"ours", "naive", "stop at the last", "opencv", "torchcodec", "ours, swscale"} == rates.keys()
    assert all(
        rate > 0 or "not installed" in found[f"decode/gop12/{name}"].conditions
        for name, rate in rates.items()
    )
    over = found["decode/gop12/ours over naive"]
    assert over.value == pytest.approx(rates["ours"] / rates["naive"]) and over.at_least == 3.0
    stop = found["decode/gop12/ours, time over stop at the last"]
    assert stop.value == pytest.approx(rates["stop at the last"] / rates["ours"]) and stop.at_most == 1.05


def test_a_reader_with_other_frames_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(decode, "HEIGHT", 96)
    monkeypatch.setattr(decode, "WIDTH", 160)
    path = str(decode.write_file(tmp_path / "small.mp4", 12, frames=70))
    wrong = {
        "naive": decode.naive,
        "wrong": lambda path, numbers: decode.naive(path, [n + 2 for n in numbers]),
    }
    with pytest.raises(AssertionError, match="wrong reads other frames"):
        decode._check_pixels(path, wrong, 5)
