"""Tokens per second and peak memory of Luna and of its peers out of Transformers, over the length of rows.

    python benchmarks/speed/speed.py --quick
    python benchmarks/speed/speed.py --no_head --layers 3 --layers_from 8192
    python benchmarks/speed/speed.py --models luna-128 --lengths 512 --rows padded varlen
    python benchmarks/speed/speed.py --device cuda --dtype bfloat16 --compile --models luna-128 modernbert+flash

Every measurement is a process of its own, which makes the model, takes steps that do not count, and times some more.
On a CPU with glibc it keeps the memory that it has freed (`common/allocator.py`), whatever the model. Models take
turns, and all of them come again in each round, so that a busy minute does not hit one of them alone; medians over all
steps of all rounds are shown. A process that needs too much memory or time is ended, and that is what is shown of it.
Of --tasks, --dropout, --dtype, --rows and --checkpointing every combination is measured.

The record is written after each measurement, and the same command goes on with it; another command on the same day
adds to it. Beside it lie a table of it (Markdown) and pictures, which `benchmarks/speed/report.py RECORD` makes again.

A model is luna-L with L slots, roberta, modernbert, nystromformer, bigbird, longformer or fnet. Behind its name may
stand an implementation of attention: +flash, +flex, +sdpa or +eager.

--rows padded: documents of various lengths, padded to n; varlen: the same without padding, for models that can keep
documents apart (Luna; with +flash roberta and modernbert). Tokens per second do not count padding. The lengths are
log-normal and half of the tokens are padding when padded, or they are those of --lengths_file, with one a line, such
as `awk '{print NF}' RS= corpus.txt` counts the words of texts between empty lines.

With --peers_fast the plain linear maps and dropouts of the other models compute as those of Luna do on a CPU: products
by oneDNN where that is faster, and dropout with fewer draws. Run the same command with and without it: the record and
its tables then show both, the peers as their users get them and the peers with the same products.

With --layers a stack of a few layers stands in for the whole model, for rows of --layers_from tokens and more. Its
times for forward and backward are multiplied by (layers of the model / layers of the stack), that of the optimiser by
the ratio of their parameters; so the embeddings of the stack, which are a few percent of it, count several times.
ModernBERT alternates one layer of global attention with two of local ones: take a multiple of 3. Memory is not scaled.
"""

import argparse
import dataclasses
import datetime
import itertools
import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.speed import case as speed_case
from benchmarks.speed.case import Case
from benchmarks.speed.limited_process import available_memory, run_limited
from benchmarks.speed.models import SIZES, ModelName
from benchmarks.speed.options import positive
from benchmarks.speed.record import MEASURED, Measurement, Record, describe_maker, record_name
from benchmarks.speed.report import PEERS_FAST, throughput, write_report
from benchmarks.speed.rows import read_lengths
from common.errors import UserError, report_user_errors
from common.hardware import GIB


RECORDS = Path(__file__).parents[1] / "records"
QUICK_RECORDS = Path("runs/speed")
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
FREE_SHARE = 0.85  # of the memory that is free at the start


def parse_options(arguments: list[str]) -> argparse.Namespace:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter, allow_abbrev=False)
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


def plan_cases(options: argparse.Namespace) -> list[Case]:
    """All cases, those of the models next to each other.

    Raises:
        UserError: for options that cannot be.
    """
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no GPU.")
    if options.peers_fast and (options.device == "cuda" or options.compile):
        raise UserError("--peers_fast changes nothing on a GPU or with --compile: leave it out.")
    if any(not 0.0 <= dropout < 1.0 for dropout in options.dropout):
        raise UserError(f"--dropout must be at least 0 and below 1: {options.dropout}.")
    if options.lengths_file is not None:
        read_lengths(Path(options.lengths_file))
    names = {model: ModelName.parse(model) for model in options.models}
    if options.layers is not None and options.layers % 3 and any(name.kind == "modernbert" for name in names.values()):
        raise UserError(f"--layers {options.layers}: ModernBERT's mix of layers needs a multiple of 3.")
    cases = [
        Case(
            model=model,
            length=length,
            tokens=options.tokens,
            layers=options.layers if length >= options.layers_from else None,
            task=task,
            head=options.head,
            dropout=dropout if task == "training" else 0.0,
            dtype=dtype,
            rows=rows,
            lengths_file=None if rows == "full" else options.lengths_file,
            checkpointing=checkpointing if task == "training" else "none",
            compile=options.compile,
            device=options.device,
            size=options.size,
            peers_fast=options.peers_fast,
            steps=options.steps,
            seconds=options.seconds,
        )
        for length, task, dtype, dropout, rows, checkpointing, model in itertools.product(
            options.lengths,
            options.tasks,
            options.dtype,
            options.dropout,
            options.rows,
            options.checkpointing,
            options.models,
        )
        if rows != "varlen" or names[model].takes_varlen
    ]
    return list(dict.fromkeys(cases))


def open_record(options: argparse.Namespace) -> Record:
    made_by = describe_maker(torch.device(options.device))
    path = options.record
    if path is None and options.quick:
        path = QUICK_RECORDS / f"quick-{datetime.datetime.now():%Y-%m-%d-%H%M%S}.json"
    return Record.open(path or RECORDS / record_name(made_by), made_by)


def run_case(case: Case, number: int, seconds: float, memory: int | None) -> Measurement:
    """Measure a case in a process of its own."""
    command = [sys.executable, speed_case.__file__, json.dumps(dataclasses.asdict(case))]
    ended_by, output = run_limited(command, seconds, memory)
    if ended_by is not None:
        return Measurement(case, number, ended_by)
    result = json.loads(output.splitlines()[-1])
    return Measurement(case, number, result.pop("outcome"), result)


def describe(measurement: Measurement) -> str:
    case = measurement.case
    text = f"{case.model}, n = {case.length}, {case.task}, {case.dtype}, dropout {case.dropout:g}, {case.rows} rows"
    text += "" if case.checkpointing == "none" else f", {case.checkpointing} checkpointing"
    text += f", {PEERS_FAST}: " if case.peers_fast else ": "
    if measurement.outcome != MEASURED:
        return text + measurement.outcome
    memory = measurement.result["memory"] / GIB
    return text + f"{throughput([measurement]):,.0f} tokens/s, {memory:.1f} GiB"


def measure_all(cases: list[Case], record: Record, options: argparse.Namespace) -> Iterator[Measurement]:
    """Round by round, what the record does not hold yet."""
    memory = options.memory_limit and int(options.memory_limit * GIB)
    if memory is None and (free := available_memory()):
        memory = int(free * FREE_SHARE)
    for number, case in itertools.product(range(options.rounds), cases):
        if record.needs(case, number):
            measurement = run_case(case, number, options.time_limit, memory)
            record.add(measurement)
            yield measurement


def main():
    options = parse_options(sys.argv[1:])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("Stopped. The same command goes on."))
    cases = plan_cases(options)
    record = open_record(options)
    print(f"{len(cases)} cases, {options.rounds} times, on {record.made_by['hardware']}: {record.path}", flush=True)
    for measurement in measure_all(cases, record, options):
        print(describe(measurement), flush=True)
    report = write_report(record)
    print(f"\n{report.read_text(encoding='utf-8')}\n{report}")


if __name__ == "__main__":
    with report_user_errors("The same command goes on."):
        main()
