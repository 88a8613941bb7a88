"""The picture of a run's metrics: losses, masked accuracy, and the health of the packed state."""

from collections.abc import Iterable
from pathlib import Path

import matplotlib
import numpy as np

from common.errors import UserError


matplotlib.use("Agg")
CURVES_FILE = "curves.png"
AXES = {"step": "step", "tokens": "tokens seen", "time": "minutes of training"}
COUNTED = {"tokens": ("tokens", 1), "time": ("training_seconds", 60)}  # in the records: a key and its unit
THIN = {"alpha": 0.4, "linewidth": 1}
BOLD = {"marker": "o", "markersize": 4, "linewidth": 2}


@matplotlib.rc_context({"text.parse_math": False})  # names of runs may hold dollar signs
def draw_curves(
    runs: dict[str, list[dict]], output: Path, entropies: Iterable[float] = (), axis: str = "tokens"
) -> Path:
    """Draw the metrics of one run or several into one picture. What no run has measured gets no panel.

    Args:
        runs: the records of each run, by its name.
        output: the picture to write.
        entropies: unigram entropies of the validation data, drawn as lines.
        axis: what they are drawn over, a key of `AXES`. The time is that of the training steps alone.

    Raises:
        UserError: for `tokens` and `time` where the records hold none.
    """
    from matplotlib import pyplot

    panels = [panel for panel, keys in PANELS.items() if any(_has(records, keys) for records in runs.values())]
    panels = panels or [draw_losses]
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    size = (8, 4.8) if len(panels) == 1 else (12, 3.6 * rows)
    figure, grid = pyplot.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    colours = pyplot.rcParams["axes.prop_cycle"].by_key()["color"]
    try:
        for axes, panel in zip(grid.flat, panels, strict=False):
            for number, (name, records) in enumerate(runs.items()):
                prefix = f"{name}: " if len(runs) > 1 else ""
                if prefix.startswith("_"):  # such labels are left out of the legend
                    prefix = f" {prefix}"
                panel(axes, Curves(records, axis, name), prefix, colours[number % len(colours)], len(runs) == 1)
            if panel is draw_losses:
                for entropy in sorted({round(value, 4) for value in entropies}):
                    label = f"unigram entropy {entropy:.2f}"
                    axes.axhline(entropy, color="black", linestyle="--", linewidth=1, label=label)
            axes.set_xlabel(AXES[axis])
            axes.grid(alpha=0.3)
            if axes.get_legend_handles_labels()[0]:
                axes.legend(fontsize="small")
        for axes in grid.flat[len(panels) :]:
            axes.remove()
        figure.savefig(output, dpi=120)
    finally:
        pyplot.close(figure)
    return output


class Curves:
    """The points of one run's metrics over steps, tokens or time."""

    def __init__(self, records: list[dict], axis: str, name: str):
        self.records = records
        self.steps: list[int] = []
        self.places: list[float] = []
        if axis in COUNTED:
            key, unit = COUNTED[axis]
            known = [(record["step"], record[key] / unit) for record in records if key in record]
            if not known:
                raise UserError(f"{name}: the metrics hold no {key}: draw them with `--over step`.")
            self.steps, self.places = map(list, zip(*sorted(known), strict=True))

    def points(self, key: str) -> tuple[list[float], list]:
        """Where a key has a value, and the values."""
        records = [record for record in self.records if record.get(key) is not None]
        steps = [record["step"] for record in records]
        # An evaluation counts neither tokens nor time.
        places = steps if not self.steps else np.interp(steps, self.steps, self.places).tolist()
        return places, [record[key] for record in records]


def draw_losses(axes, curves: Curves, prefix: str, colour: str, alone: bool):
    _, losses = curves.points("validation_loss")
    last = f" {losses[-1]:.2f} at the end" if losses else ""
    _draw_both(axes, curves, ("loss", "validation_loss"), prefix, " loss", colour, last)
    axes.set_ylabel("masked-LM loss (nats per predicted token)")


def draw_accuracy(axes, curves: Curves, prefix: str, colour: str, alone: bool):
    _draw_both(axes, curves, ("accuracy", "validation_accuracy"), prefix, "", colour)
    axes.set_ylabel("masked accuracy")


def draw_ranks(axes, curves: Curves, prefix: str, colour: str, alone: bool):
    _draw_layers(axes, curves, "effective_rank", prefix, colour, alone)
    axes.set_ylabel("effective rank of P")
    axes.set_ylim(1, 1 + 1.1 * (max(axes.get_ylim()[1], 2) - 1))


def draw_entropies(axes, curves: Curves, prefix: str, colour: str, alone: bool):
    _draw_layers(axes, curves, "relative_pack_entropy", prefix, colour, alone)
    axes.set_ylabel("entropy of pack attention / log n")


PANELS = {
    draw_losses: ("loss", "validation_loss"),
    draw_accuracy: ("accuracy", "validation_accuracy"),
    draw_ranks: ("effective_rank",),
    draw_entropies: ("relative_pack_entropy",),
}


def _draw_both(axes, curves: Curves, keys: tuple[str, str], prefix: str, what: str, colour: str, last: str = ""):
    """Training as a thin line and validation as a bold one; the legend of several runs names each run once.

    Args:
        last: stands in the legend, too.
    """
    training, validation = f"{prefix}training{what}", f"{prefix}validation{what}{last}"
    if prefix and curves.points(keys[1])[1]:
        training, validation = "", f"{validation} (thin: training)"
    _draw(axes, curves, keys[0], training, colour, THIN)
    _draw(axes, curves, keys[1], validation, colour, BOLD)


def _draw(axes, curves: Curves, key: str, label: str, colour: str, style: dict):
    places, values = curves.points(key)
    if values:
        axes.plot(places, values, color=colour, label=label or None, **style)


def _draw_layers(axes, curves: Curves, key: str, prefix: str, colour: str, alone: bool):
    """A line for each layer of the one run; of several runs, the mean over the layers."""
    places, values = curves.points(key)
    if not values:
        return
    if not alone:
        axes.plot(
            places,
            np.mean(np.array(values, dtype=float), axis=1),
            color=colour,
            label=f"{prefix}mean of the layers",
            **BOLD,
        )
        return
    layers = np.array(values, dtype=float).T
    for number, layer in enumerate(layers):
        shade = matplotlib.colormaps["viridis"](number / max(1, len(layers) - 1))
        named = number in (0, len(layers) - 1)
        axes.plot(places, layer, color=shade, label=f"layer {number}" if named else None, **(BOLD | {"linewidth": 1}))


def _has(records: list[dict], keys: tuple[str, ...]) -> bool:
    return any(record.get(key) is not None for record in records for key in keys)
