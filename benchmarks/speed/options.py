"""The options of `benchmarks/speed/speed.py`."""

import argparse
from pathlib import Path

import torch

from benchmarks.speed.models import SIZES


LUNAS = ["luna-16", "luna-64", "luna-128", "luna-256"]
PEERS = ["roberta", "modernbert", "nystromformer", "bigbird", "longformer", "fnet"]
LENGTHS = [128, 512, 2048, 8192, 32768]
TOKENS = {"cpu": 8192, "cuda": 65536}
QUICK = {
    "models": ["luna-128", "roberta", "modernbert"],
    "lengths": [512, 2048, 8192],
    "tokens": 2048,
    "layers": 3,
    "head": False,
    "rounds": 1,
    "steps": 2,
    "seconds": 4.0,
}


def parse_options(arguments: list[str], about: str) -> argparse.Namespace:
    """
    Args:
        about: what `--help` prints before the options.
    """
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=about, formatter_class=formatter, allow_abbrev=False)
    add = parser.add_argument
    add("--quick", action="store_true", help="about four minutes on two cores; other options change it")
    add("--models", nargs="+", help="such as luna-64 roberta modernbert+flash (all; +flash with flash-attn alone)")
    add("--lengths", nargs="+", type=positive, default=LENGTHS, metavar="N", help="tokens a row (%(default)s)")
    add("--tokens", type=positive, help="a batch, but at least one row (8192 on a CPU, 65536 on a GPU)")
    add("--tasks", nargs="+", choices=["training", "inference"], default=["training"])
    add("--no_head", dest="head", action="store_false", help="without the masked-LM head")
    add("--dropout", nargs="+", type=float, default=[0.0], help="everywhere where a model has one (0)")
    add("--dtype", nargs="+", choices=["float32", "bfloat16"], default=["float32"], help="autocast in training")
    add("--rows", nargs="+", choices=["full", "padded", "varlen"], default=["full"], help="see above (full)")
    add("--lengths_file", help="of documents, see above (log-normal)")
    add(
        "--checkpointing", nargs="+", choices=["none", "selective", "whole"], default=["none"],
        help="in training: layers are computed again in the backward pass, whole or what is cheap of them (none)",
    )  # fmt: skip
    add("--compile", action="store_true", help="torch.compile layers, head and loss")
    add("--peers_fast", action="store_true", help="the other models with Luna's linear maps and dropout, see above")
    add("--layers", type=positive, help="of a stack in the place of the whole model, see above")
    add("--layers_from", type=positive, default=1, metavar="N", help="for rows of N tokens and more")
    add("--rounds", type=positive, default=3, help="processes for each case (%(default)s)")
    add("--steps", type=positive, default=3, help="timed in each process (%(default)s)")
    add("--seconds", type=float, default=60.0, help="after which no timed step begins (%(default)s)")
    add("--time_limit", type=float, default=900.0, help="seconds of a process (%(default)s)")
    add("--memory_limit", type=float, metavar="GIB", help="of a process (85%% of what is free); Linux alone")
    add("--device", choices=["cpu", "cuda"], help="(cuda where there is a GPU)")
    add("--size", choices=list(SIZES), default="base", help="tiny is for trying this script out")
    add("--record", type=Path, help="(benchmarks/records/DATE-HARDWARE.json; with --quick a new one in runs/speed)")
    if parser.parse_known_args(arguments)[0].quick:
        parser.set_defaults(**QUICK)
    options = parser.parse_args(arguments)
    options.device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    options.tokens = options.tokens or TOKENS[options.device]
    options.models = options.models or default_models(options.device)
    return options


def default_models(device: str) -> list[str]:
    from transformers.utils import is_flash_attn_2_available

    flash = ["luna-128+flash", "roberta+flash", "modernbert+flash"]
    return LUNAS + PEERS + (flash if device == "cuda" and is_flash_attn_2_available() else [])


def positive(text: str) -> int:
    """An int of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {text}")
    return number
