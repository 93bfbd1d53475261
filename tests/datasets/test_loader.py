"""Batches: keys and types, and that workers, processes and interruptions change nothing."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from multiprocessing import forkserver
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from opensora.datasets import loader as loading
from opensora.datasets.buckets import Buckets
from opensora.datasets.loader import build_buckets, build_dataloader, collate
from opensora.datasets.planner import Planner
from opensora.datasets.reading import ClipError
from opensora.datasets.samplers import BucketSampler
from opensora.datasets.video import VideoDataset


@pytest.fixture
def make_loader(write_clip, write_picture, write_table, tmp_path, monkeypatch):
    """Return a function that builds a dataset of 12 clips and 6 images, and its loader."""
    monkeypatch.setattr("opensora.datasets.buckets.MIN_AREA", 0.0)  # small clips, to be fast
    lines = [f"{write_clip(f'{i}.mp4', 20 + i, 48, 64)},clip {i},{20 + i},48,64" for i in range(12)]
    lines += [f"{write_picture(f'{i}.png', i, 64, 48)},image {i},1,64,48" for i in range(6)]
    table = write_table("path,text,num_frames,height,width", *lines)

    def make(
        num_workers=0, rank=0, ranks=1, batches_per_step=2, bad=None, make_dataset=VideoDataset, **arguments
    ):
        if bad:
            (tmp_path / bad).write_bytes(b"nothing")
        dataset = make_dataset(table, seed=5, **arguments)
        buckets = Buckets({"144p": {1: (1.0, 3), 8: (1.0, 2)}})
        planner = Planner(dataset.manifest.fingerprint, dataset.sizes(), buckets, batches_per_step, seed=5)
        sampler = BucketSampler(planner, rank, ranks)
        return build_dataloader(dataset, sampler, num_workers), sampler

    return make


def same(one, two):
    if len(one) != len(two):
        return False
    return all(
        a.keys() == b.keys()
        and all(torch.equal(a[k], b[k]) if torch.is_tensor(a[k]) else a[k] == b[k] for k in a)
        for a, b in zip(one, two, strict=True)
    )


def test_keys_of_a_batch(make_loader):
    loader, sampler = make_loader()
    batches = list(loader)
    assert len(batches) == len(loader) == len(sampler) == 8
    for batch in batches:
        size, images = len(batch["text"]), int(batch["num_frames"][0]) == 1
        assert size == (3 if images else 2)
        assert batch["video"].shape[:3] == (size, 3, 1 if images else 8)
        assert batch["video"].shape[3:] == (int(batch["height"][0]), int(batch["width"][0]))
        for key in ("fps", "num_frames", "height", "width"):
            assert (batch[key].dtype, batch[key].shape) == (torch.float32, (size,))
        for key in ("sample", "epoch"):
            assert (batch[key].dtype, batch[key].shape) == (torch.int64, (size,))
        assert batch["replaced"] == 0
        assert {text.split()[0] for text in batch["text"]} == {"image" if images else "clip"}


def test_workers_change_nothing(make_loader):
    loader, sampler = make_loader(bad="3.mp4")
    expected = list(loader)
    assert sum(batch["replaced"] for batch in expected) == 1
    sampler.next_epoch()
    after = list(loader)
    assert not same(expected, after)
    for num_workers in (1, 2):
        loader, sampler = make_loader(num_workers, bad="3.mp4")
        assert same(list(loader), expected)
        sampler.next_epoch()
        assert same(list(loader), after)  # the same workers see the next epoch


def test_excluded_rows_stand_in_for_none(make_loader):
    """In the second epoch row 3 cannot be read, and rows that the plan excludes do not take its place."""
    gone = np.array([0, 1, 2, 4, 5, 6, 7, 9])
    found = []
    for num_workers in (0, 1, 2):
        loader, sampler = make_loader(num_workers, bad="3.mp4", batches_per_step=1)
        list(loader)
        sampler.next_epoch(gone)
        found.append(list(loader))
    texts = {text for batch in found[0] for text in batch["text"]}
    assert sum(batch["replaced"] for batch in found[0]) == 1
    assert not texts & {f"clip {row}" for row in (*gone, 3)}
    assert same(found[1], found[0]) and same(found[2], found[0])
    for num_workers in (0, 1):
        resumed, other = make_loader(num_workers, bad="3.mp4", batches_per_step=1)
        other.set_plan(sampler.plan, start_step=1)
        assert same(list(resumed), found[0][1:])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_resuming_equals_going_on(make_loader, num_workers):
    chosen = dict(transform="random_crop", flip=0.5, num_images=2)
    loader, sampler = make_loader(**chosen)
    whole = list(loader)
    resumed, other = make_loader(num_workers, **chosen)
    other.set_plan(sampler.plan, start_step=2)
    assert same(list(resumed), whole[4:])


@pytest.mark.parametrize("num_workers", [1, 2])
def test_joint_batches_are_the_same_from_all_workers(make_loader, num_workers):
    chosen = dict(transform="random_crop", flip=0.5, num_images=2)
    expected = list(make_loader(**chosen)[0])
    assert same(list(make_loader(num_workers, **chosen)[0]), expected)
    videos = [batch for batch in expected if batch["num_frames"][0] > 1]
    assert videos and len(videos) < len(expected)
    for batch in videos:
        assert batch["images"].shape == (2, 3, 2, *batch["video"].shape[3:])
        assert [len(texts) for texts in batch["image_text"]] == [2, 2]
        assert {text.split()[0] for texts in batch["image_text"] for text in texts} == {"image"}
    assert all("images" not in batch for batch in expected if batch["num_frames"][0] == 1)


@pytest.fixture
def quick(monkeypatch):
    """Look at readers often, and give them little time."""
    monkeypatch.setattr(loading, "_LOOK_EVERY_S", 1)
    monkeypatch.setattr(loading, "_GRACE_S", 0.5)


@pytest.fixture
def fork_server(monkeypatch):
    """The process that starts readers, a new one."""
    server = forkserver.ForkServer()
    for name in ("ensure_running", "connect_to_new_process", "set_forkserver_preload"):
        monkeypatch.setattr(forkserver, name, getattr(server, name))
    return server


def test_readers_outlast_ctrl_c(make_loader, fork_server, monkeypatch):
    """It reaches the whole group of processes at any moment; the training still ends its step and saves."""
    expected = list(make_loader()[0])
    loader, _ = make_loader(2)
    wait = loader._wait

    def wait_interrupted(batches):
        for pid in {fork_server._forkserver_pid, *(reader.pid for reader in batches._workers)}:
            os.kill(pid, signal.SIGINT)
        return wait(batches)

    monkeypatch.setattr(loader, "_wait", wait_interrupted)
    loader._loader = loader._start()
    os.kill(fork_server._forkserver_pid, signal.SIGINT)  # it has only just been started
    assert same(list(loader), expected) and loader._lost == 0


class Losing(VideoDataset):
    """A dataset whose reader of row 3 is lost, as by the fault of a decoder."""

    how = "hangs"

    def _read(self, clip, row):
        if row == 3 and self.how == "dies":
            os._exit(11)
        if row == 3:
            time.sleep(1000)
        return super()._read(clip, row)


def test_a_reader_that_dies_while_its_batch_is_fetched_is_a_lost_reader(make_loader, monkeypatch):
    """Its connection breaks before torch notices its death."""

    class Broken:
        _workers = (
            SimpleNamespace(pid=11, is_alive=lambda: True),
            SimpleNamespace(pid=12, is_alive=lambda: False),
        )

        def __next__(self):
            raise ConnectionResetError(104, "Connection reset by peer")

    loader, _ = make_loader(2)
    killed = []
    monkeypatch.setattr(loading.os, "kill", lambda pid, _: killed.append(pid))
    monkeypatch.setattr(loading, "_DYING_S", 0.0)
    loader.dataset.reading = torch.tensor([[5.0, 0.0, 11.0], [3.0, 0.0, 12.0]], dtype=torch.float64)
    with pytest.raises(loading._ReaderLostError):
        loader._wait(Broken())
    assert list(loader.dataset.unreadable) == [3] and killed == [12]
    Broken._workers = Broken._workers[:1]
    with pytest.raises(ConnectionResetError):
        loader._wait(Broken())


@pytest.mark.parametrize("how", ["hangs", "dies"])
def test_a_lost_reader_costs_one_clip_and_no_batch(make_loader, quick, how):
    expected = list(make_loader(bad="3.mp4")[0])  # row 3 is damaged there, and loses its reader here
    loader, sampler = make_loader(2, make_dataset=Losing, timeout_s=5.0)
    loader.dataset.how = how
    found = list(loader)
    assert [batch["replaced"] for batch in found] == [batch["replaced"] for batch in expected]
    [(row, reason)] = [failure for batch in found for failure in batch["failures"]]
    assert row == 3 and ("did not come back within 5.5 s" if how == "hangs" else "died") in reason
    for batch in (*expected, *found):
        del batch["failures"]
    assert same(found, expected)
    sampler.next_epoch()
    assert len(list(loader)) == len(sampler)  # the new readers know the file, so nothing is lost again


class Stuck(VideoDataset):
    """A dataset whose first reader never begins to read."""

    flag = ""

    def __getitem__(self, clip):
        with suppress(FileExistsError):
            open(self.flag, "x").close()
            time.sleep(1000)
        return super().__getitem__(clip)


def test_readers_that_never_begin_are_started_anew(make_loader, quick, monkeypatch, tmp_path):
    monkeypatch.setattr(loading, "_IDLE_S", 3.0)
    expected = list(make_loader()[0])
    loader, _ = make_loader(1, make_dataset=Stuck)
    loader.dataset.flag = str(tmp_path / "stuck")
    found = list(loader)
    assert same(found, expected) and loader._lost >= 1
    assert not any(batch["replaced"] for batch in found)
    monkeypatch.setattr(loading, "_MOST_LOST", 0)
    loader, _ = make_loader(1, make_dataset=Stuck)
    loader.dataset.flag = str(tmp_path / "again")
    with pytest.raises(ClipError, match="again and again; try num_workers=0"):
        list(loader)


def test_a_file_without_replacement_is_one_clean_error(make_loader, tmp_path):
    for num_workers in (0, 1):
        loader, _ = make_loader(num_workers, bad="3.mp4")
        loader.dataset.replacements = None
        with pytest.raises(ClipError) as error:
            list(loader)
        assert "3.mp4: cannot be read" in str(error.value) and "Traceback" not in str(error.value)


def test_random_sizes_come_one_by_one(write_clip, write_table):
    table = write_table("path,num_frames,height,width", f"{write_clip()},30,48,64")
    dataset = VideoDataset(table, num_frames=4, image_size=(16, 40), transform="rand_size_crop")
    with pytest.raises(ValueError, match="use batch_size=1"):
        build_buckets(dataset, None, 2)
    buckets = build_buckets(dataset, None, 1)
    planner = Planner(dataset.manifest.fingerprint, dataset.sizes(), buckets, 1, seed=0)
    loader = build_dataloader(dataset, BucketSampler(planner))
    [batch] = loader
    assert batch["video"].shape[3:] == (int(batch["height"]), int(batch["width"]))


def test_processes_share_the_same_batches(make_loader):
    def samples(ranks):
        parts = [list(make_loader(0, rank, ranks, 4)[0]) for rank in range(ranks)]
        share = 4 // ranks
        steps = len(parts[0]) // share
        return [
            sorted(tuple(b["sample"].tolist()) for part in parts for b in part[s * share : (s + 1) * share])
            for s in range(steps)
        ]

    assert samples(1) == samples(2) == samples(4)


def test_labels_and_replaced_are_joined():
    sample = dict(video=torch.zeros(3, 1, 2, 2), label=4, fps=8.0, replaced=1)
    batch = collate([sample, {**sample, "replaced": 0}])
    assert batch["label"].tolist() == [4, 4] and batch["label"].dtype == torch.int64
    assert batch["replaced"] == 1


def test_bad_files_are_replaced_by_their_bucket(make_loader):
    batches = list(make_loader(bad="3.mp4")[0])
    assert sum(batch["replaced"] for batch in batches) == 1
    assert all("clip 3" not in batch["text"] for batch in batches)


def test_one_size_or_buckets(write_clip, write_table):
    table = write_table("path,num_frames,height,width", f"{write_clip()},30,48,64")
    config = {"144p": {1: (1.0, 3)}}
    fixed, free = VideoDataset(table, num_frames=8, image_size=(24, 32)), VideoDataset(table)
    assert build_buckets(fixed, None, 2).shapes[0][2:] == (8, 24, 32, 2)
    assert len(build_buckets(free, config)) == 1
    with pytest.raises(ValueError, match="set the three to None"):
        build_buckets(free, config, 2)
    with pytest.raises(ValueError, match="give all three, or a bucket_config"):
        build_buckets(free, None, 2)


READING = """
import time
import torch
from torch.utils.data import DataLoader, TensorDataset
from opensora.datasets.loader import worker_settings

if __name__ == "__main__":
    batches = iter(DataLoader(TensorDataset(torch.arange(9)), **worker_settings(1)))
    next(batches)
    print("reading", flush=True)
    time.sleep(1000)
"""


def test_readers_end_with_the_process_that_they_read_for(tmp_path):
    """SIGKILL leaves no time to end them; they look for themselves."""
    psutil = pytest.importorskip("psutil")
    (tmp_path / "main.py").write_text(READING)
    place = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, str(tmp_path / "main.py")]
    process = subprocess.Popen(command, env=place, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "reading\n"
    readers = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate()
    _, alive = psutil.wait_procs(readers, timeout=150)
    for one in alive:
        one.kill()
    assert readers and not alive
