"""Draw a sheet of clips of the generated world with their captions.

python -m eval.lab.world assets/shapes.png --world full
"""

import argparse
from pathlib import Path

from eval.lab.cases import Case
from eval.lab.report import draw_sheet
from eval.lab.trial import Answer, to_bytes
from opensora.datasets.shapes import ShapesDataset
from opensora.utils.user_errors import one_line_errors


def main() -> None:
    """Read the command line and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", type=Path, help="the .png file")
    parser.add_argument("--world", default="small", help="small or full")
    parser.add_argument("--split", default="train", help="train or unseen")
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--side", type=int, default=64, help="pixels")
    parser.add_argument("--fps", type=float, default=12.0)
    args = parser.parse_args()
    with one_line_errors():
        data = ShapesDataset(
            args.world, args.split, args.clips, args.frames, (args.side, args.side), fps=args.fps
        )
        answers = []
        for row in range(args.clips):
            case = Case(data.caption(row), data.scene(row))
            frames = to_bytes(case.scene.draw(args.frames, args.side, args.side))
            answers.append(Answer(case, frames, {"prompt": case.text, "seen": {}, "right": {}}))
        draw_sheet(answers, args.path)


if __name__ == "__main__":
    main()
