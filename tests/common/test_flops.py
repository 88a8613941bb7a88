"""Operations of a training step, as torch counts them."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from common.flops import training_flops
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
