"""One measurement of `benchmarks/speed/speed.py`: how fast a model works through a batch, and what it needs for that.

    python benchmarks/speed/case.py '{"model": "luna-128", "length": 512}'

The keys are those of `Case`. It prints one line of JSON, see `measure`. The process measures nothing else, so that
nothing that another model has left in memory or in caches counts.
"""

import argparse
import contextlib
import dataclasses
import json
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedConfig

from benchmarks.speed.limited_process import OUT_OF_MEMORY
from benchmarks.speed.models import ModelName, count_parameters, new_config, new_model
from benchmarks.speed.rows import Batch, document_lengths, new_batch
from common.allocator import keep_freed_memory
from common.compilation import compile_parts
from common.errors import report_user_errors
from common.flops import training_flops
from common.gradient_checkpointing import enable_checkpointing
from common.hardware import peak_memory
from common.labels import IGNORED
from common.peak_speed import peak_flops
from modeling_luna import LunaConfig
from modeling_luna.kernels_luna import use_fast_kernels


# Steps that do not count: memory is taken, kernels are chosen and, on a GPU, autotuned.
WARMUP_STEPS = {"cpu": 3, "cuda": 3}


@dataclasses.dataclass(frozen=True)
class Case:
    """What is measured.

    Args:
        model: see `benchmarks.speed.models`.
        length: n, tokens a row.
        tokens: a batch, padding included; a batch holds at least one row.
        layers: of a stack in the model's place; None for the whole model.
        task: `training` (forward, backward, AdamW) or `inference` (forward).
        head: whether the masked-LM head is a part. Without it the loss of training is a random projection of the last
            hidden states.
        dropout: everywhere where the published model has one.
        dtype: `float32` or `bfloat16`: in training autocast over float32 weights, in inference the weights as well.
        rows: `full`; `padded`, documents of various lengths padded to n; `varlen`, the same without padding.
        lengths_file: their lengths, see `document_lengths`.
        checkpointing: of training: `none`; `selective` or `whole` layers, see `enable_checkpointing`.
        compile: whether `torch.compile` compiles the layers, the head and the loss.
        device: `cpu` or `cuda`.
        size: a key of `SIZES`.
        peers_fast: whether the plain linear maps and dropouts of the other models compute as those of Luna do on a
            CPU, see `use_fast_kernels`.
        steps, seconds: as many steps are timed, or as many as begin within that time, but at least one. No warm-up
            step but the first begins after that time, either.
    """

    model: str
    length: int
    tokens: int = 8192
    layers: int | None = None
    task: str = "training"
    head: bool = True
    dropout: float = 0.0
    dtype: str = "float32"
    rows: str = "full"
    lengths_file: str | None = None
    checkpointing: str = "none"
    compile: bool = False
    device: str = "cpu"
    size: str = "base"
    peers_fast: bool = False
    steps: int = 3
    seconds: float = 60.0

    @property
    def name(self) -> ModelName:
        return ModelName.parse(self.model)

    def new_config(self, layers: int | None) -> PreTrainedConfig:
        return new_config(self.name, self.length, self.dropout, layers, self.size)


class Marks:
    """Points of time between the parts of a step; a GPU sets its own, so that it need not be waited for."""

    def __init__(self, device: str):
        self.device = device
        self.marks: list = []

    def set(self):
        if self.device == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append(event)
        else:
            self.marks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Between each two of them."""
        pairs = zip(self.marks, self.marks[1:], strict=False)
        if self.device != "cuda":
            return [end - start for start, end in pairs]
        torch.cuda.synchronize()
        return [start.elapsed_time(end) / 1000 for start, end in pairs]


def measure(case: Case) -> dict:
    """
    Returns:
        seconds: for each part of a step (`forward`; in training `backward` and `optimizer`) those of each timed step.
        tokens: of the batch, padding left out.
        memory: bytes held at most, see `peak_memory`; on a CPU with some hundreds of MiB of code.
        loss: of the first step, None in inference.
        layers, whole_layers, parameters, whole_parameters: of what was measured, and of the whole model.
        flops: operations that the formulas of Luna need for the step; None for the peers.
        peak_flops: operations a second that the device can do at most, None where that is unknown.
    """
    peak = peak_flops(torch.device(case.device), "bf16" if case.dtype == "bfloat16" else "no")
    name, config, whole = case.name, case.new_config(case.layers), case.new_config(None)
    num_rows = max(1, case.tokens // case.length)
    lengths = [case.length] * num_rows
    if case.rows != "full":
        lengths = document_lengths(num_rows, case.length, case.lengths_file)
    batch = new_batch(name, config, case.rows, lengths, case.length, torch.device(case.device))

    torch.manual_seed(0)
    model = new_model(name, config, case.head)
    if case.peers_fast and name.kind != "luna":
        use_fast_kernels(model)
    parameters = model.num_parameters()
    step = training_step(case, model, batch) if case.task == "training" else inference_step(case, model, batch)
    loss = warm_up(case, step)
    timed = time_steps(case, step)
    parts = ("forward", "backward", "optimizer")
    return {
        "seconds": dict(zip(parts, map(list, zip(*timed, strict=True)), strict=False)),
        "tokens": batch.num_tokens,
        "memory": peak_memory(torch.device(case.device)),
        "loss": None if loss is None else loss.item(),
        "layers": config.num_hidden_layers,
        "whole_layers": whole.num_hidden_layers,
        "parameters": parameters,
        "whole_parameters": parameters if case.layers is None else count_parameters(name, whole, case.head),
        "flops": needed_flops(case, config, batch) if isinstance(config, LunaConfig) else None,
        "peak_flops": peak,
    }


def warm_up(case: Case, step: Callable[[Marks], torch.Tensor | None]) -> torch.Tensor | None:
    """The loss of the first step."""
    end = time.perf_counter() + case.seconds
    loss = step(Marks(case.device))
    for _ in range(WARMUP_STEPS[case.device] - 1):
        if time.perf_counter() < end:
            step(Marks(case.device))
    return loss


def time_steps(case: Case, step: Callable[[Marks], object]) -> list[list[float]]:
    """For each timed step the seconds of its parts."""
    marks, steps = Marks(case.device), 0
    end = time.perf_counter() + case.seconds
    marks.set()
    while not steps or (steps < case.steps and time.perf_counter() < end):
        step(marks)
        steps += 1
    seconds = marks.seconds()
    parts = len(seconds) // steps
    return [seconds[first : first + parts] for first in range(0, len(seconds), parts)]


def training_step(case: Case, model: Any, batch: Batch) -> Callable[[Marks], torch.Tensor]:
    """Forward, backward, update; each step gives its loss."""
    model.to(case.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    if case.checkpointing != "none":
        enable_checkpointing(model, selective=case.checkpointing == "selective")
    if case.compile:
        compile_parts(model)
    inputs = dict(batch.inputs)
    if case.head:
        inputs["labels"] = batch.labels
        if case.name.kind == "luna":
            inputs["num_predicted"] = int((batch.labels != IGNORED).sum())
    direction = torch.randn(model.config.hidden_size, device=case.device)
    shares = batch.token_mask / batch.num_tokens

    def step(marks: Marks) -> torch.Tensor:
        with precision(case.device, case.dtype):
            outputs = model(**inputs)
            loss = outputs.loss if case.head else ((outputs.last_hidden_state * direction).sum(-1) * shares).sum()
        marks.set()
        loss.backward()
        marks.set()
        optimizer.step()
        optimizer.zero_grad()
        marks.set()
        return loss.detach()

    return step


def inference_step(case: Case, model: Any, batch: Batch) -> Callable[[Marks], None]:
    model.to(case.device, getattr(torch, case.dtype)).eval()
    if case.compile:
        compile_parts(model)

    @torch.inference_mode()
    def step(marks: Marks):
        model(**batch.inputs)
        marks.set()

    return step


def precision(device: str, dtype: str) -> contextlib.AbstractContextManager:
    return torch.autocast(device, torch.bfloat16) if dtype == "bfloat16" else contextlib.nullcontext()


def needed_flops(case: Case, config: LunaConfig, batch: Batch) -> int:
    """Operations for the documents of the batch; padding needs none."""
    labelled = int((batch.labels != IGNORED).sum())
    flops = sum(training_flops(config, 1, length, 0) for length in batch.lengths)
    if case.head:
        predicted = labelled if case.task == "training" else batch.num_tokens
        flops += training_flops(config, 1, 1, predicted) - training_flops(config, 1, 1, 0)
    return flops if case.task == "training" else flops // 3


def is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


def main():
    keep_freed_memory()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", type=json.loads, help="the fields of a case as JSON, from benchmarks/speed/speed.py")
    case = Case(**parser.parse_args().case)
    try:
        result = {"outcome": "measured", **measure(case)}
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        result = {"outcome": OUT_OF_MEMORY}
    print(json.dumps(result))


if __name__ == "__main__":
    with report_user_errors(kept="Nothing was kept."):
        main()
