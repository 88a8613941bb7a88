"""What the backward pass computes again."""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel, RobertaConfig, RobertaForMaskedLM

from common.gradient_checkpointing import enable_checkpointing
from modeling_luna import LunaConfig, LunaForMaskedLM, kernels_luna


SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "attn_implementation": "sdpa",
}
ROWS = torch.arange(4, 36).view(2, 16)
FUSED_ATTENTION = "_scaled_dot_product_flash_attention_for_cpu"


def build(architecture: str, dropout: float, **changes) -> PreTrainedModel:
    """All parameters differ from zero: a bias that is added twice shows."""
    torch.manual_seed(0)
    fields = SIZES | {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout} | changes
    model: PreTrainedModel
    if architecture == "luna":
        model = LunaForMaskedLM(LunaConfig(**{"projection_length": 6} | fields))
    else:
        model = RobertaForMaskedLM(RobertaConfig(**fields))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.train()


class Operations(TorchDispatchMode):
    """How often each operation is done."""

    def __init__(self):
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        self.counts[operation.overloadpacket.__name__] += 1
        return operation(*arguments, **(options or {}))


def train_once(model: PreTrainedModel) -> tuple[Counter[str], list[torch.Tensor]]:
    torch.manual_seed(1)
    with Operations() as operations:
        model(ROWS, labels=ROWS).loss.backward()
    return operations.counts, [parameter.grad for parameter in model.parameters()]


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("architecture", ["luna", "roberta"])
def test_selective_checkpointing_does_no_product_twice(architecture: str, dropout: float):
    plain, gradients = train_once(build(architecture, dropout))
    counts = {}
    for selective in (False, True):
        model = build(architecture, dropout)
        enable_checkpointing(model, selective)
        counts[selective], found = train_once(model)
        torch.testing.assert_close(found, gradients, rtol=0, atol=0)
    for operation in ("mm", "addmm", FUSED_ATTENTION):
        assert counts[True][operation] == plain[operation]
    assert counts[False]["addmm"] > plain["addmm"]
    for layers_operation in ("gelu", "native_layer_norm"):
        assert counts[True][layers_operation] > plain[layers_operation]


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("onednn", [False, True])
@pytest.mark.parametrize(
    "changes",
    [
        {"projection_length": 4},  # absorbed projections
        {"tie_key_value": False, "conv_kernel_size": 3, "normalize_before": True},
        {"attn_implementation": "eager", "sparse_prediction": True},
    ],
)
def test_selective_checkpointing_gives_the_same_gradients(
    changes: dict, onednn: bool, dropout: float, monkeypatch: pytest.MonkeyPatch
):
    if onednn and not torch.backends.mkldnn.is_available():
        pytest.skip("torch was built without oneDNN")
    monkeypatch.setattr(kernels_luna, "mkl_lacks_avx512", lambda: onednn)
    monkeypatch.setattr(kernels_luna, "ONEDNN_PRODUCTS", 1)
    _, expected = train_once(build("luna", dropout, **changes))
    model = build("luna", dropout, **changes)
    enable_checkpointing(model, selective=True)
    torch.testing.assert_close(train_once(model)[1], expected, rtol=0, atol=0)
