"""Tell the story of one clip: what its file is, which bucket it takes and why, and which pixels are used.

    python -m tools.datasets.explain my_clips.csv 4
    python -m tools.datasets.explain my_clips.csv 4 --config my_config.py --epoch 2 --picture my_clip.png

Options of the config may follow, as for training. The picture shows frames of the clip, and in them a box
around the pixels that training sees.
"""

import argparse
from pathlib import Path

from opensora.datasets.manifest import read_manifest
from opensora.utils.user_errors import one_line_errors
from tools.datasets.arguments import add_source_arguments, source_of
from tools.datasets.run_config import read_run_config
from tools.datasets.story import bucket_story, draw, file_story, pixel_story


def main() -> None:
    """Read the command line, and tell."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.datasets.explain",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_source_arguments(parser)
    parser.add_argument("row", type=int, metavar="ROW", help="0 is the first below the header")
    parser.add_argument("--config", help="training config; without it only the file is compared")
    parser.add_argument("--epoch", type=int, default=0)
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw frames with the box that is used")
    args, words = parser.parse_known_args()
    if args.config is None and (words or args.picture):
        parser.error(f"{' '.join(words) or '--picture'} needs --config.")
    with one_line_errors():
        source = source_of(args)
        run = None if args.config is None else read_run_config([args.config, *words])
        options = dict(layout=source.layout, columns=source.columns, root=source.root, cache=args.cache)
        manifest = read_manifest(source.path, True, **options)
        if not 0 <= args.row < len(manifest):
            raise ValueError(f"row {args.row}: the table has rows 0 to {len(manifest) - 1}.")
        print("\n".join(file_story(manifest, args.row)))
        if run is not None:
            lines, clip = bucket_story(run, manifest, args.row, args.epoch)
            print("\n".join(lines))
            if clip is not None:
                lines, numbers, cut = pixel_story(run, manifest, clip)
                print("\n".join(lines))
                if args.picture:
                    draw(manifest.path[args.row], numbers, cut, args.picture)
                    print(args.picture)


if __name__ == "__main__":
    main()
