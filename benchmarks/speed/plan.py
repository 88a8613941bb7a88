"""Which cases a call of `benchmarks/speed/speed.py` measures."""

import argparse
import itertools
from pathlib import Path

import torch

from benchmarks.speed.case import Case
from benchmarks.speed.models import ModelName
from benchmarks.speed.rows import read_lengths
from common.errors import UserError


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
