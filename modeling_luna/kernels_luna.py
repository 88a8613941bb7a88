# Copyright 2026 The Luna for Transformers authors.
# SPDX-License-Identifier: Apache-2.0
"""What makes a CPU faster: linear maps by oneDNN, dropout with fewer draws, convolutions without transpositions.

The model's maps are plain modules of torch, which other tools find, replace and hook. The `apply_...` functions call
such a module, `module(states)`, or compute faster what it computes where nothing would notice. `use_fast_kernels`
gives the same to the plain modules of other models.
"""

import functools
import platform
from collections.abc import Callable
from pathlib import Path

import numpy
import torch
from torch import nn
from torch.nn.modules.module import _has_any_global_hook

from .tracing_luna import runs_eagerly


ONEDNN_PRODUCTS = 2**27  # multiply-adds of a map, below which setting up a convolution takes longer than it saves
# On a GPU, products of the head take four times as long with an odd vocabulary, such as RoBERTa's 50,265.
TENSOR_CORE_MULTIPLE = 64
PLAIN_FORWARDS: dict[type[nn.Module], Callable] = {kind: kind.forward for kind in (nn.Linear, nn.Dropout, nn.Conv1d)}


def apply_linear(module: nn.Linear, states: torch.Tensor) -> torch.Tensor:
    """`module(states)` of a linear map, by oneDNN where that is faster."""
    if type(module) is nn.Linear and prefers_onednn(states, module.weight) and is_plain(module):
        return onednn_linear(states, module.weight, module.bias)
    return module(states)


def apply_decoder(module: nn.Linear, states: torch.Tensor) -> torch.Tensor:
    """`module(states)` of a map to a vocabulary, in training on a GPU with columns for its tensor cores."""
    if module.training and states.device.type == "cuda" and is_plain(module):
        return linear_in_multiples(states, module.weight, module.bias)
    return apply_linear(module, states)


def apply_dropout(module: nn.Dropout, states: torch.Tensor) -> torch.Tensor:
    """`module(states)` of a dropout, with fewer draws on a CPU."""
    if module.training and is_plain(module) and not module.inplace:
        return fast_dropout(states, module.p, training=True)
    return module(states)


def apply_convolution(module: nn.Conv1d, states: torch.Tensor) -> torch.Tensor:
    """A depthwise `Conv1d` of odd width that keeps the length, over states (batch, n, channels)."""
    if not is_plain(module):
        return module(states.transpose(1, 2)).transpose(1, 2)
    width = module.kernel_size[0]
    if states.device.type == "cpu" and torch.compiler.is_compiling() and not torch.compiler.is_exporting():
        # Inductor cannot take a convolution of changing length backward on a CPU, but fuses these products.
        padded = nn.functional.pad(states, (0, 0, width // 2, width // 2))
        products = [padded[:, i : i + states.shape[1]] * module.weight[:, 0, i] for i in range(width)]
        convolved = functools.reduce(torch.add, products)
        return convolved if module.bias is None else convolved + module.bias
    # Read as an image (batch, channels, 1, n) with the channels last: no transposition is copied, and the kernels for
    # images are several times faster on a CPU than those of Conv1d.
    image = nn.functional.conv2d(
        states.unsqueeze(1).permute(0, 3, 1, 2),
        module.weight.unsqueeze(2),
        module.bias,
        padding=(0, width // 2),
        groups=module.groups,
    )
    return image.permute(0, 2, 3, 1).squeeze(1)


def use_fast_kernels(model: nn.Module):
    """Let the plain linear maps and dropouts of a model of any architecture compute as those of Luna do.

    Their `forward` is replaced, one by one; names, parameters and hooks stay as they are.
    """
    for module in model.modules():
        if type(module) is nn.Linear and is_plain(module):
            vars(module)["forward"] = functools.partial(linear_forward, module)
        elif type(module) is nn.Dropout and is_plain(module) and not module.inplace:
            vars(module)["forward"] = functools.partial(dropout_forward, module)


def linear_forward(module: nn.Linear, states: torch.Tensor) -> torch.Tensor:
    if prefers_onednn(states, module.weight):
        return onednn_linear(states, module.weight, module.bias)
    return nn.functional.linear(states, module.weight, module.bias)


def dropout_forward(module: nn.Dropout, states: torch.Tensor) -> torch.Tensor:
    return fast_dropout(states, module.p, module.training)


def is_plain(module: nn.Module) -> bool:
    """Whether a call of the module does what its class in torch does, and nothing else.

    Quantisation, adapters and parametrisations put another class in its place; sharding, offloading and observers use
    hooks, replace `forward` or the weights.
    """
    return (
        type(module) in PLAIN_FORWARDS
        and type(module).forward is PLAIN_FORWARDS[type(module)]
        and "forward" not in vars(module)
        and not (module._forward_pre_hooks or module._forward_hooks)
        and not (module._backward_pre_hooks or module._backward_hooks)
        and not _has_any_global_hook()
        and all(is_plain_tensor(weight) for weight in module._parameters.values() if weight is not None)
    )


def is_plain_tensor(tensor: torch.Tensor) -> bool:
    """Not a part of a tensor that is spread over devices, nor a quantised one, nor one without values."""
    return type(tensor) in (torch.Tensor, nn.Parameter)


def onednn_linear(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`torch.nn.functional.linear` as a convolution.

    torch gives float32 products on a CPU to MKL, which does not use the AVX-512 units of AMD's CPUs, and convolutions
    to oneDNN, which does: there, a map of enough states is a convolution of width 1 over them. Results differ by
    rounding alone.
    """
    rows = states.reshape(-1, states.shape[-1])
    num_rows = rows.shape[0]
    if num_rows % 4:  # the gradient of the weight would take up to four times as long
        rows = nn.functional.pad(rows, (0, 0, 0, -num_rows % 4))
    # Read as an image (1, in_features, 1, rows) with the channels last, which copies nothing.
    image = nn.functional.conv2d(rows[None, None].permute(0, 3, 1, 2), weight[:, :, None, None], bias)
    rows = image.permute(0, 2, 3, 1).flatten(0, 2)
    return rows[:num_rows].reshape(*states.shape[:-1], weight.shape[0])


def linear_in_multiples(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """`torch.nn.functional.linear`, computed with a multiple of `TENSOR_CORE_MULTIPLE` columns."""
    padding = -weight.shape[0] % TENSOR_CORE_MULTIPLE
    if padding == 0:
        return nn.functional.linear(states, weight, bias)
    weight, bias = nn.functional.pad(weight, (0, 0, 0, padding)), nn.functional.pad(bias, (0, padding))
    return nn.functional.linear(states, weight, bias)[..., :-padding]


def linear_by_document(states: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """(documents, n, in) by the weights (documents, out, in) -> (documents, n, out)"""
    if prefers_onednn(states[:1], weights[0]):
        return torch.stack([onednn_linear(*document) for document in zip(states, weights, strict=True)])
    return torch.matmul(states, weights.transpose(1, 2))


def prefers_onednn(states: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether `onednn_linear` is faster than torch's own product."""
    return (
        runs_eagerly()  # first: the number of states may not be known to a compiler
        and states.device.type == "cpu"
        and states.dtype == weight.dtype == torch.float32
        and states.numel() // max(1, states.shape[-1]) * weight.numel() >= ONEDNN_PRODUCTS
        and not torch.is_autocast_enabled("cpu")
        and is_plain_tensor(states)
        and is_plain_tensor(weight)
        and nn.functional.linear is torch._C._nn.linear  # not replaced, as DeepSpeed does
        and bool(torch.backends.mkldnn.enabled)
        and mkl_lacks_avx512()
    )


@functools.cache
def mkl_lacks_avx512() -> bool:
    """Whether this CPU has AVX-512, torch was built with MKL and oneDNN, and MKL takes an older code path on it."""
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return False
    cpuinfo = Path("/proc/cpuinfo")
    processor = cpuinfo.read_text(encoding="utf-8") if cpuinfo.exists() else platform.processor()
    return torch.backends.cpu.get_cpu_capability() == "AVX512" and "AuthenticAMD" in processor


def fast_dropout(states: torch.Tensor, p: float, training: bool) -> torch.Tensor:
    """Dropout as in `torch.nn.functional`, but several times faster on a CPU.

    torch draws one random number a value there, and one after the other. Four values share a draw of 64 bits here, so
    that `p` is rounded to a multiple of 2**-16, and NumPy's generator, seeded by torch's, takes half the time of it.
    """
    threshold, count = round(p * 2**16), states.numel()
    if not training or p == 0.0:
        return states
    if (
        not runs_eagerly()
        or states.device.type != "cpu"
        or not is_plain_tensor(states)
        or count == 0
        or not 0 < threshold < 2**16
    ):
        return nn.functional.dropout(states, p, training)
    generator = numpy.random.Generator(numpy.random.SFC64(int(torch.randint(2**63 - 1, ()))))
    draws = generator.integers(-(2**63), 2**63, (count + 3) // 4, dtype=numpy.int64)
    kept = torch.from_numpy(draws).view(torch.int16)[:count].view(states.shape) >= threshold - 2**15
    return states * kept.to(states.dtype).mul_(2**16 / (2**16 - threshold))
