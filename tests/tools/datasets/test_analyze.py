"""The pictures of a table: they are there, and show what the numbers say."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from opensora.datasets.buckets import Buckets
from opensora.datasets.manifest import read_manifest
from tools.datasets.page import draw_page, fill_of_buckets
from tools.datasets.run_config import RunConfig, read_run_config, rows_by_shape
from tools.datasets.sheet import draw_sheet

ANALYZE = "tools.datasets.analyze"


@pytest.fixture
def table(here, make_clip):
    """Write a table of clips and images, one of which is missing."""
    names = [make_clip(f"clip{n}.mp4", 20 + n, 144, 256) for n in range(3)]
    names += [make_clip(f"image{n}.png", 1, 144, 256) for n in range(2)] + ["gone.mp4"]
    rows = [f"{name},caption {name}" for name in names]
    (here / "t.csv").write_text("\n".join(["path,text", *rows]) + "\n")
    return here / "t.csv"


@pytest.fixture
def config(root):
    """Return the words for a small config with buckets."""
    buckets = "{'144p': {1: (1.0, 2), 17: (1.0, 2)}, '240p': {17: (1.0, 1)}}"
    return [str(root / "configs/opensora-v1-3/train/stage1.py"), "--bucket-config", buckets]


def test_pictures_with_and_without_buckets(table, here, config, run_tool):
    status, said = run_tool(ANALYZE, table, "--output", "plain")
    assert status == 0 and said.split()[-2:] == ["plain/table.png", "plain/clips.png"]
    status, said = run_tool(ANALYZE, table, "--output", "full", "--config", *config)
    assert status == 0, said
    plain, full = (Image.open(here / name / "table.png").size for name in ("plain", "full"))
    assert full[0] == plain[0] and full[1] > plain[1]
    sheet = np.asarray(Image.open(here / "full/clips.png").convert("RGB")).astype(int)
    noise = sheet[20:90, 20:140].std()  # the clips are noise, the rest of the sheet is white
    assert sheet.shape[0] == 2 * (96 + 42) and noise > 10 and sheet[20:90, -140:-20].std() < 1


def test_full_and_left_over_rows_of_buckets(table, config):
    run, manifest = read_run_config(config), read_manifest(table, probe=True)
    found = rows_by_shape(run, manifest.columns)
    full, rest = fill_of_buckets(run, found.shape)
    names = [(bucket.resolution, bucket.num_frames) for bucket in run.buckets.buckets]
    assert dict(zip(names, zip(full.tolist(), rest.tolist(), strict=True), strict=True)) == {
        ("240p", 17): (0, 0),
        ("144p", 17): (2, 1),
        ("144p", 1): (2, 0),
    }
    assert found.counts()["taken"] == 5


def test_a_file_that_cannot_be_read_is_shown_as_such(table, here):
    manifest = read_manifest(table, probe=True)
    manifest.num_frames[5], manifest.height[5], manifest.width[5] = 9, 144, 256
    run = RunConfig(Buckets.fixed(9, 16, 16, 1), 1, "resize_crop", 0)
    draw_sheet(manifest, run, rows_by_shape(run, manifest.columns), 4, 0, here / "sheet.png")
    red = np.asarray(Image.open(here / "sheet.png").convert("RGB")).astype(int)
    assert ((red[..., 0] > 200) & (red[..., 1] < 90) & (red[..., 2] < 90)).any()


def test_tables_without_captions_rates_or_clips(here, tmp_path):
    sizes = (np.array([1, 1], np.int32), np.array([8, 8], np.int32), np.array([8, 9], np.int32))
    (here / "t.csv").write_text("path,num_frames,height,width\na.png,1,8,8\nb.png,1,8,9\n")
    manifest = read_manifest("t.csv")
    assert all((a == b).all() for a, b in zip(manifest.columns, sizes, strict=True))
    assert draw_page(manifest, None, SimpleNamespace(), tmp_path / "page.png").stat().st_size > 1000


def test_wrong_calls(table, root, run_tool):
    status, said = run_tool(ANALYZE, table, "--output", "x", "--seeds", "1")
    assert status == 2 and "unknown arguments --seeds 1; options of a config need --config" in said
    inference = root / "configs/opensora-v1-3/inference/t2v.py"
    status, said = run_tool(ANALYZE, table, "--output", "x", "--config", inference)
    assert status == 2 and "it has no dataset of clips; give a config for training" in said
