"""Operations of a training step, peaks of devices, memory and description of the hardware."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from common import hardware
from common.flops import training_flops
from common.hardware import data_sheet, describe_hardware, measure_flops, peak_flops
from modeling_luna import LunaConfig, LunaForMaskedLM


TINY = {
    "vocab_size": 300,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 100,
    "projection_length": 12,
    "max_position_embeddings": 32,
}


def counted(config: LunaConfig, length: int, implementation: str, backward: bool) -> tuple[int, int]:
    """What torch counts for three rows, and how many of their tokens are labelled."""
    torch.manual_seed(0)
    model = LunaForMaskedLM._from_config(config, attn_implementation=implementation)
    input_ids = torch.randint(3, 300, (3, length))
    labels = input_ids.masked_fill(torch.rand(3, length) > 0.3, -100)
    with FlopCounterMode(display=False) as counter:
        loss = model(input_ids, labels=labels).loss
        if backward:
            loss.backward()
    return counter.get_total_flops(), int((labels != -100).sum())


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("length", [8, 32])
@pytest.mark.parametrize(
    "fields",
    [
        {"tie_key_value": True},
        {"tie_key_value": False},
        {"sparse_prediction": True},
        {"dynamic_projection": False},
        {"num_pack_attention_heads": 2, "normalize_before": True},
    ],
    ids=str,
)
def test_operations_are_those_that_torch_counts(fields: dict, length: int, implementation: str):
    config = LunaConfig(**TINY, **fields)
    flops, labelled = counted(config, length, implementation, backward=True)
    assert training_flops(config, 3, length, labelled) == pytest.approx(flops, rel=0.01)


def test_operations_of_the_convolution():
    """Forward alone: for the backward pass of a depthwise convolution torch counts that of a full one."""
    config = LunaConfig(**TINY, conv_kernel_size=5)
    flops, labelled = counted(config, 32, "eager", backward=False)
    assert training_flops(config, 3, 32, labelled) == pytest.approx(3 * flops, rel=0.01)
    assert training_flops(config, 3, 32, 9) > training_flops(LunaConfig(**TINY), 3, 32, 9)


@pytest.mark.parametrize(
    ("name", "bf16", "float32"),
    [
        ("NVIDIA A100-SXM4-80GB", 312, 19.5),
        ("NVIDIA A100 80GB PCIe", 312, 19.5),
        ("NVIDIA H100 80GB HBM3", 989.4, 66.9),
        ("NVIDIA H100 PCIe", 756, 51),
        ("NVIDIA H100 NVL", 835.5, 60),
        ("NVIDIA H200", 989.4, 66.9),
        ("NVIDIA GH200 480GB", 989.4, 66.9),
        ("NVIDIA B200", 2250, 75),
        ("NVIDIA L4", 121, 30.3),
        ("NVIDIA L40S", 362, 91.6),
        ("NVIDIA A10", 125, 31.2),
        ("NVIDIA A10G", 70, 35),
        ("Tesla V100-SXM2-16GB", None, 15.7),
        ("Tesla V100-PCIE-32GB", None, 14),
        ("NVIDIA GeForce RTX 3090", 71, 35.6),
        ("NVIDIA GeForce RTX 4090", 165.2, 82.6),
        ("NVIDIA GeForce RTX 5090", 209.5, 104.8),
        ("NVIDIA RTX A6000", 154.8, 38.7),
        ("NVIDIA RTX 6000 Ada Generation", 364.2, 91.1),
        ("AMD Instinct MI250X", 191.5, 47.9),
        ("AMD Instinct MI300X", 1307.4, 163.4),
    ],
)
def test_peaks_of_known_gpus(name: str, bf16: float | None, float32: float, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    device = torch.device("cuda")
    assert peak_flops(device, "bf16") == (None if bf16 is None else bf16 * 1e12)
    assert peak_flops(device, "no") == float32 * 1e12
    tf32 = data_sheet(name)[1]
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        assert peak_flops(device, "no") == (float32 if tf32 is None else tf32) * 1e12
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.parametrize(
    "name", ["NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA A100-SXM4-80GB MIG 1g.10gb", "NVIDIA A1000", "Other"]
)
def test_unknown_gpus_have_no_peak(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(torch.device("cuda"), "bf16") is None


def test_peak_of_a_cpu_is_measured_once(monkeypatch: pytest.MonkeyPatch):
    measure_flops.cache_clear()
    state = torch.get_rng_state()
    peak = peak_flops(torch.device("cpu"), "no")
    assert 1e8 < peak < 1e14
    assert torch.equal(torch.get_rng_state(), state)
    monkeypatch.setattr(hardware.time, "perf_counter", None)  # measuring anew would fail
    assert peak_flops(torch.device("cpu"), "no") == peak


def test_peak_memory_is_that_of_this_process(python: Callable):
    """In a process of its own: this one may have held more before."""
    finished = python(
        "-c",
        """
import torch
from common.hardware import peak_memory
before = peak_memory(torch.device("cpu"))
block = torch.ones(2**27, dtype=torch.uint8)
assert 2**26 < peak_memory(torch.device("cpu")) - before < 2**28
del block
assert peak_memory(torch.device("cpu")) > before
""",
    )
    assert finished.returncode == 0, finished.stderr


def test_description(monkeypatch: pytest.MonkeyPatch):
    torch_threads = torch.get_num_threads()
    accelerator = SimpleNamespace(device=torch.device("cpu"), num_processes=2)
    text = describe_hardware(accelerator)
    assert text.startswith(f"2 processes of {torch_threads} thread") and text.endswith(" cores)")

    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    memory = SimpleNamespace(total_memory=80 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: memory)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    accelerator = SimpleNamespace(device=torch.device("cuda"), num_processes=16)
    assert describe_hardware(accelerator) == "16 x NVIDIA H100 80GB HBM3 (80 GiB) on 2 nodes"
