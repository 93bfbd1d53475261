"""Settings that matter to what a run trains: kept in its checkpoints, and compared when it goes on."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from opensora.registry import LOADING_KEYS

# What may differ: where things are, what is written, and how the same numbers are computed.
_FREE = {
    *("accept_changes", "load", "outputs", "run_name", "skip_steps", "start_from_scratch"),
    *("ckpt_every", "ckpt_keep", "ckpt_keep_every", "log_every", "record_time", "tensorboard", "wandb"),
    *("guidance", "patience", "validate_every", "validation"),
    *("activation_checkpoint", "attention_backend", "compile", "deterministic", "device", "plugin"),
    "sp_size",
    *("hang_timeout_s", "offload", "overlap_communication", "sequence_parallel"),
    *("accumulation_steps", "batches_per_step", "reduce_bucket_size_in_m"),  # the step's batches are checked
    *("num_workers", "prefetch_factor"),
    *(
        f"dataset.{key}"
        for key in (
            "cache",
            "check_files",
            "data_path",
            "probe",
            "quarantined",
            "retries",
            "root",
            "timeout_s",
        )
    ),
    *(f"model.{key}" for key in LOADING_KEYS),  # the checkpoint has the weights
    *("scheduler.num_sampling_steps", "vae.micro_batch_size", "vae.micro_batch_size_2d"),
}
_LENGTH = ("epochs", "max_steps")  # of no matter, unless the learning rate falls towards the end
_SHOWN = 6


def run_settings(cfg: Mapping[str, Any], table: str) -> dict[str, Any]:
    """Return what a checkpoint keeps: dotted key to value, as JSON reads it again.

    A key that this file does not name counts as one that matters.

    Args:
        cfg: The run's config.
        table: Describes the content of the table.
    """
    free = _FREE if cfg["lr_schedule"]["cosine"] else _FREE.union(_LENGTH)
    found = {key: value for key, value in _flat(cfg) if key not in free and key.split(".")[0] not in free}
    return json.loads(json.dumps({**found, "table": table}, default=str))


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Say which settings differ: name, old value, new value."""
    keys = sorted(old.keys() | new.keys(), key=lambda key: (key != "table", key))
    pairs = {key: [_shown(part, key) for part in (old, new)] for key in keys}
    return [f"{key}: {before} -> {now}" for key, (before, now) in pairs.items() if before != now]


def listed_differences(found: list[str]) -> str:
    """Write differences on one line, the first few of many."""
    more = f" (and {len(found) - _SHOWN} more)" if len(found) > _SHOWN else ""
    return "; ".join(found[:_SHOWN]) + more


def _flat(values: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _shown(settings: Mapping[str, Any], key: str) -> str:
    return json.dumps(settings[key]) if key in settings else "absent"
