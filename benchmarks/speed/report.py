"""What a record of `benchmarks/speed/speed.py` says: tables of speeds, memory and ratios (Markdown), and pictures.

    python benchmarks/speed/report.py benchmarks/records/NAME.json

They are written beside the record.
"""

import argparse
import dataclasses
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import matplotlib

from benchmarks.speed.case import Case
from benchmarks.speed.models import ModelName
from benchmarks.speed.record import MEASURED, Measurement, Record
from common.errors import report_user_errors
from common.files import write_text, written_whole
from common.hardware import GIB


matplotlib.use("Agg")
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # of Okabe and Ito
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
EFFICIENT = ("nystromformer", "bigbird", "longformer")  # the peers whose cost grows with n, as Luna's does
SMALLEST_SPAN = 4  # of an axis, largest to smallest value, so that small differences look small
PEERS_FAST = "peers with Luna's products"  # and its dropout
STACK = "†"  # marks what was measured on a stack of a few layers


def step_seconds(result: dict) -> list[float]:
    """Of each timed step, for the whole model: a stack's passes are scaled by layers, its updates by parameters."""
    layers = result["whole_layers"] / result["layers"]
    scales = {"forward": layers, "backward": layers, "optimizer": result["whole_parameters"] / result["parameters"]}
    parts = [[scales[part] * seconds for seconds in times] for part, times in result["seconds"].items()]
    return [sum(step) for step in zip(*parts, strict=True)]


def throughput(measurements: Iterable[Measurement]) -> float:
    """Tokens per second of the median step, padding left out."""
    results = [measurement.result for measurement in measurements]
    return results[0]["tokens"] / median(seconds for result in results for seconds in step_seconds(result))


@dataclass
class Cell:
    """The measurements of one case; those that failed are not among them."""

    measured: list[Measurement] = field(default_factory=list)
    failure: str | None = None
    is_stack: bool = False

    def show(self, value: Callable[[list[Measurement]], str]) -> str:
        if self.failure is not None:
            return self.failure
        return value(self.measured) + (STACK if self.is_stack else "") if self.measured else ""


class Setting:
    """All that was measured alike, but for model and length: a cell for each of them."""

    def __init__(self, case: Case):
        self.case = case
        self.cells: dict[tuple[str, int], Cell] = {}

    @property
    def title(self) -> str:
        case = self.case
        parts = [
            case.task,
            case.dtype,
            f"dropout {case.dropout:g}",
            f"{case.rows} rows" + (f" of {case.lengths_file}" if case.lengths_file else ""),
            "masked-LM head" if case.head else "no head",
            f"{case.tokens} tokens a batch",
        ]
        parts += [] if case.checkpointing == "none" else [f"{case.checkpointing} checkpointing"]
        parts += ["compiled"] if case.compile else []
        parts += [PEERS_FAST] if case.peers_fast else []
        parts += [] if case.size == "base" else [f"{case.size} models"]
        return ", ".join([case.device, *parts])

    @property
    def models(self) -> list[str]:
        return list(dict.fromkeys(model for model, _ in self.cells))

    @property
    def lengths(self) -> list[int]:
        return sorted({length for _, length in self.cells})

    @property
    def lunas(self) -> list[str]:
        """Those that the others are compared with: l = 128, or what there is."""
        lunas = [model for model in self.models if ModelName.parse(model).kind == "luna"]
        return [model for model in lunas if ModelName.parse(model).slots == 128] or lunas

    @property
    def peers(self) -> list[str]:
        return [model for model in self.models if ModelName.parse(model).kind != "luna"]

    def add(self, measurement: Measurement):
        """A failure in any round is one; what the whole model could not do, its stack may."""
        case = measurement.case
        cell = self.cells.setdefault((case.model, case.length), Cell(is_stack=case.layers is not None))
        if measurement.outcome == MEASURED:
            cell.measured.append(measurement)
        else:
            cell.failure = measurement.outcome

    def cell(self, model: str, length: int) -> Cell:
        return self.cells.get((model, length), Cell())

    def speed(self, model: str, length: int) -> float | None:
        cell = self.cell(model, length)
        return throughput(cell.measured) if cell.measured and cell.failure is None else None


def collect_settings(record: Record) -> list[Setting]:
    """Where a case was measured with the whole model and with a stack, the whole model counts."""
    cases = {made.case for made in record.measurements}
    whole = {(_alike(case), case.model, case.length) for case in cases if case.layers is None}
    settings: dict[tuple, Setting] = {}
    for made in record.measurements:
        key = _alike(made.case)
        if made.case.layers is None or (key, made.case.model, made.case.length) not in whole:
            settings.setdefault(key, Setting(made.case)).add(made)
    return list(settings.values())


def _alike(case: Case) -> tuple:
    """What the cases of a setting have in common."""
    return dataclasses.astuple(dataclasses.replace(case, model="", length=0, layers=None, steps=0, seconds=0.0))


def markdown_table(corner: str, columns: Iterable[str], rows: dict[str, list[str]]) -> str:
    lines = [[corner, *columns]]
    lines += [["---", *("---:" for _ in lines[0][1:])]]
    lines += [[name, *cells] for name, cells in rows.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def table(setting: Setting, corner: str, models: list[str], value: Callable[[list[Measurement]], str]) -> str:
    rows = {model: [setting.cell(model, n).show(value) for n in setting.lengths] for model in models}
    return markdown_table(corner, [f"n = {n}" for n in setting.lengths], rows)


def ratios_table(setting: Setting, luna: str) -> str:
    """How many times as fast Luna is as each peer, and as the fastest of those that are made for long rows."""
    rows = {peer: [_ratio(setting, luna, [peer], n) for n in setting.lengths] for peer in setting.peers}
    efficient = [peer for peer in setting.peers if ModelName.parse(peer).kind in EFFICIENT]
    if len(efficient) > 1:
        name = f"best of {', '.join(efficient)}"
        rows[name] = [_ratio(setting, luna, efficient, n) for n in setting.lengths]
    return markdown_table(f"{luna} against", [f"n = {n}" for n in setting.lengths], rows)


def _ratio(setting: Setting, luna: str, peers: list[str], length: int) -> str:
    ours = setting.speed(luna, length)
    theirs = [speed for peer in peers if (speed := setting.speed(peer, length)) is not None]
    if ours is None or not theirs:
        return "–"
    stacks = any(setting.cell(model, length).is_stack for model in [luna, *peers])
    return f"{ours / max(theirs):.2f}x" + (STACK if stacks else "")


def peak_share(measurements: list[Measurement], peak: float, parts: Iterable[str]) -> float:
    """Of the operations a second that the device can do, those that the formulas need in these parts of a step."""
    shares = []
    for result in (measurement.result for measurement in measurements):
        times = [result["seconds"][part] for part in parts if part in result["seconds"]]
        shares += [result["flops"] / sum(step) / peak for step in zip(*times, strict=True)]
    return median(shares)


def peak_table(setting: Setting, record: Record) -> str | None:
    """For Luna; the peak is the highest of all that were found for the dtype."""
    case = setting.case
    measured = [made for made in record.measurements if made.outcome == MEASURED]
    alike = [made for made in measured if (made.case.device, made.case.dtype) == (case.device, case.dtype)]
    peaks = [made.result["peak_flops"] for made in alike]
    models = [model for model in setting.models if ModelName.parse(model).kind == "luna"]
    if not models or not peaks or None in peaks:
        return None

    def show(measurements: list[Measurement]) -> str:
        passes = peak_share(measurements, max(peaks), ["forward", "backward"])
        step = peak_share(measurements, max(peaks), ["forward", "backward", "optimizer"])
        return f"{passes:.0%}" if case.task == "inference" else f"{passes:.0%} / {step:.0%}"

    corner = f"share of the peak ({max(peaks) / 1e9:,.0f} GFLOP/s)"
    if case.task == "training":
        corner += " of forward and backward / of the whole step"
    return table(setting, corner, models, show)


def settings_table(settings: list[Setting], luna: str) -> str:
    """One model in all settings."""
    lengths = sorted({length for setting in settings for length in setting.lengths})
    rows = {
        setting.title: [setting.cell(luna, n).show(lambda made: f"{throughput(made):,.0f}") for n in lengths]
        for setting in settings
    }
    return markdown_table(f"{luna}, tokens/s", [f"n = {n}" for n in lengths], rows)


def spread(settings: list[Setting]) -> list[float]:
    """For each cell how far the time of its farthest step lies from its median, as a share."""
    shares = []
    for cell in (cell for setting in settings for cell in setting.cells.values() if cell.measured):
        times = [seconds for made in cell.measured for seconds in step_seconds(made.result)]
        shares.append(max(abs(seconds / median(times) - 1) for seconds in times))
    return shares


def report_text(record: Record, pictures: list[str | None]) -> str:
    settings = collect_settings(record)
    parts = [f"# Speed, {record.made_by['date']}"]
    parts.append("\n".join(f"- {key}: {value}" for key, value in record.made_by.items() if key != "date"))
    for setting, picture in zip(settings, pictures, strict=True):
        parts.append(f"## {setting.title}")
        parts.append(table(setting, "tokens/s", setting.models, lambda made: f"{throughput(made):,.0f}"))
        if setting.peers:
            parts += [ratios_table(setting, luna) for luna in setting.lunas]
        parts.append(table(setting, "peak memory, GiB", setting.models, _show_memory))
        peaks = peak_table(setting, record)
        parts += [peaks] if peaks else []
        parts += [f"![Tokens per second and peak memory over n]({picture})"] if picture else []
    if len(settings) > 1:
        parts.append("## Settings compared")
        lunas = dict.fromkeys(luna for setting in settings for luna in setting.lunas)
        parts += [settings_table(settings, luna) for luna in lunas]
    stacks = [made for made in record.measurements if made.case.layers is not None and made.outcome == MEASURED]
    if stacks:
        counts = sorted({f"{made.result['layers']} of {made.result['whole_layers']} layers" for made in stacks})
        parts.append(
            f"{STACK} measured on a stack of a few layers ({', '.join(counts)}) and scaled: forward and backward by "
            "layers, the optimiser by parameters; memory is that of the stack."
        )
    shares = spread(settings)
    if shares:
        parts.append(
            f"The farthest of the timed steps of a cell lies {median(shares):.0%} from their median in the middle "
            f"cell, and {max(shares):.0%} in the worst."
        )
    return "\n\n".join(parts) + "\n"


def _show_memory(measurements: list[Measurement]) -> str:
    return f"{median(measurement.result['memory'] for measurement in measurements) / GIB:.2f}"


@matplotlib.rc_context({"text.parse_math": False})
def draw_setting(setting: Setting, output: Path):
    """Tokens per second and peak memory over n; hollow marks are stacks of a few layers."""
    from matplotlib import pyplot
    from matplotlib.ticker import LogLocator

    figure, panels = pyplot.subplots(1, 2, figsize=(12, 4.8), layout="constrained")
    try:
        for number, model in enumerate(setting.models):
            style = {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}
            style["linestyle"] = "-" if ModelName.parse(model).kind == "luna" else "--"
            cells = {n: cell for n in setting.lengths if (cell := setting.cell(model, n)).measured}
            speeds = [throughput(cell.measured) for cell in cells.values()]
            memory = [max(made.result["memory"] for made in cell.measured) / GIB for cell in cells.values()]
            for axes, values in zip(panels, (speeds, memory), strict=True):
                axes.plot(list(cells), values, label=model, **style)
                hollow = [(n, value) for (n, cell), value in zip(cells.items(), values, strict=True) if cell.is_stack]
                if hollow:
                    axes.plot(*zip(*hollow, strict=True), **style | {"linestyle": ""}, markerfacecolor="white")
        for axes, label in zip(panels, ("tokens per second", "peak memory, GiB"), strict=True):
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            low, high = axes.get_ylim()
            margin = max(1.0, (SMALLEST_SPAN * low / high) ** 0.5)
            axes.set_ylim(low / margin, high * margin)
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:,g}")
            axes.yaxis.set_minor_formatter("")
            axes.set_xticks(setting.lengths, [f"{n}" for n in setting.lengths])
            axes.set_xlabel("n, tokens a row")
            axes.set_ylabel(label)
            axes.grid(alpha=0.3)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=6, fontsize="small")
        figure.suptitle(setting.title, fontsize="medium")
        with written_whole(output) as file:
            figure.savefig(file, dpi=120, format="png")
    finally:
        pyplot.close(figure)


def write_report(record: Record) -> Path:
    """Write the tables (RECORD.md) beside a record, and a picture of each setting that was measured at two lengths or
    more (RECORD-SETTING.png)."""
    pictures: list[str | None] = []
    for setting in collect_settings(record):
        if len(setting.lengths) < 2:
            pictures.append(None)
            continue
        slug = re.sub("[^a-z0-9.]+", "-", setting.title.lower()).strip("-")
        picture = f"{record.path.stem}-{slug}.png"
        draw_setting(setting, record.path.with_name(picture))
        pictures.append(picture)
    output = record.path.with_suffix(".md")
    write_text(output, report_text(record, pictures))
    return output


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("record", type=Path, help="a file of benchmarks/records")
    options = parser.parse_args()
    print(write_report(Record.read(options.record)))


if __name__ == "__main__":
    with report_user_errors():
        main()
