# Copyright 2026 The Luna for Transformers authors.
# SPDX-License-Identifier: Apache-2.0
"""Linear maps by oneDNN, and projections that are absorbed into a small P, compute what the plain ones compute."""

from collections.abc import Callable

import pytest
import torch
from rows import padded, random_rows
from torch import nn
from torch.nn.utils import parametrize

from modeling_luna import LunaForMaskedLM, LunaModel, kernels_luna, modeling_luna
from modeling_luna.kernels_luna import apply_linear, linear_by_document, onednn_linear, prefers_onednn


TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}
LARGE = (512, 512)  # of so many states this is a product of the size from which on oneDNN is faster
ABSORBING = {"projection_length": 3}
LONG_ROW = random_rows((12,))[0].unsqueeze(0)  # from as many tokens as slots times heads on


@pytest.fixture
def older_mkl(monkeypatch: pytest.MonkeyPatch):
    """A CPU on which oneDNN is the faster library, whatever this one is."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("torch was built without oneDNN")
    monkeypatch.setattr(kernels_luna, "mkl_lacks_avx512", lambda: True)


@pytest.fixture
def always_onednn(older_mkl, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kernels_luna, "ONEDNN_PRODUCTS", 1)


def random_map(num_out: int, num_in: int, *shape: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """States, weight and bias."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((*shape, num_in), (num_out, num_in), (num_out,))
    return tuple(torch.randn(size, generator=generator).requires_grad_() for size in shapes)


def with_gradients(function: Callable, tensors: tuple) -> list[torch.Tensor]:
    result = function(*tensors)
    wanted = [tensor for tensor in tensors if tensor is not None and tensor.requires_grad]
    return [result, *torch.autograd.grad(result.square().sum(), wanted)]


def count_convolutions(monkeypatch: pytest.MonkeyPatch) -> list:
    calls = []
    convolve = nn.functional.conv2d
    monkeypatch.setattr(
        nn.functional, "conv2d", lambda *inputs, **kwargs: calls.append(0) or convolve(*inputs, **kwargs)
    )
    return calls


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(7,), (1, 1), (2, 5), (3, 2, 4)])
@pytest.mark.parametrize("size", [(6, 8), (8, 6), (1, 3), (5, 1)])
def test_onednn_gives_the_same(older_mkl, size: tuple[int, int], shape: tuple[int, ...], bias: bool):
    states, weight, bias_vector = random_map(*size, *shape)
    tensors = (states, weight, bias_vector if bias else None)
    found = with_gradients(onednn_linear, tensors)
    torch.testing.assert_close(found, with_gradients(nn.functional.linear, tensors), **TOLERANCE)
    assert all(tensor.is_contiguous() for tensor in found)


@pytest.mark.parametrize("documents", [1, 3])
def test_a_weight_for_each_document(always_onednn, documents: int):
    states, weights = torch.randn(documents, 5, 8), torch.randn(documents, 6, 8)
    expected = torch.stack([nn.functional.linear(*pair) for pair in zip(states, weights, strict=True)])
    torch.testing.assert_close(linear_by_document(states, weights), expected, **TOLERANCE)


def test_onednn_where_it_is_faster(older_mkl):
    states, weight = torch.empty(LARGE), torch.empty(LARGE)
    assert prefers_onednn(states, weight)
    assert not prefers_onednn(states[:-1], weight)
    assert not prefers_onednn(states.bfloat16(), weight.bfloat16())
    assert not prefers_onednn(states.double(), weight.double())
    assert not prefers_onednn(states.to("meta"), weight.to("meta"))
    with torch.autocast("cpu", torch.bfloat16):
        assert not prefers_onednn(states, weight)
    with torch.backends.mkldnn.flags(enabled=False):
        assert not prefers_onednn(states, weight)


def test_no_states_at_all(always_onednn):
    assert apply_linear(nn.Linear(3, 2), torch.empty(0, 4, 3)).shape == (0, 4, 2)


@pytest.mark.parametrize("bias", [True, False])
def test_a_plain_map_goes_by_onednn(always_onednn, bias: bool, monkeypatch: pytest.MonkeyPatch):
    module, states = nn.Linear(8, 6, bias=bias), torch.randn(2, 5, 8)
    expected = module(states)
    calls = count_convolutions(monkeypatch)
    torch.testing.assert_close(apply_linear(module, states), expected, **TOLERANCE)
    assert len(calls) == 1


def watch_calls(module: nn.Linear, kind: str, seen: list, monkeypatch: pytest.MonkeyPatch):
    """Let `seen` grow with each call of the module, in one of the ways that tools have."""

    def note(*inputs, **kwargs):
        seen.append(kind)

    def noting(forward: Callable) -> Callable:
        return lambda *inputs, **kwargs: note() or forward(*inputs, **kwargs)

    if kind == "forward of the instance":  # accelerate
        module.forward = noting(module.forward)
    elif kind == "forward of the class":
        monkeypatch.setattr(nn.Linear, "forward", noting(nn.Linear.forward))
    elif kind == "functional":  # DeepSpeed
        monkeypatch.setattr(nn.functional, "linear", noting(nn.functional.linear))
    elif kind == "parametrization":
        parametrized = nn.Identity()
        parametrized.register_forward_hook(note)
        parametrize.register_parametrization(module, "weight", parametrized)
        seen.clear()
    elif kind.startswith("global "):
        register = getattr(torch.nn.modules.module, f"register_module_{kind.removeprefix('global ')}")
        register(note)
    else:
        getattr(module, f"register_{kind}")(note)


@pytest.fixture
def no_global_hooks():
    yield
    for name, hooks in vars(torch.nn.modules.module).items():
        if name.startswith("_global_") and isinstance(hooks, dict):
            hooks.clear()


@pytest.mark.parametrize(
    "kind",
    [
        *("forward_pre_hook", "forward_hook", "full_backward_pre_hook", "full_backward_hook"),
        *("global forward_pre_hook", "global forward_hook", "global full_backward_hook"),
        *("forward of the instance", "forward of the class", "functional", "parametrization"),
    ],
)
def test_a_map_that_is_watched_is_called(always_onednn, no_global_hooks, kind: str, monkeypatch: pytest.MonkeyPatch):
    module, states = nn.Linear(8, 6), torch.randn(5, 8, requires_grad=True)
    expected, seen = module(states), []
    watch_calls(module, kind, seen, monkeypatch)
    convolutions = count_convolutions(monkeypatch)
    result = apply_linear(module, states)
    result.sum().backward()
    torch.testing.assert_close(result, expected)
    assert seen and not convolutions


def test_a_trace_has_linear_maps(always_onednn):
    """A convolution over padded rows would hold for one number of rows alone."""
    module = nn.Linear(8, 6).requires_grad_(False)
    traced = torch.jit.trace(lambda states: apply_linear(module, states), torch.randn(5, 8))
    assert {node.kind() for node in traced.graph.nodes()} >= {"aten::linear"}


@pytest.mark.parametrize("processor", ["vendor_id : GenuineIntel", "vendor_id : AuthenticAMD"])
@pytest.mark.parametrize("capability", ["AVX2", "AVX512"])
def test_which_cpus_are_meant(processor: str, capability: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(kernels_luna.Path, "exists", lambda path: True)
    monkeypatch.setattr(kernels_luna.Path, "read_text", lambda path, encoding: processor)
    meant = kernels_luna.mkl_lacks_avx512.__wrapped__()
    assert meant == (capability == "AVX512" and "AMD" in processor)


def loss_and_gradients(model: LunaForMaskedLM) -> list[torch.Tensor]:
    input_ids, mask = padded(random_rows(), extra=4)
    labels = input_ids.masked_fill(mask == 0, -100)
    loss = model(input_ids, attention_mask=mask, labels=labels).loss
    return [loss, *torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)]


@pytest.mark.parametrize("fields", [{}, {"tie_key_value": False}, {"conv_kernel_size": 3}, ABSORBING])
def test_a_whole_model_by_onednn(fields: dict, older_mkl, tiny_model: Callable, monkeypatch: pytest.MonkeyPatch):
    model = tiny_model(LunaForMaskedLM, "sdpa", **fields)
    expected = loss_and_gradients(model)
    calls = count_convolutions(monkeypatch)
    monkeypatch.setattr(kernels_luna, "ONEDNN_PRODUCTS", 1)
    torch.testing.assert_close(loss_and_gradients(model), expected, atol=1e-4, rtol=1e-4)
    # Each layer has 2 maps of packing, 3 of unpacking and 2 of the FFN; absorbed, two are replaced by 2 for each row.
    assert len(calls) >= 2 * 7


def count_absorbed(monkeypatch: pytest.MonkeyPatch) -> list:
    calls = []
    absorbed = modeling_luna.absorbed_attention
    monkeypatch.setattr(modeling_luna, "absorbed_attention", lambda *inputs: calls.append(0) or absorbed(*inputs))
    return calls


@pytest.mark.parametrize("fields", [{}, {"tie_key_value": False}, {"dynamic_projection": False}])
def test_absorbed_projections(fields: dict, tiny_model: Callable, monkeypatch: pytest.MonkeyPatch):
    calls = count_absorbed(monkeypatch)
    expected = loss_and_gradients(tiny_model(LunaForMaskedLM, "eager", **ABSORBING, **fields))
    assert not calls
    found = loss_and_gradients(tiny_model(LunaForMaskedLM, "sdpa", **ABSORBING, **fields))
    assert len(calls) == 2
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("slots", "absorbs"), [(3, True), (4, False)])
def test_absorbed_where_it_is_faster(slots: int, absorbs: bool, tiny_model: Callable, monkeypatch: pytest.MonkeyPatch):
    """24 dimensions and 4 heads."""
    calls = count_absorbed(monkeypatch)
    tiny_model(attn_implementation="sdpa", projection_length=slots)(LONG_ROW)
    assert bool(calls) == absorbs


def test_short_rows_are_not_absorbed(tiny_model: Callable, monkeypatch: pytest.MonkeyPatch):
    calls = count_absorbed(monkeypatch)
    tiny_model(attn_implementation="sdpa", **ABSORBING)(LONG_ROW[:, :-1])
    assert not calls


@pytest.mark.parametrize("kind", ["full_backward_hook", "full_backward_pre_hook"])
@pytest.mark.parametrize("name", ["q_proj", "out_proj"])
def test_a_backward_hook_is_called(name: str, kind: str, tiny_model: Callable):
    model: LunaModel = tiny_model(attn_implementation="sdpa", **ABSORBING)
    calls = []
    getattr(getattr(model.layers[0].unpack_attention, name), f"register_{kind}")(lambda *inputs: calls.append(inputs))
    model(LONG_ROW).last_hidden_state.sum().backward()
    assert len(calls) == 1


def test_absorbed_in_other_precisions(tiny_model: Callable):
    """float64 keeps its precision, and autocast its dtype."""
    states = [
        tiny_model(attn_implementation=implementation, **ABSORBING).double()(LONG_ROW).last_hidden_state
        for implementation in ("sdpa", "eager")
    ]
    torch.testing.assert_close(*states, atol=1e-6, rtol=1e-6)
    model: LunaModel = tiny_model(attn_implementation="sdpa", normalize_before=True, **ABSORBING)
    dtypes = []
    model.layers[0].unpack_attention.register_forward_hook(
        lambda module, inputs, output: dtypes.append(output[0].dtype)
    )
    with torch.autocast("cpu", torch.bfloat16):
        model(LONG_ROW)
    assert dtypes == [torch.bfloat16]


def doubled(module: nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
    return 2 * output


@pytest.mark.parametrize("name", ["q_proj", "out_proj"])
def test_a_hook_is_not_passed_over(name: str, tiny_model: Callable):
    outputs = []
    for implementation in ("eager", "sdpa"):
        model: LunaModel = tiny_model(attn_implementation=implementation, **ABSORBING)
        getattr(model.layers[0].unpack_attention, name).register_forward_hook(doubled)
        outputs.append(model(LONG_ROW).last_hidden_state)
    torch.testing.assert_close(*outputs, **TOLERANCE)


@pytest.mark.parametrize("name", ["q_proj", "out_proj"])
def test_a_map_in_the_place_of_another_is_called(name: str, tiny_model: Callable):
    """Adapters and quantisation replace the map, or its forward pass."""

    class Negated(nn.Linear):
        def forward(self, states: torch.Tensor) -> torch.Tensor:
            return -super().forward(states)

    outputs = []
    for implementation in ("eager", "sdpa"):
        model: LunaModel = tiny_model(attn_implementation=implementation, **ABSORBING)
        plain = getattr(model.layers[0].unpack_attention, name)
        replaced = Negated(plain.in_features, plain.out_features)
        replaced.load_state_dict(plain.state_dict())
        setattr(model.layers[0].unpack_attention, name, replaced)
        second = getattr(model.layers[1].unpack_attention, name)
        second.forward = lambda states, forward=second.forward: -forward(states)
        outputs.append(model(LONG_ROW).last_hidden_state)
    torch.testing.assert_close(*outputs, **TOLERANCE)


def test_dropout_of_the_weights_is_not_passed_over(tiny_model: Callable, monkeypatch: pytest.MonkeyPatch):
    calls = count_absorbed(monkeypatch)
    model = tiny_model(attn_implementation="sdpa", attention_probs_dropout_prob=0.5, **ABSORBING)
    model.train()(LONG_ROW)
    assert not calls
    model.eval()(LONG_ROW)
    assert len(calls) == 2
