# Copyright 2026 The Luna for Transformers authors.
# SPDX-License-Identifier: Apache-2.0
"""torch.export, torch.jit.trace, ONNX, OpenVINO: one program for all shapes of a batch, equal to the model."""

from collections.abc import Callable, Iterator
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
    LunaPreTrainedModel,
)


TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}
# Rows and tokens; the lengths lie below, at and above the number of slots.
SHAPES = ((2, 9), (4, SLOTS), (4, 4), (2, 20), (6, 2), (2, 32), (4, SLOTS + 1))
KINDS = {
    "base": (LunaModel, {}),
    "base_all": (LunaModel, VARIANTS["all"]),
    "base_slots": (LunaModel, VARIANTS["positional-slots"]),
    "base_absorbed": (LunaModel, {"projection_length": 3}),  # few slots: the unpack attention folds its projections
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


def batch_of(kind: str, rows: int, tokens: int, masked: bool = True, side: str = "right") -> dict[str, torch.Tensor]:
    """Random tokens; in the first row two are padding. Multiple choice has two choices a question."""
    input_ids = torch.randint(3, 53, (rows, tokens), generator=torch.Generator().manual_seed(tokens))
    mask = torch.ones_like(input_ids)
    mask[0, max(1, tokens - 2) :] = 0
    if side == "left":
        mask = mask.flip(-1)
    batch = {"input_ids": input_ids, "attention_mask": mask} if masked else {"input_ids": input_ids}
    if kind == "multiple_choice":
        batch = {name: value.unflatten(0, (-1, 2)) for name, value in batch.items()}
    return batch


def batches(kind: str, masked: bool = True, single: bool = False) -> Iterator[dict[str, torch.Tensor]]:
    """A batch of each shape, padded on either side; with `single`, too, of one row and of one token."""
    shapes = SHAPES + ((1, 7), (1, 1), (3, 1)) if single and kind != "multiple_choice" else SHAPES
    for shape in shapes:
        for side in ("right", "left") if masked else ("right",):
            yield batch_of(kind, *shape, masked, side)


def dynamic_shapes(batch: dict[str, torch.Tensor], dimensions: tuple) -> dict[str, dict]:
    rows, tokens = dimensions
    return {name: {0: rows, value.ndim - 1: tokens} for name, value in batch.items()}


@torch.no_grad()
@pytest.mark.parametrize("strict", [True, False], ids=["strict", "traced"])
@pytest.mark.parametrize(
    ("kind", "masked", "dimensions"),
    [
        *(
            pytest.param(kind, True, RANGES, marks=() if kind in FAST else pytest.mark.slow)
            for kind in KINDS
            if kind != "base_absorbed"  # under strict=True torch does not see that its folded maps have two slots
        ),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [
                ("base_absorbed", True, DYNAMIC),
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
    for batch in batches(kind, masked):
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
@pytest.mark.slow
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
                ("masked_lm", "sdpa", False, NAMES),
                *((kind, "sdpa", True, NAMES) for kind in KINDS if kind not in ("base", "masked_lm")),
            ]
        ),
    ],
)
@pytest.mark.slow
def test_onnx(tiny_model: Callable, tmp_path: Path, kind: str, implementation: str, masked: bool, dimensions: tuple):
    model_class, fields = KINDS[kind]
    model = tiny_model(model_class, implementation, **fields)
    example = batch_of(kind, 4, 9, masked)
    shapes = dynamic_shapes(example, dimensions)
    names = list(model(**example))
    program = torch.onnx.export(
        model, (), kwargs=example, dynamic_shapes=shapes, output_names=names, dynamo=True, verbose=False
    )
    program.save(tmp_path / "luna.onnx")
    check_onnx(tmp_path / "luna.onnx", model, kind, masked)


def check_onnx(file: Path, model: LunaPreTrainedModel, kind: str, masked: bool):
    """Inputs and outputs have the model's names, and results are those of the model."""
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    outputs = [output.name for output in session.get_outputs()]
    for batch in batches(kind, masked, single=True):
        assert [given.name for given in session.get_inputs()] == list(batch)
        results = session.run(outputs, {name: value.numpy() for name, value in batch.items()})
        results = dict(zip(outputs, map(torch.from_numpy, results), strict=True))
        torch.testing.assert_close(results, dict(model(**batch)), **TOLERANCE)


def traced_kinds(fast: tuple[str, ...]) -> pytest.MarkDecorator:
    """Each kind with a mask under sdpa; the fast ones, too, under eager, and without a mask."""
    cases = [(kind, "sdpa", True) for kind in KINDS]
    cases += [(kind, "eager", True) for kind in fast] + [(kind, "sdpa", False) for kind in fast]
    return pytest.mark.parametrize(
        ("kind", "implementation", "masked"),
        [pytest.param(*case, marks=() if case[0] in fast else pytest.mark.slow) for case in cases],
    )


@torch.no_grad()
@pytest.mark.parametrize("tokens", [4, 9], ids=["below-l", "above-l"])
@traced_kinds(fast=("packed_attention",))
def test_trace(tiny_model: Callable, tmp_path: Path, kind: str, implementation: str, masked: bool, tokens: int):
    """The example has fewer or more tokens than slots; the saved trace takes both."""
    model_class, fields = KINDS[kind]
    model = tiny_model(model_class, implementation, **fields)
    example = batch_of(kind, 4, tokens, masked)
    traced = torch.jit.trace(model, example_kwarg_inputs=example, strict=False)
    traced.save(tmp_path / "luna.pt")
    loaded = torch.jit.load(tmp_path / "luna.pt")
    for batch in batches(kind, masked, single=True):
        results = loaded(**batch)
        torch.testing.assert_close(results, dict(model(**batch)), **TOLERANCE)


@torch.no_grad()
def test_trace_of_all_outputs(tiny_model: Callable):
    flags = ("hidden_states", "packed_hidden_states", "attentions", "pack_attentions")
    model = tiny_model(return_dict=False, **{f"output_{flag}": True for flag in flags})
    example = tuple(batch_of("base", 4, 9).values())
    traced = torch.jit.trace(model, example)
    for batch in batches("base"):
        torch.testing.assert_close(traced(*batch.values()), model(**batch), **TOLERANCE)


@torch.no_grad()
@pytest.mark.parametrize("where", ["input_ids", "inputs_embeds"])
def test_trace_with_positions(tiny_model: Callable, where: str):
    model = tiny_model(attn_implementation="sdpa", positional_slots=True)

    def with_positions(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        input_ids = batch["input_ids"]
        inputs = input_ids if where == "input_ids" else model.get_input_embeddings()(input_ids)
        positions = torch.arange(input_ids.shape[1]).expand(input_ids.shape)
        return {where: inputs, "attention_mask": batch["attention_mask"], "position_ids": positions}

    traced = torch.jit.trace(model, example_kwarg_inputs=with_positions(batch_of("base", 4, 9)), strict=False)
    for batch in map(with_positions, batches("base", single=True)):
        torch.testing.assert_close(traced(**batch), dict(model(**batch)), **TOLERANCE)


@torch.no_grad()
@pytest.mark.parametrize("given", ["cu_seq_lens_q", "position_ids"])
def test_several_documents_are_not_traced(tiny_model: Callable, given: str):
    positions = torch.tensor([[0, 1, 2, 0, 1, 2, 3]])
    boundaries = {"cu_seq_lens_q": torch.tensor([0, 3, 7]), "position_ids": positions}
    example = {"input_ids": positions + 3, given: boundaries[given]}
    with pytest.raises((RuntimeError, ValueError), match="torch.jit.trace needs rows of one document"):
        torch.jit.trace(tiny_model(), example_kwarg_inputs=example, strict=False)


def test_traced_dropout_is_drawn_anew(tiny_model: Callable):
    model = tiny_model(hidden_dropout_prob=0.5).train()
    example = batch_of("base", 4, 9)
    traced = torch.jit.trace(model, example_kwarg_inputs=example, strict=False, check_trace=False)
    first, second = (traced(**example)["last_hidden_state"] for _ in range(2))
    assert (first - second).abs().max() > 0.1


@torch.no_grad()
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@traced_kinds(fast=("base",))
def test_onnx_from_trace(tiny_model: Callable, tmp_path: Path, kind: str, implementation: str, masked: bool):
    """The older exporter of torch, `dynamo=False`."""
    model_class, fields = KINDS[kind]
    model = tiny_model(model_class, implementation, **fields)
    example = batch_of(kind, 4, 9, masked)
    outputs = list(model(**example))
    axes = dynamic_shapes(example, NAMES) | {name: {0: "rows"} for name in outputs}
    torch.onnx.export(
        model,
        (),
        tmp_path / "luna.onnx",
        kwargs=example,
        input_names=list(example),
        output_names=outputs,
        dynamic_axes=axes,
        dynamo=False,
    )
    check_onnx(tmp_path / "luna.onnx", model, kind, masked)


@torch.no_grad()
@traced_kinds(fast=())
def test_openvino(tiny_model: Callable, tmp_path: Path, kind: str, implementation: str, masked: bool):
    openvino = pytest.importorskip("openvino", reason="openvino is not installed: pip install openvino")
    model_class, fields = KINDS[kind]
    model = tiny_model(model_class, implementation, **fields)
    example = batch_of(kind, 4, 9, masked)
    openvino.save_model(openvino.convert_model(model, example_input=example), tmp_path / "luna.xml", False)
    compiled = openvino.Core().compile_model(tmp_path / "luna.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for batch in batches(kind, masked, single=True):
        results = compiled({name: value.numpy() for name, value in batch.items()})
        for name, expected in model(**batch).items():
            torch.testing.assert_close(torch.from_numpy(results[name]), expected, **TOLERANCE)
