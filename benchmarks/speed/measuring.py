"""Cases measured one after the other, each in a process of its own."""

import argparse
import dataclasses
import itertools
import json
import sys
from collections.abc import Iterator

from benchmarks.speed import case as speed_case
from benchmarks.speed.case import Case
from benchmarks.speed.limited_process import available_memory, run_limited
from benchmarks.speed.record import MEASURED, Measurement, Record
from benchmarks.speed.report import PEERS_FAST, throughput
from common.hardware import GIB


FREE_SHARE = 0.85  # of the memory that is free at the start


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
