"""Turn weights of any readable format into one safetensors file, or into shards and an index.

    python scripts/convert_weights.py SOURCE TARGET.safetensors [--dtype bf16] [--force]

SOURCE is a file, a folder (a run's checkpoint too), or a hub name. docs/weights.md tells more.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line. Nothing heavy is imported before that."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", help="weight file, folder or hub name")
    parser.add_argument("target", type=Path, help="file to write, NAME.safetensors")
    parser.add_argument(
        "--dtype", choices=DTYPES, help="convert floating tensors; by default they stay as they are"
    )
    parser.add_argument(
        "--published-names",
        metavar="TYPE",
        help="write published names, by the table of this registered class, such as STDiT3",
    )
    parser.add_argument(
        "--max-shard-gib", type=float, help="largest file in GiB; by default there is one file"
    )
    parser.add_argument("--force", action="store_true", help="overwrite TARGET")
    return parser.parse_args(argv)


def convert(args: argparse.Namespace) -> list[Path]:
    """Read, convert and write. Returns the files written."""
    index = Path(f"{args.target}.index.json")
    if not args.force and (args.target.exists() or index.exists()):
        raise FileExistsError(f"{args.target} is there already; give --force to overwrite it.")

    import torch

    from opensora.utils.weights import read_state_dict, save_safetensors, to_published

    state = read_state_dict(args.source)
    if args.dtype:
        dtype = getattr(torch, DTYPES[args.dtype])
        state = {name: t.to(dtype) if t.is_floating_point() else t for name, t in state.items()}
    if args.published_names:
        state = to_published(state, renames_of(args.published_names))
    most = None if args.max_shard_gib is None else int(args.max_shard_gib * 2**30)
    return save_safetensors(state, args.target, max_shard_bytes=most)


def renames_of(kind: str) -> Sequence[tuple[str, str]]:
    """Return the table of published prefixes of a registered class."""
    from opensora.registry import MODELS, resolve

    model = resolve(MODELS, kind)
    if not hasattr(model, "renames"):
        raise ValueError(
            f"--published-names {kind}: it has no table of names; name a class that does, as STDiT3."
        )
    return model.renames


def main(argv: Sequence[str] | None = None) -> None:
    """Convert, and say what was written."""
    args = parse(argv)
    try:
        files = convert(args)
    except (OSError, ValueError, KeyError) as error:
        raise SystemExit(
            f"convert_weights: {error.args[0] if isinstance(error, KeyError) else error}"
        ) from None

    import math

    from opensora.utils.weights import read_shapes

    shapes = read_shapes(args.target)
    numbers = sum(math.prod(shape) for shape in shapes.values())
    for file in files:
        print(f"{file}: {file.stat().st_size / 2**20:.1f} MiB")
    print(f"{len(shapes)} tensors, {numbers:,} numbers from {args.source}")


if __name__ == "__main__":
    main()
