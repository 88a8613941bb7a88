"""The benchmark as it is called, with tiny models, and what a measurement measures."""

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks.speed import case as speed_case
from benchmarks.speed import measuring, speed
from benchmarks.speed.case import Case, is_out_of_memory, measure
from benchmarks.speed.limited_process import OUT_OF_TIME
from benchmarks.speed.models import PEERS
from benchmarks.speed.options import parse_options
from benchmarks.speed.plan import plan_cases
from common.errors import UserError
from modeling_luna import kernels_luna


TINY = {"length": 64, "tokens": 256, "layers": 3, "size": "tiny", "steps": 1}


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object):
    monkeypatch.setattr(sys, "argv", ["speed.py", *map(str, arguments)])
    speed.main()


@pytest.mark.slow
def test_a_call_writes_a_record_and_goes_on_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    path = tmp_path / "records/record.json"
    arguments = ["--size", "tiny", "--layers", 3, "--tokens", 128, "--rounds", 1, "--steps", 2, "--record", path]
    call(monkeypatch, *arguments, "--models", "luna-16", "--lengths", 64)
    first = json.loads(path.read_text())["measurements"]
    assert [(made["case"]["model"], made["outcome"]) for made in first] == [("luna-16", "measured")]
    result = first[0]["result"]
    assert {part: len(times) for part, times in result["seconds"].items()} == dict.fromkeys(
        ["forward", "backward", "optimizer"], 2
    )
    assert result["tokens"] == 128
    assert result["memory"] > 2**26

    # A second model joins the record; the first one is not measured again. It has no time to end.
    call(monkeypatch, *arguments, "--models", "luna-16", "fnet", "--lengths", 64, "--time_limit", 0.1)
    second = json.loads(path.read_text())["measurements"]
    assert second[0] == first[0]
    assert [(made["case"]["model"], made["outcome"]) for made in second[1:]] == [("fnet", OUT_OF_TIME)]
    output = capsys.readouterr().out
    assert output.count("luna-16, n = 64, training, float32, dropout 0, full rows: ") == 1
    assert "fnet, n = 64, training, float32, dropout 0, full rows: out of time" in output
    assert "| fnet | out of time |" in path.with_suffix(".md").read_text()


@pytest.mark.parametrize("model", ["luna-16", *PEERS])
@pytest.mark.parametrize("head", [True, False], ids=["head", "no head"])
@pytest.mark.slow
def test_every_model_trains_and_infers(model: str, head: bool):
    trained = measure(Case(model, **TINY, head=head, dropout=0.1))
    assert all(len(times) == 1 and times[0] > 0 for times in trained["seconds"].values())
    assert trained["tokens"] == 256
    assert trained["layers"] == 3 and trained["whole_layers"] == (22 if model == "modernbert" else 12)
    assert trained["parameters"] < trained["whole_parameters"]
    assert (trained["flops"] is None) == (model != "luna-16")
    inferred = measure(Case(model, **TINY, head=head, task="inference", rows="padded"))
    assert list(inferred["seconds"]) == ["forward"]
    assert inferred["loss"] is None
    assert 64 < inferred["tokens"] < 192


@pytest.mark.parametrize("head", [True, False], ids=["head", "no head"])
def test_rows_without_padding_have_the_loss_of_padded_ones(head: bool):
    padded = measure(Case("luna-16", **TINY, head=head, rows="padded"))
    varlen = measure(Case("luna-16", **TINY, head=head, rows="varlen"))
    assert padded["tokens"] == varlen["tokens"]
    assert padded["flops"] == varlen["flops"]
    assert varlen["loss"] == pytest.approx(padded["loss"], abs=1e-5)


def test_times_of_the_parts_of_each_step(monkeypatch: pytest.MonkeyPatch):
    """Three steps of two parts; no step begins after the seconds."""
    clock = iter([0.0, 1.0, 2.0, 4.0, 4.5, 5.0, 8.0, 8.5, 9.0, 13.0, 13.5])
    monkeypatch.setattr(speed_case, "time", SimpleNamespace(perf_counter=lambda: next(clock)))

    def step(marks: speed_case.Marks):
        marks.set()
        marks.set()

    timed = speed_case.time_steps(Case("luna-16", 64, steps=9, seconds=10.0), step)
    assert timed == [[1.0, 2.0], [1.0, 3.0], [1.0, 4.0]]


def test_bfloat16():
    single = measure(Case("luna-16", **TINY))
    half = measure(Case("luna-16", **TINY, dtype="bfloat16"))
    assert half["loss"] == pytest.approx(single["loss"], abs=0.02)
    assert half["loss"] != single["loss"]


def test_operations_are_those_of_the_formulas():
    """Head and layers, from the sizes: hidden 32, FFN 64, l = 16, 3 layers, vocabulary 128; 4 rows of 64."""
    layer = (16 * 32**2 + 64 * 32**2) + (2 * 64 + 16) * 32**2 + 4 * 64 * 16 * 32 + 2 * 64 * 32 * 64
    without = measure(Case("luna-16", **TINY, head=False))["flops"]
    assert without == 6 * 4 * 3 * layer
    inferred = measure(Case("luna-16", **TINY, task="inference"))["flops"]
    assert inferred == 2 * (4 * 3 * layer + 256 * (32**2 + 32 * 128))


def test_what_counts_as_out_of_memory():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not is_out_of_memory(RuntimeError("shapes do not fit"))


@pytest.mark.parametrize("checkpointing", ["selective", "whole"])
def test_checkpointing_does_not_change_the_loss(checkpointing: str, monkeypatch: pytest.MonkeyPatch):
    kinds = []
    enable = speed_case.enable_checkpointing
    monkeypatch.setattr(
        speed_case,
        "enable_checkpointing",
        lambda model, selective: kinds.append(selective) or enable(model, selective),
    )
    plain = measure(Case("luna-16", **TINY, dropout=0.1))
    assert not kinds
    assert measure(Case("luna-16", **TINY, dropout=0.1, checkpointing=checkpointing))["loss"] == plain["loss"]
    assert kinds == [checkpointing == "selective"]


@pytest.mark.parametrize("model", ["luna-16", "roberta"])
def test_peers_with_the_same_products_compute_the_same(model: str, monkeypatch: pytest.MonkeyPatch):
    """Those of Luna are left alone: it has them already."""
    changed = []
    use = speed_case.use_fast_kernels
    monkeypatch.setattr(speed_case, "use_fast_kernels", lambda model: changed.append(model) or use(model))
    monkeypatch.setattr(kernels_luna, "mkl_lacks_avx512", torch.backends.mkldnn.is_available)
    monkeypatch.setattr(kernels_luna, "ONEDNN_PRODUCTS", 1)
    plain = measure(Case(model, **TINY))
    assert not changed
    fast = measure(Case(model, **TINY, peers_fast=True))
    assert fast["loss"] == pytest.approx(plain["loss"], abs=1e-5)
    assert fast["parameters"] == plain["parameters"]
    assert len(changed) == (model == "roberta")


def test_the_process_of_a_case_is_told_of_the_products(monkeypatch: pytest.MonkeyPatch):
    commands = []

    def run(command: list[str], seconds: float, memory: int | None) -> tuple[None, str]:
        commands.append(json.loads(command[-1]))
        return None, '{"outcome": "measured", "loss": 1.0}'

    monkeypatch.setattr(measuring, "run_limited", run)
    (case,) = cases_of("--models", "roberta", "--lengths", "64", "--peers_fast")
    assert measuring.run_case(case, 0, 1.0, None).case.peers_fast
    assert commands[0]["peers_fast"] is True and Case(**commands[0]) == case


def cases_of(*arguments: str) -> list[Case]:
    return plan_cases(parse_options([*arguments, "--device", "cpu"], about=""))


def test_cases_of_a_call():
    cases = cases_of("--models", "luna-64", "roberta", "--lengths", "128", "8192", "--layers", "3", "--layers_from",
                     "8192", "--tasks", "training", "inference", "--dropout", "0", "0.1", "--rows", "full",
                     "varlen")  # fmt: skip
    assert [(case.model, case.length) for case in cases[:2]] == [("luna-64", 128), ("roberta", 128)]
    assert {(case.length, case.layers) for case in cases} == {(128, None), (8192, 3)}
    assert len(cases) == len(set(cases)) == 2 * 3 * 3  # dropout in training alone, varlen for Luna alone
    assert not any(case.rows == "varlen" and case.model == "roberta" for case in cases)
    assert not any(case.task == "inference" and case.dropout for case in cases)
    cases = cases_of("--models", "luna-64", "--lengths", "128", "--tasks", "training", "inference",
                     "--checkpointing", "none", "whole")  # fmt: skip
    assert [(case.task, case.checkpointing) for case in cases] == [
        ("training", "none"), ("training", "whole"), ("inference", "none"),
    ]  # fmt: skip


def test_all_models_and_lengths_without_options():
    cases = cases_of()
    assert len(cases) == 5 * 10
    assert {case.tokens for case in cases} == {8192}
    assert all(case.head and case.layers is None for case in cases)


def test_quick_is_changed_by_other_options():
    cases = cases_of("--quick", "--lengths", "128")
    assert [(case.model, case.length, case.layers, case.head) for case in cases] == [
        ("luna-128", 128, 3, False),
        ("roberta", 128, 3, False),
        ("modernbert", 128, 3, False),
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "bert"], "--models: 'bert' is no model"),
        (["--dropout", "1"], "--dropout must be at least 0 and below 1"),
        (["--layers", "4"], "--layers 4: ModernBERT's mix of layers needs a multiple of 3"),
        (["--lengths_file", "none.txt"], "--lengths_file: none.txt cannot be read"),
        (["--device", "cuda"], "--device cuda: torch finds no GPU"),
        (["--peers_fast", "--compile", "--device", "cpu"], "--peers_fast changes nothing on a GPU or with --compile"),
    ],
)
def test_options_that_cannot_be(arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=re.escape(message)):
        call(monkeypatch, *arguments)


def test_records_lie_beside_those_of_the_repository():
    assert (speed.RECORDS / "2026-11-26-amd-epyc-2-cores.json").is_file()
