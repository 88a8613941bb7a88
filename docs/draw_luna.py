# Copyright 2026 The Luna for Transformers authors.
# SPDX-License-Identifier: Apache-2.0
"""Draw pack and unpack inside one layer: `python docs/draw_luna.py` writes docs/luna.png (needs matplotlib)."""

import argparse
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch, Rectangle

from common.errors import report_user_errors


OUTPUT = Path(__file__).with_name("luna.png")
WIDTH, HEIGHT = 18.0, 9.8  # of the drawing; half as many inches, at 200 dots each
NUM_TOKENS, NUM_SLOTS = 12, 4
CELL = 0.3

# Blue and vermilion of the palette of Okabe and Ito: colour-blind readers can tell them apart.
BLUE, VERMILION = "#0072B2", "#D55E00"
LIGHT_BLUE, LIGHT_VERMILION = "#CDE4F3", "#F9D9C6"
INK, GREY, FRAME, PAPER = "#222222", "#E9E9E9", "#8A8A8A", "#F7F7F7"
SMALL, NORMAL, LARGE = 9.5, 10.5, 11.5

TOKENS_Y, PACKED_Y = 3.2, 7.25  # the middle of the two lanes
LEFT, RIGHT = 1.15, 16.85  # the states before and after the layer
LAYER = (2.35, 0.4, 13.3, 9.0)
PACK_X, UNPACK_X, CONTEXT_X = 5.75, 9.2, 9.2
ADD_X, NORM_X, MLP_X, SECOND_ADD_X, SECOND_NORM_X = 10.75, 11.65, 13.05, 14.05, 14.95
RADIUS, BOX = 0.22, 0.45  # of a sum, and half the width of a box


def main():
    argparse.ArgumentParser(description=__doc__).parse_args()
    draw().savefig(OUTPUT, dpi=200)
    print(f"wrote {OUTPUT}")


def draw() -> Figure:
    figure = Figure(figsize=(WIDTH / 2, HEIGHT / 2), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, WIDTH), ylim=(0, HEIGHT), aspect="equal")
    axes.axis("off")
    draw_layer_frame(axes)
    draw_states(axes)
    draw_attention_maps(axes)
    draw_packed_lane(axes)
    draw_token_lane(axes)
    return figure


def draw_layer_frame(axes: Axes):
    x, y, width, height = LAYER
    frame = FancyBboxPatch(
        (x, y), width, height, boxstyle="round,pad=0,rounding_size=0.3", facecolor=PAPER, edgecolor=FRAME, lw=1.2
    )
    axes.add_patch(frame)
    write(axes, x + width - 0.25, y + 0.35, "one layer", size=LARGE, ha="right", weight="bold")


def draw_states(axes: Axes):
    before = ("packed state\n$P$: $l$ slots", "hidden states\n$X$: $n$ tokens")
    after = ("$P$ for the\nnext layer", "$X$ for the\nnext layer")
    for x, (packed, tokens) in ((LEFT, before), (RIGHT, after)):
        draw_column(axes, x, PACKED_Y, NUM_SLOTS, VERMILION, LIGHT_VERMILION)
        draw_column(axes, x, TOKENS_Y, NUM_TOKENS, BLUE, LIGHT_BLUE)
        write(axes, x, top(PACKED_Y, NUM_SLOTS) + 0.55, packed, color=VERMILION)
        write(axes, x, top(TOKENS_Y, NUM_TOKENS) + 0.55, tokens, color=BLUE)


def draw_attention_maps(axes: Axes):
    generator = np.random.default_rng(3)
    pack_top = draw_map(axes, PACK_X, PACKED_Y, generator, NUM_SLOTS, NUM_TOKENS, VERMILION)
    draw_map(axes, UNPACK_X, TOKENS_Y, generator, NUM_TOKENS, NUM_SLOTS, BLUE)
    write(axes, PACK_X, pack_top + 0.3, "pack attention, $l \\times n$", size=LARGE, weight="bold")
    write(axes, UNPACK_X - 0.85, 1.95, "unpack attention, $n \\times l$", size=LARGE, ha="right", weight="bold")
    draw_column(axes, CONTEXT_X, PACKED_Y, NUM_SLOTS, VERMILION, LIGHT_VERMILION)
    write(axes, CONTEXT_X, pack_top + 0.3, "$Y_P$", size=LARGE, color=VERMILION)


def draw_packed_lane(axes: Axes):
    y, over = PACKED_Y, 8.95
    half = CELL / 2
    arrow(axes, VERMILION, (LEFT + half, y), (PACK_X - NUM_TOKENS * half, y))
    write(axes, 3.2, y - 0.28, "queries", size=SMALL, color=VERMILION)
    arrow(axes, VERMILION, (PACK_X + NUM_TOKENS * half, y), (CONTEXT_X - half, y))
    arrow(axes, VERMILION, (CONTEXT_X + half, y), (ADD_X - RADIUS, y))
    arrow(axes, VERMILION, (2.65, y), (2.65, over), (ADD_X, over), (ADD_X, y + RADIUS))
    draw_sum(axes, ADD_X, y, VERMILION)
    arrow(axes, VERMILION, (ADD_X + RADIUS, y), (NORM_X - BOX, y))
    draw_box(axes, NORM_X, y, "norm", GREY)
    arrow(axes, VERMILION, (NORM_X + BOX, y), (RIGHT - half, y))
    below = y - NUM_SLOTS * half
    arrow(axes, VERMILION, (CONTEXT_X, below), (CONTEXT_X, top(TOKENS_Y, NUM_TOKENS)))
    write(axes, CONTEXT_X + 0.15, 5.75, "keys, values", size=SMALL, ha="left", color=VERMILION)


def draw_token_lane(axes: Axes):
    y, under = TOKENS_Y, 0.85
    half = CELL / 2
    arrow(axes, BLUE, (LEFT + half, y), (UNPACK_X - NUM_SLOTS * half, y))
    write(axes, 7.4, y - 0.28, "queries", size=SMALL, color=BLUE)
    arrow(axes, BLUE, (PACK_X, y), (PACK_X, PACKED_Y - NUM_SLOTS * half))
    write(axes, PACK_X + 0.15, 5.75, "keys, values", size=SMALL, ha="left", color=BLUE)
    arrow(axes, BLUE, (2.65, y), (2.65, under), (ADD_X, under), (ADD_X, y - RADIUS))
    arrow(axes, BLUE, (UNPACK_X + NUM_SLOTS * half, y), (ADD_X - RADIUS, y))
    draw_sum(axes, ADD_X, y, BLUE)
    arrow(axes, BLUE, (ADD_X + RADIUS, y), (NORM_X - BOX, y))
    draw_box(axes, NORM_X, y, "norm", GREY)
    arrow(axes, BLUE, (NORM_X + BOX, y), (MLP_X - BOX, y))
    draw_box(axes, MLP_X, y, "FFN", LIGHT_BLUE)
    arrow(axes, BLUE, (MLP_X + BOX, y), (SECOND_ADD_X - RADIUS, y))
    branch = (NORM_X + MLP_X) / 2
    arrow(axes, BLUE, (branch, y), (branch, y - 1.0), (SECOND_ADD_X, y - 1.0), (SECOND_ADD_X, y - RADIUS))
    draw_sum(axes, SECOND_ADD_X, y, BLUE)
    arrow(axes, BLUE, (SECOND_ADD_X + RADIUS, y), (SECOND_NORM_X - BOX, y))
    draw_box(axes, SECOND_NORM_X, y, "norm", GREY)
    arrow(axes, BLUE, (SECOND_NORM_X + BOX, y), (RIGHT - half, y))


def draw_column(axes: Axes, x: float, y: float, count: int, edge: str, fill: str):
    """One state a cell, around the middle (x, y)."""
    for row in range(count):
        corner = (x - CELL / 2, y + (row - count / 2) * CELL)
        axes.add_patch(Rectangle(corner, CELL, CELL, facecolor=fill, edgecolor=edge, lw=1.1))


def draw_map(
    axes: Axes, x: float, y: float, generator: np.random.Generator, rows: int, columns: int, color: str
) -> float:
    """Attention weights of made-up queries (rows) over keys (columns); returns the height of the upper edge."""
    weights = np.exp(generator.normal(size=(rows, columns)))
    weights /= weights.max(axis=1, keepdims=True)
    shades = LinearSegmentedColormap.from_list("weights", ["white", color])
    left, lower = x - columns * CELL / 2, y - rows * CELL / 2
    for row in range(rows):
        for column in range(columns):
            corner = (left + column * CELL, lower + row * CELL)
            fill = shades(weights[row, column])
            axes.add_patch(Rectangle(corner, CELL, CELL, facecolor=fill, edgecolor="#BBBBBB", lw=0.5))
    axes.add_patch(Rectangle((left, lower), columns * CELL, rows * CELL, fill=False, edgecolor=INK, lw=1.2))
    return lower + rows * CELL


def draw_box(axes: Axes, x: float, y: float, text: str, fill: str):
    box = FancyBboxPatch(
        (x - BOX, y - 0.3),
        2 * BOX,
        0.6,
        boxstyle="round,pad=0,rounding_size=0.1",
        facecolor=fill,
        edgecolor=INK,
        lw=1.0,
    )
    axes.add_patch(box)
    write(axes, x, y, text)


def draw_sum(axes: Axes, x: float, y: float, color: str):
    axes.add_patch(Circle((x, y), RADIUS, facecolor="white", edgecolor=color, lw=1.4))
    for (x1, x2), (y1, y2) in (((-0.12, 0.12), (0, 0)), ((0, 0), (-0.12, 0.12))):
        axes.plot((x + x1, x + x2), (y + y1, y + y2), color=color, lw=1.4)


def arrow(axes: Axes, color: str, *points: tuple[float, float]):
    """A line through the points, with a head at the last one."""
    xs, ys = zip(*points, strict=True)
    axes.plot(xs[:-1], ys[:-1], color=color, lw=1.5, solid_capstyle="butt", solid_joinstyle="round")
    style = {"arrowstyle": "-|>", "color": color, "lw": 1.5, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 10}
    axes.annotate("", xy=points[-1], xytext=points[-2], arrowprops=style)


def write(axes: Axes, x: float, y: float, text: str, size: float = NORMAL, color: str = INK, ha="center", weight=None):
    axes.text(x, y, text, fontsize=size, color=color, ha=ha, va="center", weight=weight, linespacing=1.25)


def top(middle: float, count: int) -> float:
    return middle + count * CELL / 2


if __name__ == "__main__":
    with report_user_errors():
        main()
