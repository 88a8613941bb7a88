"""Names of models, and what they stand for."""

import pytest

from benchmarks.speed.models import PEERS, ModelName, count_parameters, new_config, new_model
from common.errors import UserError
from modeling_luna import LunaConfig


def test_names():
    assert ModelName.parse("luna-64+flash") == ("luna", 64, "flash_attention_2")
    assert ModelName.parse("modernbert") == ("modernbert", None, None)
    varlen = [name for name in ["luna-16", *PEERS] if ModelName.parse(name).takes_varlen]
    assert varlen == ["luna-16"]
    assert ModelName.parse("modernbert+flash").takes_varlen and not ModelName.parse("fnet+flash").takes_varlen


@pytest.mark.parametrize("name", ["luna", "luna-0", "luna-x", "bert", "roberta+fast", ""])
def test_other_names_are_refused(name: str):
    with pytest.raises(UserError, match=f"--models: '{name.replace('+', '.')}' is no model. Write luna-L"):
        ModelName.parse(name)


def test_base_sizes():
    """Those of the papers, but for the vocabulary, which is the same for all."""
    luna = new_config(ModelName.parse("luna-128"), 512)
    assert count_parameters(ModelName.parse("luna-128"), luna, head=True) == 131_902_041
    assert luna.projection_length == LunaConfig().projection_length == 128
    roberta = new_config(ModelName.parse("roberta"), 512)
    assert count_parameters(ModelName.parse("roberta"), roberta, head=True) == 124_697_433
    modernbert = new_config(ModelName.parse("modernbert"), 8192)
    assert modernbert.num_hidden_layers == 22
    assert count_parameters(ModelName.parse("modernbert"), modernbert, head=False) == pytest.approx(149e6, rel=0.01)
    for name in PEERS:
        assert new_config(ModelName.parse(name), 512).hidden_size == 768


def test_a_stack_of_modernbert_keeps_its_mix():
    config = new_config(ModelName.parse("modernbert"), 512, layers=3)
    assert config.layer_types == ["full_attention", "sliding_attention", "sliding_attention"]


def test_dropout_is_that_of_the_published_model():
    config = new_config(ModelName.parse("luna-16"), 64, dropout=0.2, size="tiny")
    assert (config.hidden_dropout_prob, config.attention_probs_dropout_prob, config.activation_dropout) == (
        0.2, 0.2, 0.0,
    )  # fmt: skip
    config = new_config(ModelName.parse("modernbert"), 64, dropout=0.2, size="tiny")
    assert (config.attention_dropout, config.mlp_dropout, config.embedding_dropout) == (0.2, 0.2, 0.2)


def test_attention_is_the_named_one():
    name = ModelName.parse("roberta+eager")
    model = new_model(name, new_config(name, 64, layers=1, size="tiny"), head=False)
    assert model.config._attn_implementation == "eager"
    name = ModelName.parse("roberta")
    model = new_model(name, new_config(name, 64, layers=1, size="tiny"), head=False)
    assert model.config._attn_implementation == "sdpa"
