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
import datetime
import signal
import sys
from pathlib import Path

import torch

from benchmarks.speed.measuring import describe, measure_all
from benchmarks.speed.options import parse_options
from benchmarks.speed.plan import plan_cases
from benchmarks.speed.record import Record, describe_maker, record_name
from benchmarks.speed.report import write_report
from common.errors import report_user_errors


RECORDS = Path(__file__).parents[1] / "records"
QUICK_RECORDS = Path("runs/speed")


def open_record(options: argparse.Namespace) -> Record:
    made_by = describe_maker(torch.device(options.device))
    path = options.record
    if path is None and options.quick:
        path = QUICK_RECORDS / f"quick-{datetime.datetime.now():%Y-%m-%d-%H%M%S}.json"
    return Record.open(path or RECORDS / record_name(made_by), made_by)


def main():
    options = parse_options(sys.argv[1:], __doc__)
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
