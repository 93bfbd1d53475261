"""From a dataset and a sampler to batches."""

import multiprocessing
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from opensora.datasets.buckets import Buckets
from opensora.datasets.samplers import BucketSampler

_FLOATS = ("fps", "num_frames", "height", "width")
_INTEGERS = ("label", "sample", "epoch")


def build_buckets(
    dataset: Any, bucket_config: Mapping[str, Mapping[int, Any]] | None, batch_size: int | None = None
) -> Buckets:
    """Make the buckets of a run: those of a `bucket_config`, or one of the dataset's own size.

    Args:
        dataset: Has `num_frames` and `image_size`; one of features also `choose_buckets` and `keep_draws`.
        bucket_config: `{resolution: {frames: (probability, batch size)}}`, or None.
        batch_size: Clips per batch, without `bucket_config`.

    Raises:
        ValueError: Both ways are given, or neither.
    """
    if hasattr(dataset, "choose_buckets"):
        bucket_config, batch_size = dataset.choose_buckets(bucket_config, batch_size)
    keep_draws = getattr(dataset, "keep_draws", None)
    size = (dataset.num_frames, dataset.image_size, batch_size)
    if bucket_config is not None:
        if any(value is not None for value in size):
            raise ValueError(
                f"bucket_config is given, and num_frames, image_size, batch_size are {size}: sizes come "
                "from the buckets; set the three to None."
            )
        return Buckets(bucket_config, keep_draws=keep_draws)
    if any(value is None for value in size):
        raise ValueError(
            f"num_frames, image_size, batch_size are {size}: give all three, or a bucket_config such as "
            "{'360p': {1: (1.0, 60), 49: (1.0, 5)}}."
        )
    return Buckets.fixed(dataset.num_frames, *dataset.image_size, batch_size)


def build_dataloader(
    dataset: Dataset,
    sampler: BucketSampler,
    num_workers: int = 0,
    prefetch_factor: int | None = None,
    device: str | torch.device = "cpu",
) -> DataLoader:
    """Make the loader of a run. Its batches do not depend on the number of workers.

    Args:
        dataset: Takes a `ClipIndex`; if it has `replacements`, they are set to the sampler's.
        sampler: Yields lists of `ClipIndex`.
        num_workers: Processes that read; 0 reads in this one.
        prefetch_factor: Batches that each worker reads ahead; None is torch's default.
        device: Where batches go; for a GPU they are put into pinned memory.

    Returns:
        An iterable of batches with the keys of `opensora.datasets`, and `replaced`: how many samples of the
        batch stand for files that could not be read. After `sampler.next_epoch()` it yields the next epoch.
    """
    if hasattr(dataset, "replacements"):
        dataset.replacements = sampler.planner.same_shape
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=collate,
        pin_memory=torch.device(device).type == "cuda",
        **worker_settings(num_workers, prefetch_factor),
    )


def worker_settings(num_workers: int, prefetch_factor: int | None = None) -> dict[str, Any]:
    """Return the arguments of a `DataLoader` that make its workers, as for `build_dataloader`."""
    if not num_workers:
        return {"num_workers": 0}
    # Not "fork": it would copy locks that threads of this process hold.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["opensora.datasets.video"])
    return {
        "num_workers": num_workers,
        "multiprocessing_context": context,
        "persistent_workers": True,
        "prefetch_factor": prefetch_factor,
        "worker_init_fn": _start_worker,
    }


def collate(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Join samples to a batch.

    Args:
        samples: One dict each, with equal keys and shapes.

    Returns:
        Tensors stacked along a new first axis, numbers as tensors of shape [B] (sizes and rates float32,
        names of random numbers int64), texts as a list, `replaced` as one number, and `text_features` padded
        with zeros to the longest, with their `text_mask`.
    """
    batch: dict[str, Any] = {}
    for key in samples[0]:
        values = [sample[key] for sample in samples]
        if key == "replaced":
            batch[key] = sum(values)
        elif key == "text_features":  # captions have different lengths
            lengths = torch.tensor([len(value) for value in values])
            batch[key] = torch.nn.utils.rnn.pad_sequence(values, batch_first=True)  # [B, L, F]
            batch["text_mask"] = torch.arange(batch[key].shape[1]) < lengths[:, None]
        elif isinstance(values[0], Tensor):
            batch[key] = torch.stack(values)
        elif key in _FLOATS or isinstance(values[0], float):
            batch[key] = torch.tensor(values, dtype=torch.float32)
        elif key in _INTEGERS or isinstance(values[0], int):
            batch[key] = torch.tensor(values, dtype=torch.int64)
        else:
            batch[key] = values
    return batch


def _start_worker(worker: int) -> None:
    torch.set_num_threads(1)  # workers share the cores with each other and with the training
