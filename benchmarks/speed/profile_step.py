"""Where the time of a training step of Luna goes, part by part, and how near each part comes to the device's peak.

    python benchmarks/speed/profile_step.py --length 512
    python benchmarks/speed/profile_step.py --length 8192 --layers 3 --no_head --dropout 0.1
    python benchmarks/speed/profile_step.py --length 2048 --tokens 32768 --device cuda --dtype bfloat16

torch's profiler notes every operation of some steps. One of the forward pass belongs to the innermost part that it is
called from; one of the backward pass to the part whose forward operation it is the backward of, which the profiler
tells by the number that autograd gives to both. On a GPU the time is that of the kernels, else that of the operations
themselves. The share of the peak is that of the multiply-adds that the formulas need, forward and backward, in that
time. Each part's time is the least of the profiled steps, and the sum is that of these times; the median time of whole
steps that are not profiled stands above the table.

The parts are:

    data         labels are drawn, and the batch is moved to the device; what reading and masking a corpus costs is
                 measured by benchmarks/pretraining/measure_step.py
    embeddings   with their norms and dropout
    projections  all linear maps of both attentions
    pack         what is left of the pack attention: scores, softmax, dropout, sums
    unpack       the same of the unpack attention
    FFN          both linear maps and the activation
    norms        of the layers
    dropout      of the layers' residuals
    head         with the loss
    optimizer    AdamW
    rest         residuals, layout of rows, masks, and what else belongs to no part
"""

import argparse
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function
from transformers import PreTrainedModel

from benchmarks.speed.case import precision
from benchmarks.speed.models import SIZES, ModelName, new_config, new_model
from benchmarks.speed.options import positive
from benchmarks.speed.rows import LABELLED
from common.allocator import keep_freed_memory
from common.errors import UserError, report_user_errors
from common.flops import forward_products
from common.hardware import describe_devices
from common.labels import IGNORED
from common.peak_speed import peak_flops
from modeling_luna import LunaConfig, modeling_luna
from modeling_luna.kernels_luna import PLAIN_FORWARDS, apply_convolution, apply_dropout, apply_linear
from modeling_luna.modeling_luna import LunaEmbeddings, LunaMLP, LunaPackAttention, LunaUnpackAttention


SCOPE = "part: "
REST = "rest"
BACKWARD = "autograd::engine::evaluate_function: "
PARTS: dict[type[nn.Module], str] = {
    LunaPackAttention: "pack",
    LunaUnpackAttention: "unpack",
    nn.Linear: "projections",
    nn.LayerNorm: "norms",
    nn.Dropout: "dropout",
}
# Modules that are one part with all that lies inside of them.
WHOLE_PARTS: dict[type[nn.Module], str] = {
    LunaEmbeddings: "embeddings",
    LunaMLP: "FFN",
    nn.Conv1d: "convolution",
}
WARMUP_STEPS = 3


def parts_of(model: PreTrainedModel) -> dict[nn.Module, str]:
    """The parts of a Luna model with or without its masked-LM head, by the module whose forward pass they are."""
    parts: dict[nn.Module, str] = {model: "head", model.base_model: REST}  # later entries count
    for kind, part in PARTS.items():
        parts |= {module: part for module in model.base_model.modules() if isinstance(module, kind)}
    for kind, part in WHOLE_PARTS.items():
        for module in (module for module in model.base_model.modules() if isinstance(module, kind)):
            parts |= dict.fromkeys(module.modules(), part)
    return parts


@contextmanager
def marked_parts(model: PreTrainedModel) -> Iterator[None]:
    """Let the profiler know in which part an operation of the forward pass is."""
    parts = parts_of(model)
    for module, part in parts.items():
        if type(module) not in PLAIN_FORWARDS:  # a hook would keep these from the faster kernels
            mark_by_hooks(module, part)

    def marked(apply: Callable) -> Callable:
        def call(module: nn.Module, states: torch.Tensor) -> torch.Tensor:
            with record_function(SCOPE + parts[module]) if module in parts else nullcontext():
                return apply(module, states)

        return call

    with ExitStack() as patches:
        for apply in (apply_linear, apply_dropout, apply_convolution):
            patches.enter_context(patch.object(modeling_luna, apply.__name__, marked(apply)))
        yield


def mark_by_hooks(module: nn.Module, part: str):
    scopes: list[record_function] = []

    def enter(module, arguments):
        scopes.append(record_function(SCOPE + part))
        scopes[-1].__enter__()

    def leave(module, arguments, output):
        scopes.pop().__exit__(None, None, None)

    module.register_forward_pre_hook(enter)
    module.register_forward_hook(leave)


def find_parts(events: Iterable[FunctionEvent]) -> list[tuple[str, FunctionEvent]]:
    """The part that each operation belongs to."""
    events = sorted(
        (event for event in events if event.device_type == torch.autograd.DeviceType.CPU),
        key=lambda event: event.time_range.start,
    )
    nodes = [enclosing(event, BACKWARD) for event in events]
    # Of the operations that autograd was about to give a number, the last one has got it.
    numbered = {
        event.sequence_nr: scope_of(event)
        for event, node in zip(events, nodes, strict=True)
        if node is None and event.sequence_nr >= 0
    }
    return [
        (scope_of(event) if node is None else numbered.get(node.sequence_nr, REST), event)
        for event, node in zip(events, nodes, strict=True)
    ]


def seconds_by_part(events: Iterable[FunctionEvent], device: str) -> Counter[str]:
    """The profiled time of each part."""
    seconds: Counter[str] = Counter()
    for part, event in find_parts(events):
        microseconds = event.self_device_time_total if device == "cuda" else event.self_cpu_time_total
        seconds[part] += microseconds / 1e6
    return seconds


def enclosing(event: FunctionEvent, prefix: str) -> FunctionEvent | None:
    """The event itself or the innermost one around it whose name begins so."""
    found: FunctionEvent | None = event
    while found is not None and not found.name.startswith(prefix):
        found = found.cpu_parent
    return found


def scope_of(event: FunctionEvent) -> str:
    scope = enclosing(event, SCOPE)
    return REST if scope is None else scope.name.removeprefix(SCOPE)


@dataclass
class Trainee:
    """A model in training on rows of random tokens.

    Args:
        rows: (rows, length), on the CPU.
    """

    model: Any
    rows: torch.Tensor
    head: bool
    device: str
    dtype: str

    def __post_init__(self):
        self.model.to(self.device).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5, fused=True)
        self.direction = torch.randn(self.model.config.hidden_size, device=self.device)
        self.labelled = int(self.rows.numel() * LABELLED)

    def step(self):
        with record_function(SCOPE + "data"):
            inputs: dict[str, Any] = {"input_ids": self.rows.to(self.device)}
            if self.head:
                chosen = torch.randperm(self.rows.numel())[: self.labelled]
                labels = torch.full((self.rows.numel(),), IGNORED)
                labels[chosen] = self.rows.flatten()[chosen]
                inputs |= {"labels": labels.view_as(self.rows).to(self.device), "num_predicted": self.labelled}
        with precision(self.device, self.dtype):
            outputs = self.model(**inputs)
            loss = outputs.loss if self.head else (outputs.last_hidden_state * self.direction).mean()
        loss.backward()
        with record_function(SCOPE + "optimizer"):
            self.optimizer.step()
            self.optimizer.zero_grad()


def time_step(trainee: Trainee) -> float:
    """Seconds of a step, to the end of its last kernel."""
    started = time.perf_counter()
    trainee.step()
    if trainee.device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def profile_steps(trainee: Trainee, steps: int) -> Counter[str]:
    """Seconds of each part, the least of all steps.

    On a CPU, what the profiler keeps lies between the tensors, so that in some steps a large one is put into memory
    that is new to the process, at several times the cost.
    """
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if trainee.device == "cuda" else [])
    profiled: list[Counter[str]] = []
    with marked_parts(trainee.model):
        for _ in range(steps):
            with profile(activities=activities) as profiler:
                time_step(trainee)
            profiled.append(seconds_by_part(profiler.events(), trainee.device))
    return Counter({part: min(seconds[part] for seconds in profiled) for part in profiled[0]})


def parts_table(seconds: Counter[str], products: dict[str, int], peak: float | None) -> str:
    """Seconds, share of the step and share of the peak, the longest part first.

    Args:
        products: multiply-adds of the forward pass by part.
        peak: operations a second.
    """
    total = sum(seconds.values())
    needed = {part: 3 * 2 * count for part, count in products.items() if count}
    lines = ["| part | ms | share of the step | share of the peak |", "|---|---:|---:|---:|"]
    for part, taken in [*seconds.most_common(), ("sum", total)]:
        flops = sum(needed.values()) if part == "sum" else needed.get(part)
        share = "" if flops is None or not peak or not taken else f"{flops / taken / peak:.0%}"
        lines.append(f"| {part} | {taken * 1e3:,.1f} | {taken / total:.1%} | {share} |")
    return "\n".join(lines)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", default="luna-128", help="luna-L with L slots, and +eager, +flash ... (%(default)s)")
    add("--length", type=positive, default=512, help="tokens a row (%(default)s)")
    add("--tokens", type=positive, default=4096, help="a batch, but at least one row (%(default)s)")
    add("--layers", type=positive, help="of a stack in the place of the whole model")
    add("--no_head", dest="head", action="store_false", help="without the masked-LM head")
    add("--dropout", type=float, default=0.0)
    add("--dtype", choices=["float32", "bfloat16"], default="float32")
    add("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    add("--steps", type=positive, default=5, help="that are profiled (%(default)s)")
    add("--size", choices=list(SIZES), default="base", help="tiny is for trying this script out")
    return parser.parse_args()


def main():
    options = parse_options()
    keep_freed_memory()
    name = ModelName.parse(options.model)
    device = torch.device(options.device)
    peak = peak_flops(device, "bf16" if options.dtype == "bfloat16" else "no")
    config = new_config(name, options.length, options.dropout, options.layers, options.size)
    if not isinstance(config, LunaConfig):
        raise UserError(f"--model: {options.model} is not a Luna model, and others have other parts.")
    torch.manual_seed(0)
    rows = torch.randint(4, config.vocab_size, (max(1, options.tokens // options.length), options.length))
    trainee = Trainee(new_model(name, config, options.head), rows, options.head, options.device, options.dtype)
    unprofiled = [time_step(trainee) for _ in range(WARMUP_STEPS + options.steps)][WARMUP_STEPS:]
    seconds = profile_steps(trainee, options.steps)

    labelled = trainee.labelled if options.head else 0
    products = forward_products(config, len(rows), options.length, labelled)
    print(
        f"{options.model}, {config.num_hidden_layers} layers, {rows.shape[0]} rows of {options.length} tokens, "
        f"{options.dtype}, dropout {options.dropout:g}, on {describe_devices(device)}"
    )
    print(f"{median(unprofiled) * 1e3:,.1f} ms a step, {rows.numel() / median(unprofiled):,.0f} tokens/s")
    if peak:
        print(f"peak {peak / 1e9:,.0f} GFLOP/s")
    print(f"\n{parts_table(seconds, products, peak)}")


if __name__ == "__main__":
    with report_user_errors():
        main()
