"""Draw the curves of several runs into one picture, also of runs that are not over.

python pretrain/report.py RUN [RUN ...] --output FILE.png
"""

import argparse
import sys
from pathlib import Path

from matplotlib.backend_bases import FigureCanvasBase

from common.errors import report_user_errors
from common.files import make_folder
from pretrain.watching.curves import AXES
from pretrain.watching.report import ReportError, plot_runs


def main(arguments: list[str]):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs")
    parser.add_argument("--output", type=Path, required=True, help="the picture to write")
    parser.add_argument(
        "--over", choices=list(AXES), default="tokens", help="what the curves are drawn over (%(default)s)"
    )
    options = parser.parse_args(arguments)
    formats = FigureCanvasBase.get_supported_filetypes()
    if options.output.suffix.lower().removeprefix(".") not in formats or options.output.is_dir():
        raise ReportError(f"--output: {options.output} must be a file that ends in .{', .'.join(formats)}.")
    make_folder(options.output.parent, "--output")
    plot_runs(options.runs, options.output, options.over)
    print(options.output)


if __name__ == "__main__":
    with report_user_errors():
        main(sys.argv[1:])
