"""Draw one chart of several records: tokens per second of Luna, RoBERTa and ModernBERT over the length of rows.

    python benchmarks/speed/chart.py benchmarks/records/2026-11-26-amd-epyc-2-cores.json \
        benchmarks/records/2026-11-26-nvidia-h200.json --output docs/speed.png

Each record is a panel. It shows the setting that has these models at the most lengths. The numbers tell how many times
as fast Luna is.
"""

import argparse
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from benchmarks.speed.record import Record
from benchmarks.speed.report import Setting, collect_settings
from common.errors import UserError, report_user_errors
from common.files import written_whole


NAMES = {"luna-128": "Luna, 128 slots", "roberta": "RoBERTa", "modernbert": "ModernBERT"}
STYLES: dict[str, dict] = {
    "luna-128": {"color": "#0072B2", "marker": "o", "linewidth": 2.5},
    "roberta": {"color": "#D55E00", "marker": "s", "linestyle": "--"},
    "modernbert": {"color": "#009E73", "marker": "^", "linestyle": "--"},
}


def speeds(setting: Setting) -> dict[str, dict[int, float]]:
    """Tokens per second by model and length, where they were measured."""
    measured = {
        model: {n: speed for n in setting.lengths if (speed := setting.speed(model, n)) is not None} for model in NAMES
    }
    return {model: by_length for model, by_length in measured.items() if by_length}


def chosen_setting(record: Record) -> Setting:
    """The setting that has the models of the chart at the most lengths.

    Raises:
        UserError: where no setting has Luna and one of the others.
    """
    settings = [
        setting for setting in collect_settings(record) if "luna-128" in (by := speeds(setting)) and len(by) > 1
    ]
    if not settings:
        raise UserError(f"{record.path} compares luna-128 with none of roberta and modernbert.")
    return max(settings, key=lambda setting: sum(len(lengths) for lengths in speeds(setting).values()))


def draw_chart(records: list[Record]) -> Figure:
    figure = Figure(figsize=(5.5 * len(records), 4.2), layout="constrained")
    panels = figure.subplots(1, len(records), squeeze=False)[0]
    for axes, record in zip(panels, records, strict=True):
        setting = chosen_setting(record)
        draw_panel(axes, speeds(setting))
        axes.set_title(f"{record.made_by['hardware']}\n{setting.case.task}, {setting.case.dtype}", fontsize="medium")
    panels[0].set_ylabel("tokens per second")
    handles = {
        label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        handles.values(),
        handles.keys(),
        title="Numbers: how many times as fast Luna is",
        loc="outside lower center",
        ncols=len(NAMES),
    )
    return figure


def draw_panel(axes: Axes, measured: dict[str, dict[int, float]]):
    for model, by_length in measured.items():
        axes.plot(list(by_length), list(by_length.values()), label=NAMES[model], **STYLES[model])
        for length, speed in by_length.items():
            if model != "luna-128" and length in measured["luna-128"]:
                ratio = f"{measured['luna-128'][length] / speed:.2g}x"
                colour = STYLES[model]["color"]
                axes.annotate(ratio, (length, speed), (0, -14), textcoords="offset points", ha="center", color=colour)
    lengths = sorted({length for by_length in measured.values() for length in by_length})
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_minor_formatter("")
    low, high = axes.get_ylim()
    axes.set_ylim(low / 1.6, high * 1.3)
    axes.margins(x=0.1)
    axes.set_xlabel("tokens a row")
    axes.grid(alpha=0.3)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path, nargs="+", help="files of benchmarks/records, a panel each")
    parser.add_argument("--output", type=Path, required=True, help="the PNG to write")
    options = parser.parse_args()
    with report_user_errors():
        figure = draw_chart([Record.read(path) for path in options.records])
        with matplotlib.rc_context({"text.parse_math": False}), written_whole(options.output) as file:
            figure.savefig(file, dpi=120, format="png")
        print(options.output)


if __name__ == "__main__":
    main()
