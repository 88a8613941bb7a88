"""The picture of the losses of a run or several."""

from collections.abc import Iterable
from pathlib import Path

import matplotlib


matplotlib.use("Agg")
STYLES: dict[str, tuple[str, dict]] = {
    "loss": ("training loss", {"alpha": 0.4, "linewidth": 1}),
    "validation_loss": ("validation loss", {"marker": "o", "markersize": 4, "linewidth": 2}),
}


def draw_curves(runs: dict[str, list[dict]], output: Path, entropies: Iterable[float] = ()) -> Path:
    """Draw training and validation loss over the steps.

    Args:
        runs: the records of each run, by its name.
        output: the picture to write.
        entropies: unigram entropies of the validation data, drawn as lines.
    """
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.8), layout="constrained")
    colours = pyplot.rcParams["axes.prop_cycle"].by_key()["color"]
    for number, (name, records) in enumerate(runs.items()):
        prefix = f"{name}: " if len(runs) > 1 else ""
        for key, (label, style) in STYLES.items():
            points = [(record["step"], record[key]) for record in records if record.get(key) is not None]
            if points:
                colour = colours[number % len(colours)]
                axes.plot(*zip(*points, strict=True), color=colour, label=prefix + label, **style)
                if key == "validation_loss":
                    axes.annotate(f"{points[-1][1]:.2f}", points[-1], xytext=(-14, 8), textcoords="offset points")
    for entropy in sorted({round(value, 4) for value in entropies}):
        axes.axhline(entropy, color="black", linestyle="--", linewidth=1, label=f"unigram entropy {entropy:.2f}")
    axes.set_xlabel("step")
    axes.set_ylabel("masked-LM loss (nats per predicted token)")
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend()
    figure.savefig(output, dpi=120)
    pyplot.close(figure)
    return output
