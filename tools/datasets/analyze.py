"""Draw what is in a table of clips: one page of plots, and a sheet of random clips per bucket.

    python -m tools.datasets.analyze my_clips.csv --output my_pictures
    python -m tools.datasets.analyze my_clips.csv --output my_pictures --config my_config.py

Writes `table.png` and `clips.png`. With a config they show the buckets of its first epoch; options of the
config may follow, as for training. Sizes that the table lacks are read from the files.
"""

import argparse
from pathlib import Path

from opensora.datasets.manifest import read_manifest
from opensora.utils.user_errors import one_line_errors
from tools.datasets.arguments import add_source_arguments, source_of
from tools.datasets.page import draw_page
from tools.datasets.run_config import read_run_config, rows_by_shape
from tools.datasets.sheet import draw_sheet


def main() -> None:
    """Read the command line, and draw."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.datasets.analyze",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_source_arguments(parser)
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="where pictures go")
    parser.add_argument("--config", help="training config whose buckets are drawn")
    parser.add_argument("--clips", type=int, default=6, help="random clips of each bucket; 0 draws no sheet")
    parser.add_argument("--seed", type=int, default=0, help="of the random clips")
    args, words = parser.parse_known_args()
    if words and args.config is None:
        parser.error(f"unknown arguments {' '.join(words)}; options of a config need --config.")
    with one_line_errors():
        source = source_of(args)
        run = None if args.config is None else read_run_config([args.config, *words])
        manifest = read_manifest(
            *(source.path, True),
            layout=source.layout,
            columns=source.columns,
            root=source.root,
            cache=args.cache,
        )
        table = None if run is None else rows_by_shape(run, manifest.columns)
        args.output.mkdir(parents=True, exist_ok=True)
        print(draw_page(manifest, run, table, args.output / "table.png"))
        if args.clips:
            print(draw_sheet(manifest, run, table, args.clips, args.seed, args.output / "clips.png"))


if __name__ == "__main__":
    main()
