# Copyright 2026 The Luna for Transformers authors.
# SPDX-License-Identifier: Apache-2.0
"""Every fast path computes what the plain path computes, runs where it is faster, and passes no module over."""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import pytest
import torch
from rows import padded, random_rows
from torch import nn
from torch.nn.utils import parametrize

from modeling_luna import LunaForMaskedLM, LunaModel, kernels_luna, modeling_luna
from modeling_luna.attention_luna import absorbed_attention, attention_by_document, eager_attention_forward
from modeling_luna.kernels_luna import (
    apply_convolution,
    apply_linear,
    fast_dropout,
    linear_by_document,
    linear_in_multiples,
    onednn_linear,
    prefers_onednn,
    use_fast_kernels,
)
from modeling_luna.modeling_luna import select_labelled


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


class Paths(NamedTuple):
    """Two functions of the same tensors."""

    fast: Callable
    plain: Callable
    tensors: tuple[torch.Tensor, ...]


def linear_map_paths() -> Paths:
    module, states = nn.Linear(8, 6), torch.randn(2, 5, 8)
    return Paths(partial(apply_linear, module), module, (states,))


def weights_by_document_paths() -> Paths:
    tensors = torch.randn(3, 5, 8), torch.randn(3, 6, 8)
    return Paths(linear_by_document, lambda states, weights: torch.matmul(states, weights.transpose(1, 2)), tensors)


def convolution_paths(width: int) -> Paths:
    module = nn.Conv1d(24, 24, width, padding=width // 2, groups=24)
    tensors = (torch.randn(2, 9, 24),)
    return Paths(
        partial(apply_convolution, module), lambda states: module(states.transpose(1, 2)).transpose(1, 2), tensors
    )


def attention_by_document_paths() -> Paths:
    """Rows of 3, 0 and 4 queries, and of 2, 1 and 5 keys."""
    module = nn.Identity()
    tensors = torch.randn(1, 2, 7, 4), torch.randn(1, 2, 8, 4), torch.randn(1, 2, 8, 4)
    bounds = torch.tensor([0, 3, 3, 7]), torch.tensor([0, 2, 3, 8])

    def plain(query: torch.Tensor, *keys_and_values: torch.Tensor) -> torch.Tensor:
        lengths_q, lengths_k = (bound.diff().tolist() for bound in bounds)
        rows = zip(query.split(lengths_q, 2), *(states.split(lengths_k, 2) for states in keys_and_values), strict=True)
        return torch.cat([eager_attention_forward(module, *row, None, 0.5)[0] for row in rows], dim=1)

    return Paths(lambda *states: attention_by_document(module, *states, None, 0.5, *bounds, 4, 5)[0], plain, tensors)


def absorbed_paths() -> Paths:
    """Two documents of 9 tokens, with 3 slots, of which the second document uses two."""
    q_proj, out_proj = nn.Linear(24, 24), nn.Linear(24, 24)
    mask = torch.tensor([[True, True, True], [True, True, False]])[:, None, None]
    tensors = torch.randn(2, 9, 24), torch.randn(2, 4, 3, 6), torch.randn(2, 4, 3, 6)

    def plain(hidden_states: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        query = q_proj(hidden_states).unflatten(-1, (4, 6)).transpose(1, 2)
        return out_proj(eager_attention_forward(q_proj, query, key, value, mask, 6**-0.5)[0].flatten(2))

    return Paths(lambda *states: absorbed_attention(*states, mask, 6**-0.5, q_proj, out_proj), plain, tensors)


def labelled_paths() -> Paths:
    labels = torch.tensor([[3, -100, 5], [-100, -100, 7]])
    tensors = (torch.randn(2, 3, 8),)
    return Paths(lambda states: select_labelled(states, labels, 3)[0], lambda states: states[labels != -100], tensors)


FAST_PATHS = {
    "linear map": linear_map_paths,
    "weights for each document": weights_by_document_paths,
    "decoder to 53 words": lambda: Paths(linear_in_multiples, nn.functional.linear, random_map(53, 8, 2, 5)),
    "decoder to 64 words": lambda: Paths(linear_in_multiples, nn.functional.linear, random_map(64, 8, 2, 5)),
    **{f"convolution of width {width}": partial(convolution_paths, width) for width in (1, 3, 5)},
    "attention by document": attention_by_document_paths,
    "absorbed projections": absorbed_paths,
    "labelled positions": labelled_paths,
}


@pytest.mark.parametrize("name", FAST_PATHS)
def test_fast_path_equals_plain_path(always_onednn, name: str):
    torch.manual_seed(0)
    paths = FAST_PATHS[name]()
    tensors = tuple(tensor.detach().requires_grad_() for tensor in paths.tensors)
    found, expected = with_gradients(paths.fast, tensors), with_gradients(paths.plain, tensors)
    torch.testing.assert_close(found, expected, **TOLERANCE)


@pytest.mark.parametrize("shape", [(2, 7, 3), (1001,)])
def test_fast_dropout_scales_as_plain_dropout(shape: tuple[int, ...]):
    states = torch.randn(shape)
    fast, plain = fast_dropout(states, 0.25, training=True), nn.functional.dropout(states, 0.25)
    both = (fast != 0) & (plain != 0)
    assert both.any() and not both.all()
    torch.testing.assert_close(fast[both], plain[both])


def test_whole_model_by_plain_paths(always_onednn, tiny_model: Callable, monkeypatch: pytest.MonkeyPatch):
    """A hook on each module keeps the model from all fast paths of its modules."""
    results = []
    for hooked in (False, True):
        model = tiny_model(LunaForMaskedLM, "sdpa", conv_kernel_size=3, sparse_prediction=not hooked, **ABSORBING)
        for module in model.modules() if hooked else ():
            module.register_forward_hook(lambda module, inputs, output: None)
        results.append(loss_and_gradients(model))
    torch.testing.assert_close(*results, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(7,), (1, 1), (2, 5), (3, 2, 4)])
@pytest.mark.parametrize("size", [(6, 8), (8, 6), (1, 3), (5, 1)])
def test_onednn_gives_the_same(older_mkl, size: tuple[int, int], shape: tuple[int, ...], bias: bool):
    states, weight, bias_vector = random_map(*size, *shape)
    tensors = (states, weight, bias_vector if bias else None)
    found = with_gradients(onednn_linear, tensors)
    torch.testing.assert_close(found, with_gradients(nn.functional.linear, tensors), **TOLERANCE)
    assert all(tensor.is_contiguous() for tensor in found)


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


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("shape", [(100_000,), (7, 1, 9_001), (300, 333)])
def test_dropout_keeps_the_mean_and_drops_the_share(p: float, shape: tuple[int, ...]):
    torch.manual_seed(6)
    count = math.prod(shape)
    result = fast_dropout(torch.ones(shape), p, training=True)
    kept = result != 0
    four_sigma = 4 * math.sqrt(p * (1 - p) / count)
    assert kept.float().mean().item() == pytest.approx(1 - p, abs=four_sigma)
    torch.testing.assert_close(result[kept], torch.full((int(kept.sum()),), 1 / (1 - p)), atol=0, rtol=2**-12)


def test_dropout_of_neighbours_is_independent():
    torch.manual_seed(7)
    kept = (fast_dropout(torch.ones(400_000), 0.5, training=True) != 0).double()
    for distance in (1, 2, 3, 4, 8):
        both = (kept[:-distance] * kept[distance:]).mean().item()
        assert both == pytest.approx(0.25, abs=0.003)


def test_same_seed_drops_the_same_values():
    states = torch.randn(50, 7)
    results = []
    for seed in (8, 8, 9):
        torch.manual_seed(seed)
        results.append(fast_dropout(states, 0.4, training=True))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_gradient_passes_through_kept_values_alone():
    states = torch.randn(40, 25, requires_grad=True)
    result = fast_dropout(states, 0.5, training=True)
    result.sum().backward()
    kept = result != 0
    assert 0 < kept.sum() < kept.numel()
    assert torch.equal(states.grad, torch.where(kept, 2.0, 0.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_dropout_keeps_the_dtype_and_a_strided_input(dtype: torch.dtype):
    states = torch.ones(6, 8, 10, dtype=dtype).transpose(0, 2)
    result = fast_dropout(states, 0.5, training=True)
    assert (result.dtype, result.shape) == (dtype, states.shape)
    assert set(result.unique().tolist()) == {0.0, 2.0}


@pytest.mark.parametrize(("p", "training"), [(0.5, False), (0.0, True)])
def test_no_dropout(p: float, training: bool):
    states = torch.randn(5)
    assert fast_dropout(states, p, training) is states


class PeerBlock(nn.Module):
    """Plain modules of another architecture."""

    def __init__(self, p: float):
        super().__init__()
        self.dense = nn.Linear(8, 6)
        self.dropout = nn.Dropout(p)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.dense(states))


def test_another_model_with_fast_kernels_computes_the_same(always_onednn, monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(0)
    model, states = PeerBlock(0.0).train(), torch.randn(2, 5, 8, requires_grad=True)
    parameters = list(model.parameters())
    expected = [model(states), *torch.autograd.grad(model(states).square().sum(), parameters)]
    use_fast_kernels(model)
    convolutions = count_convolutions(monkeypatch)
    found = [model(states), *torch.autograd.grad(model(states).square().sum(), parameters)]
    torch.testing.assert_close(found, expected, **TOLERANCE)
    assert len(convolutions) == 2


def test_another_model_with_fast_kernels_has_the_fast_dropout():
    """The same draws as `fast_dropout`, in training alone; hooks see the calls."""
    model, states, seen = PeerBlock(0.5), torch.randn(2, 5, 8), []
    use_fast_kernels(model)
    model.dropout.register_forward_hook(lambda module, inputs, output: seen.append(output))
    torch.manual_seed(1)
    found = model.train()(states)
    torch.manual_seed(1)
    torch.testing.assert_close(found, fast_dropout(model.dense(states), 0.5, training=True), **TOLERANCE)
    torch.testing.assert_close(model.eval()(states), model.dense(states), **TOLERANCE)
    assert len(seen) == 2


def test_maps_of_other_classes_stay_as_they_are():
    class Adapted(nn.Linear):
        pass

    model = nn.Sequential(Adapted(8, 6), nn.Dropout(0.5, inplace=True))
    use_fast_kernels(model)
    assert not any("forward" in vars(module) for module in model)
