# Copyright 2026 The Luna for Transformers authors.
# SPDX-License-Identifier: Apache-2.0
"""torch.export and ONNX: one program for every number of rows and tokens, equal to the model."""

from collections.abc import Callable
from pathlib import Path

import onnxruntime
import pytest
import torch
from rows import SLOTS, VARIANTS
from torch.export import Dim

from modeling_luna import (
    LunaForMaskedLM,
    LunaForMultipleChoice,
    LunaForQuestionAnswering,
    LunaForSequenceClassification,
    LunaForTokenClassification,
    LunaModel,
)


TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}
# Rows and tokens; the lengths lie below, at and above the number of slots.
SHAPES = ((2, 9), (4, SLOTS), (4, 4), (2, 20), (6, 2), (2, 32), (4, SLOTS + 1))
KINDS = {
    "base": (LunaModel, {}),
    "base_all": (LunaModel, VARIANTS["all"]),
    "masked_lm": (LunaForMaskedLM, {}),
    "token": (LunaForTokenClassification, {}),
    "question_answering": (LunaForQuestionAnswering, {}),
    "multiple_choice": (LunaForMultipleChoice, {}),
    **{
        pooling: (LunaForSequenceClassification, {"classifier_pooling": pooling})
        for pooling in ("cls", "mean", "packed_max", "packed_attention")
    },
}
FAST = ("base", "packed_attention")
DYNAMIC = (Dim.DYNAMIC, Dim.DYNAMIC)
RANGES = (Dim("rows", min=1, max=64), Dim("tokens", min=2, max=32))
NAMES = ("rows", "tokens")


def batch_of(kind: str, rows: int, tokens: int, masked: bool = True) -> dict[str, torch.Tensor]:
    """Random tokens; in the first row the last two are padding. Multiple choice has two choices a question."""
    input_ids = torch.randint(3, 53, (rows, tokens), generator=torch.Generator().manual_seed(tokens))
    mask = torch.ones_like(input_ids)
    mask[0, max(1, tokens - 2) :] = 0
    batch = {"input_ids": input_ids, "attention_mask": mask} if masked else {"input_ids": input_ids}
    if kind == "multiple_choice":
        batch = {name: value.unflatten(0, (-1, 2)) for name, value in batch.items()}
    return batch


def dynamic_shapes(batch: dict[str, torch.Tensor], dimensions: tuple) -> dict[str, dict]:
    rows, tokens = dimensions
    return {name: {0: rows, value.ndim - 1: tokens} for name, value in batch.items()}


@torch.no_grad()
@pytest.mark.parametrize("strict", [True, False], ids=["strict", "traced"])
@pytest.mark.parametrize(
    ("kind", "masked", "dimensions"),
    [
        *(pytest.param(kind, True, RANGES, marks=() if kind in FAST else pytest.mark.slow) for kind in KINDS),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [
                ("base", True, DYNAMIC),
                ("base", False, DYNAMIC),
                ("base", False, RANGES),
                ("packed_attention", True, DYNAMIC),
                ("packed_attention", False, RANGES),
            ]
        ),
    ],
)
def test_export(tiny_model: Callable, kind: str, masked: bool, dimensions: tuple, strict: bool):
    model_class, fields = KINDS[kind]
    model = tiny_model(model_class, "sdpa", **fields)
    example = batch_of(kind, 4, 9, masked)
    shapes = dynamic_shapes(example, dimensions)
    program = torch.export.export(model, (), example, dynamic_shapes=shapes, strict=strict).module()
    for shape in SHAPES:
        batch = batch_of(kind, *shape, masked)
        torch.testing.assert_close(program(**batch).to_tuple(), model(**batch).to_tuple(), **TOLERANCE)


@torch.no_grad()
@pytest.mark.parametrize("strict", [True, False], ids=["strict", "traced"])
@pytest.mark.parametrize("variant", ["default", "all"])
def test_export_of_one_shape(tiny_model: Callable, variant: str, strict: bool):
    """Without dynamic shapes; the padding may still be another than in the example."""
    model = tiny_model(attn_implementation="sdpa", **VARIANTS[variant])
    program = torch.export.export(model, (), batch_of("base", 3, 9), strict=strict).module()
    other = batch_of("base", 3, 9)
    other["attention_mask"][1, :6] = 0
    torch.testing.assert_close(program(**other).to_tuple(), model(**other).to_tuple(), **TOLERANCE)


@torch.no_grad()
def test_saved_program(tiny_model: Callable, tmp_path: Path):
    model = tiny_model(LunaForMaskedLM, "sdpa")
    example = batch_of("masked_lm", 4, 9)
    program = torch.export.export(model, (), example, dynamic_shapes=dynamic_shapes(example, DYNAMIC))
    torch.export.save(program, tmp_path / "luna.pt2")
    loaded = torch.export.load(tmp_path / "luna.pt2").module()
    batch = batch_of("masked_lm", 2, 4)
    torch.testing.assert_close(loaded(**batch).logits, model(**batch).logits, **TOLERANCE)


@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "implementation", "masked", "dimensions"),
    [
        ("masked_lm", "sdpa", True, NAMES),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [
                ("base", "sdpa", True, RANGES),
                ("base", "sdpa", True, DYNAMIC),
                ("base", "eager", True, NAMES),
                ("base_all", "sdpa", True, NAMES),
                ("masked_lm", "sdpa", False, NAMES),
                ("token", "sdpa", True, NAMES),
                ("question_answering", "sdpa", True, NAMES),
                ("multiple_choice", "sdpa", True, NAMES),
                ("cls", "sdpa", True, NAMES),
                ("mean", "sdpa", True, NAMES),
                ("packed_max", "sdpa", True, NAMES),
                ("packed_attention", "sdpa", True, NAMES),
            ]
        ),
    ],
)
def test_onnx(tiny_model: Callable, tmp_path: Path, kind: str, implementation: str, masked: bool, dimensions: tuple):
    model_class, fields = KINDS[kind]
    model = tiny_model(model_class, implementation, **fields)
    example = batch_of(kind, 4, 9, masked)
    shapes = dynamic_shapes(example, dimensions)
    program = torch.onnx.export(model, (), kwargs=example, dynamic_shapes=shapes, dynamo=True, verbose=False)
    program.save(tmp_path / "luna.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "luna.onnx", providers=["CPUExecutionProvider"])
    single = () if kind == "multiple_choice" else ((1, 7), (1, 1))
    for shape in (*SHAPES, *single):
        batch = batch_of(kind, *shape, masked)
        expected = model(**batch).to_tuple()
        results = session.run(None, {name: value.numpy() for name, value in batch.items()})
        torch.testing.assert_close(tuple(map(torch.from_numpy, results)), expected, **TOLERANCE)
