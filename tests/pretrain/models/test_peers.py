"""Other architectures in Luna's place: the same loss, a run of the real script, and what they cannot do."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertForMaskedLM,
    DistilBertForMaskedLM,
    ModernBertForMaskedLM,
    RobertaForMaskedLM,
)

from common.config.yaml_config import ConfigurationError
from common.labels import IGNORED
from pretrain.models.configuration import model_configuration
from pretrain.models.model import new_model
from pretrain.models.peers import peer_config
from pretrain.steps.batches import cut_rows


SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "vocab_size": 90,
}
PLACES = {"max_position_embeddings": 40}
PEERS = {
    "roberta": (RobertaForMaskedLM, SIZES | PLACES),
    "bert": (BertForMaskedLM, SIZES | PLACES),
    "modernbert": (ModernBertForMaskedLM, SIZES | {"pad_token_id": 1}),
    "distilbert": (
        DistilBertForMaskedLM,
        {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 48, "vocab_size": 90},
    ),
}
ROBERTA = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 34,
    "initializer_range": 0.1,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


@pytest.fixture
def roberta(build_config: Callable, tmp_path: Path) -> Callable:
    """A configuration of a tiny RoBERTa's run."""

    def build(**changes):
        config = build_config(tmp_path / "run", model_type="roberta", **changes)
        config.model = ROBERTA | changes.get("model", {})
        return config

    return build


@pytest.mark.parametrize("model_type", PEERS)
def test_loss_and_gradients_are_those_of_the_architecture(model_type: str):
    model_class, fields = PEERS[model_type]
    config = peer_config(model_type, fields)
    peer = new_model(config).eval()
    plain = model_class(config).eval()
    plain.load_state_dict(peer.state_dict())
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(4, 90, (3, 20), generator=generator)
    mask = torch.ones_like(input_ids)
    mask[1, 12:] = 0
    labels = torch.where((torch.rand(3, 20, generator=generator) < 0.3) & (mask > 0), input_ids, IGNORED)
    inputs = {"input_ids": input_ids, "attention_mask": mask.bool(), "labels": labels}
    expected = plain(**inputs | {"attention_mask": mask}).loss
    expected.backward()
    outputs = peer(**inputs)
    outputs.loss.backward()
    torch.testing.assert_close(outputs.loss, expected)
    for (name, parameter), other in zip(peer.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, msg=name)
    counted = (labels != IGNORED).sum()
    with_counts = peer(**inputs, num_items_in_batch=7, num_predicted=int(counted), num_tokens=52).loss
    torch.testing.assert_close(with_counts, expected * counted / 7)


@pytest.mark.parametrize("model_type", PEERS)
def test_pieces_of_rows_have_the_positions_of_their_rows(model_type: str):
    config = peer_config(model_type, PEERS[model_type][1])
    peer = new_model(config).eval()
    input_ids = torch.randint(4, 90, (1, 20), generator=torch.Generator().manual_seed(0))
    pieces = cut_rows({"input_ids": input_ids, "labels": input_ids}, 10)
    asked_for: list[torch.Tensor] = []
    tables = [m for name, m in peer.named_modules() if name.endswith("position_embeddings")]
    for table in tables:
        table.register_forward_hook(lambda module, inputs, output: asked_for.append(output))
    whole = peer(input_ids=input_ids, labels=input_ids)
    cut = peer(**pieces)
    assert torch.isfinite(cut.loss) and not torch.allclose(cut.logits, whole.logits)
    if tables:
        torch.testing.assert_close(asked_for[1].reshape(-1), asked_for[0].reshape(-1))
    else:  # rotary positions: only their distances count
        assert model_type == "modernbert"


def test_run_whose_rows_grow(roberta: Callable, train: Callable):
    metrics = train(roberta(max_length_start=8, max_length_ramp_steps=10))
    losses = [record["loss"] for record in metrics if "loss" in record]
    assert losses[-1] < losses[0] - 0.2


def test_run_of_another_architecture(roberta: Callable, train: Callable, tmp_path: Path, capsys):
    metrics = train(roberta(save_steps=10))
    losses = [record["loss"] for record in metrics if "loss" in record]
    assert losses[-1] < losses[0] - 0.2
    assert not any("effective_rank" in record or record.get("mfu") for record in metrics)
    assert re.search(r"^Model +roberta, [\d,]+ parameters: 2 layers", capsys.readouterr().out, re.MULTILINE)

    model, info = AutoModelForMaskedLM.from_pretrained(tmp_path / "run/model", output_loading_info=True)
    assert type(model) is RobertaForMaskedLM
    assert model.config.architectures == ["RobertaForMaskedLM"]
    assert not any(info.values())
    assert not list((tmp_path / "run/model").glob("*.py"))
    card = (tmp_path / "run/model/README.md").read_text(encoding="utf-8")
    assert "the architecture `roberta`" in card and "luna" not in card.lower().replace("modeling_luna", "")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run/model")
    assert model.config.pad_token_id == tokenizer.pad_token_id == 1


@pytest.mark.slow
def test_resumed_run_is_the_same(roberta: Callable, train: Callable, tmp_path: Path):
    config = roberta(save_steps=10)
    whole = [record for record in train(config) if "loss" in record]
    (tmp_path / "run/checkpoint-20").rename(tmp_path / "checkpoint-20")
    (tmp_path / "run/model").rename(tmp_path / "model")
    resumed = [record for record in train(config) if "loss" in record]
    assert [record["loss"] for record in resumed] == [record["loss"] for record in whole]
    weights = [(folder / "model.safetensors").read_bytes() for folder in (tmp_path / "model", tmp_path / "run/model")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "rober"}, "model_type: 'rober' is no masked language model. Did you mean 'roberta'?"),
        ({"model_type": "bart"}, "model_type: bart is no encoder alone."),
        ({"model": {"hidden_sizes": 3}}, "model: unknown key 'hidden_sizes'. Did you mean 'hidden_size'?"),
        (
            {"packing": "best_fit"},
            "packing is 'best_fit': roberta does not keep documents apart: take stream or full_sentences.",
        ),
        (
            {"gradient_checkpointing": "selective"},
            "gradient_checkpointing is 'selective': it is for luna alone, since others may change in place what is "
            "kept: give true.",
        ),
        (
            {"init_from": "runs/demo"},
            "model_type is 'roberta': it must be luna, the only architecture that init_from takes.",
        ),
    ],
)
def test_what_cannot_be(roberta: Callable, changes: dict, message: str):
    config = roberta(**{key: value for key, value in changes.items() if key != "model_type"})
    config.model_type = changes.get("model_type", config.model_type)
    if config.model_type == "bart":
        config.model = {}
    with pytest.raises(ConfigurationError, match=f"^{re.escape(message)}$"):
        config.validate()
        model_configuration(config, None)


def test_rows_longer_than_the_positions(roberta: Callable, train: Callable):
    with pytest.raises(ConfigurationError, match="max_length is 32, but the model has positions for 31 tokens: raise"):
        train(roberta(model={"max_position_embeddings": 33}))


@pytest.mark.parametrize("model_type", ["roberta", "albert"])
def test_gradient_checkpointing(roberta: Callable, train: Callable, model_type: str):
    """Not every architecture has it."""
    config = roberta(max_steps=2, warmup_steps=1, gradient_checkpointing=True)
    if model_type == "albert":
        config.model_type, config.model = "albert", {**config.model, "embedding_size": 16}
        with pytest.raises(ConfigurationError, match="^gradient_checkpointing: AlbertForMaskedLM does not support"):
            train(config)
    else:
        assert len([record for record in train(config) if "loss" in record]) == 2
