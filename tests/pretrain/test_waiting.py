"""No step waits for the device but those that log, and a step that is not finite changes nothing."""

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import DistributedType
from torch.utils._python_dispatch import TorchDispatchMode

from modeling_luna import LunaConfig, LunaForMaskedLM, attention_luna
from pretrain import training
from pretrain.steps.optimization import optimizer_step, update
from pretrain.steps.optimizers import build_optimizer
from pretrain.watching.device_totals import DeviceTotals
from pretrain.watching.metrics import read_metrics
from pretrain.watching.monitoring import Monitor


WAITING = {
    "aten::_local_scalar_dense",  # .item(), float(), bool(), int(), `if`
    "aten::is_nonzero",
    "aten::nonzero",
    "aten::equal",
    "aten::masked_select",
    "aten::unique_dim",
    "aten::_unique2",
}


class NoWaiting(TorchDispatchMode):
    """Fails where a number of a tensor is asked for, which on a GPU waits for all that was sent there."""

    allowed = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._schema.name in WAITING and not self.allowed and not self._is_on_the_cpu():
            raise AssertionError(f"{func} waits for the device")
        return func(*args, **(kwargs or {}))

    @contextmanager
    def off(self) -> Iterator[None]:
        self.allowed = True
        try:
            yield
        finally:
            self.allowed = False

    @staticmethod
    def _is_on_the_cpu() -> bool:
        """The model checks ids and masks on a CPU alone; `test_step_on_a_device_without_values` sees the rest."""
        frame = sys._getframe()
        while frame is not None:
            if Path(frame.f_code.co_filename).name.endswith("_luna.py"):
                return True
            frame = frame.f_back
        return False


def without_checks(mode: NoWaiting, work: Callable) -> Callable:
    def wrapped(*arguments, **options):
        with mode.off():
            return work(*arguments, **options)

    return wrapped


@pytest.mark.parametrize("ask", [torch.Tensor.item, float, bool, torch.nonzero, lambda x: x.reshape(1)[x > 0]])
def test_asking_for_a_number_is_noticed(ask: Callable):
    with NoWaiting() as mode:
        with pytest.raises(AssertionError, match="waits"):
            ask(torch.ones(()))
        with mode.off():
            ask(torch.ones(()))


@pytest.mark.slow
def test_run_waits_for_nothing_between_logs(
    build_config: Callable, train: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    reads = []
    mode = NoWaiting()
    read = DeviceTotals.read

    def counted(self, last):
        reads.append(self.steps)
        return without_checks(mode, read)(self, last)

    def loop(run) -> float:
        with mode:
            return whole_loop(run)

    whole_loop = training.train
    monkeypatch.setattr(training, "train", loop)
    monkeypatch.setattr(DeviceTotals, "read", counted)
    monkeypatch.setattr(Monitor, "untimed", without_checks(mode, Monitor.untimed))  # evaluations and checkpoints
    metrics = train(build_config(tmp_path / "run", max_steps=12, logging_steps=4, save_steps=6, eval_steps=8))
    assert reads == [4, 2, 2, 4]
    assert [record["step"] for record in metrics if "loss" in record] == [4, 6, 8, 12]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_run_waits_for_nothing_between_logs(
    build_config: Callable, train: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def strict(*arguments, **options):
        torch.cuda.set_sync_debug_mode("error")
        try:
            return optimizer_step(*arguments, **options)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(training, "optimizer_step", strict)
    for sparse in (False, True):
        model = {"sparse_prediction": sparse}
        train(build_config(tmp_path / str(sparse), max_steps=12, logging_steps=4, model=model))


class DeviceOfNoValues:
    """An accelerator of meta tensors, which have shapes and no values: asking for one is an error."""

    device = torch.device("meta")
    num_processes = 1
    is_main_process = True
    distributed_type = DistributedType.NO

    def reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.clone()

    def no_sync(self, model):
        return nullcontext()

    def backward(self, loss: torch.Tensor):
        loss.backward()

    def clip_grad_norm_(self, parameters, max_norm: float) -> torch.Tensor:
        return torch.nn.utils.clip_grad_norm_(parameters, max_norm)


def batch(kind: str) -> dict:
    """Four rows on the CPU: whole, with padding, of several documents, or both."""
    ids = torch.randint(3, 400, (4, 32), generator=torch.Generator().manual_seed(0))
    labels = ids.masked_fill(torch.rand(4, 32, generator=torch.Generator().manual_seed(1)) > 0.2, -100)
    arguments = {"input_ids": ids, "labels": labels}
    if "padded" in kind:
        arguments["attention_mask"] = torch.arange(32).expand(4, 32) < 29
        labels[:, 29:] = -100
    if "documents" in kind:
        arguments |= {"cu_seq_lens_q": torch.tensor([0, 10, 32, 64, 96, 100, 128]).int(), "max_length_q": 32}
    return arguments


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", ["whole", "padded", "documents", "padded documents"])
@pytest.mark.parametrize("fields", [{}, {"sparse_prediction": True, "conv_kernel_size": 3, "normalize_before": True}])
def test_step_on_a_device_without_values(build_config: Callable, tmp_path: Path, fields, kind: str, implementation):
    """Model, loss, accuracy, clipping and the decision to skip."""
    config = LunaConfig(**(build_config(tmp_path).model | fields | {"hidden_dropout_prob": 0.1}), vocab_size=400)
    with torch.device("meta"):
        model = LunaForMaskedLM._from_config(config, attn_implementation=implementation).train()
    seen = []
    optimizer = SimpleNamespace(
        _step_supports_amp_scaling=True,
        step=lambda: seen.append(optimizer.found_inf.device.type),
        zero_grad=model.zero_grad,
    )
    batches = [batch(kind), batch(kind)]
    result = optimizer_step(DeviceOfNoValues(), model, optimizer, batches, 1.0, stop=True, count_correct=True)
    assert seen == ["meta"]
    assert {tensor.device.type for tensor in vars(result).values()} == {"meta"}


@pytest.mark.parametrize("kind", ["documents", "padded documents"])
def test_step_by_the_varlen_kernel(build_config: Callable, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch):
    """As on a GPU in half precision."""
    calls = []

    def kernel(query, key, value, *arguments, **options):
        calls.append(arguments)
        return query * key.mean() * value.mean()

    monkeypatch.setattr(attention_luna, "has_varlen_kernel", lambda *_: True)
    monkeypatch.setattr(attention_luna, "varlen_attn", kernel)
    test_step_on_a_device_without_values(build_config, tmp_path, {"sparse_prediction": True}, kind, "sdpa")
    assert len(calls) == 2 * 2 * 2  # batches, layers, pack and unpack


@pytest.fixture
def build_update(build_config: Callable, tmp_path: Path) -> Callable:
    """A model, its optimiser and the gradients of a step."""
    config = build_config(tmp_path, weight_decay=0.1)

    def build(fused: bool) -> tuple[LunaForMaskedLM, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = LunaForMaskedLM(LunaConfig(**config.model, vocab_size=400))
        optimizer = build_optimizer(model, config)
        return model, optimizer if fused else torch.optim.NAdam(optimizer.param_groups, lr=1e-3)

    return build


def give_gradients(model: LunaForMaskedLM, value: float):
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, value)


@pytest.mark.parametrize("fused", [True, False])
def test_skipped_step_leaves_weights_and_moments_alone(build_update: Callable, fused: bool):
    """Nor does it count for the correction of the bias: what follows is as if it had not been."""
    results = []
    for skips in (True, False):
        model, optimizer = build_update(fused)
        for value in (0.1, math.nan, math.inf, 0.2):
            if math.isfinite(value) or skips:
                give_gradients(model, value)
                with NoWaiting() if fused else nullcontext():
                    update(optimizer, torch.tensor(not math.isfinite(value)))
                assert all(parameter.grad is None for parameter in model.parameters())
        results.append([model.state_dict(), *(optimizer.state[p] for p in model.parameters())])
    for with_skips, without in zip(*results, strict=True):
        assert with_skips.keys() == without.keys()
        assert all(torch.equal(torch.as_tensor(with_skips[k]), torch.as_tensor(without[k])) for k in without)


def test_first_step_may_be_skipped(build_update: Callable):
    model, optimizer = build_update(True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    give_gradients(model, math.nan)
    update(optimizer, torch.tensor(True))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(state["step"] == 0 and not state["exp_avg"].any() for state in optimizer.state.values())


PROGRAM = """
import os, sys
from modeling_luna import LunaForMaskedLM
from pretrain import run_mlm

forward = LunaForMaskedLM.forward
calls = 0

def not_finite_in_the_second_process(self, **inputs):
    global calls
    output = forward(self, **inputs)
    calls += self.training
    if self.training and calls == 3 and os.environ["RANK"] == "1":
        output["loss"] = output["loss"] * float("nan")
    return output

LunaForMaskedLM.forward = not_finite_in_the_second_process
run_mlm.main(run_mlm.load_config(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["cpu_2_processes", "fsdp2"])
def test_all_processes_skip_together(
    build_config: Callable, python: Callable, write_config: Callable, tmp_path: Path, mode: str
):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM, encoding="utf-8")
    config = write_config(build_config(tmp_path / "run", max_steps=6, eval_steps=1), tmp_path / "run.yaml")
    launcher = ("-m", "accelerate.commands.launch", "--config_file", f"configs/accelerate/{mode}.yaml")
    finished = python(*launcher, program, config)
    assert finished.returncode == 0, finished.stderr
    metrics = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [record["skipped_steps"] for record in metrics if "loss" in record] == [0, 0, 1, 1, 1, 1]
    validation = [record["validation_loss"] for record in metrics if "validation_loss" in record]
    assert validation[2] == validation[1]  # the weights are the same on all processes
    assert len(set(validation)) == 5 and all(map(math.isfinite, validation))
