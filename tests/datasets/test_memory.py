"""Memory of workers that read clip after clip."""

import resource

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from opensora.datasets.buckets import ClipIndex
from opensora.datasets.loader import worker_settings
from opensora.datasets.video import VideoDataset

PAGE = resource.getpagesize()


class Resident(Dataset):
    """Reads clips, and gives the memory that the process has for itself, in bytes."""

    def __init__(self, table: str, count: int) -> None:
        self.clips, self.count = VideoDataset(table, retries=0), count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> torch.Tensor:
        row = number % len(self.clips)
        try:
            self.clips[ClipIndex(row, 8, 96, 128, number)]
        except ValueError:
            assert self.clips.manifest.text[row] == "bad"
        with open("/proc/self/statm") as file:
            _, resident, shared, *_ = map(int, file.read().split())
        return torch.tensor([get_worker_info().id, (resident - shared) * PAGE])


def growth(table: str, reads: int) -> list[float]:
    """Return the bytes per read by which each of two workers grows, from the third quarter to the last."""
    found = torch.stack(list(DataLoader(Resident(table, reads), batch_size=None, **worker_settings(2))))
    slopes = []
    for worker in (0, 1):
        sizes = found[found[:, 0] == worker, 1].double()
        _, _, middle, last = sizes.tensor_split(4)
        slopes.append(float(last.quantile(0.1) - middle.quantile(0.1)) / len(last))  # what stays
    return slopes


@pytest.fixture
def table(write_clip, write_table, tmp_path):
    """A table of 40 clips of two sizes; four of them cannot be read."""
    (tmp_path / "bad.mp4").write_bytes(b"nothing")
    lines = [f"{write_clip(f'{n}.mp4', 40, 96, 128)},a,40,96,128" for n in range(18)]
    lines += [f"{write_clip(f'{n}.mkv', 40, 144, 176)},a,40,144,176" for n in range(18)]
    lines += 4 * [f"{tmp_path}/bad.mp4,bad,40,96,128"]
    return write_table("path,text,num_frames,height,width", *lines)


@pytest.mark.slow  # fewer reads are not enough: the allocator settles slowly
def test_workers_do_not_grow(table):
    """In 100 clips by less than 1 MB."""
    assert max(growth(table, 6000)) * 100 < 1e6
