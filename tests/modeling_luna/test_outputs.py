# Copyright 2026 The Luna for Transformers authors.
# SPDX-License-Identifier: Apache-2.0
"""What forward returns: shapes and values of the optional outputs, and only those that were asked for."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    PreTrainedModel,
)

from modeling_luna import (
    LunaForMaskedLM,
    LunaForMultipleChoice,
    LunaForQuestionAnswering,
    LunaForSequenceClassification,
    LunaForTokenClassification,
    LunaModel,
)


LAYERS, BATCH, TOKENS, SLOTS, HIDDEN = 2, 2, 9, 6, 24
LENGTHS = torch.tensor([9, 4])
FLAGS = {
    "output_hidden_states": "hidden_states",
    "output_packed_hidden_states": "packed_hidden_states",
    "output_attentions": "attentions",
    "output_pack_attentions": "pack_attentions",
}
BERT = {
    LunaModel: BertModel,
    LunaForMaskedLM: BertForMaskedLM,
    LunaForMultipleChoice: BertForMultipleChoice,
    LunaForQuestionAnswering: BertForQuestionAnswering,
    LunaForSequenceClassification: BertForSequenceClassification,
    LunaForTokenClassification: BertForTokenClassification,
}
every_class = pytest.mark.parametrize("each_class", BERT, ids=lambda each_class: each_class.__name__)


@pytest.fixture(params=[LunaModel, LunaForMaskedLM])
def model_class(request: pytest.FixtureRequest) -> type:
    return request.param


@pytest.fixture
def inputs() -> dict[str, torch.Tensor]:
    """Two rows, of 9 and of 4 tokens, right-padded."""
    input_ids = torch.randint(3, 53, (BATCH, TOKENS), generator=torch.Generator().manual_seed(2))
    return {"input_ids": input_ids, "attention_mask": (torch.arange(TOKENS) < LENGTHS[:, None]).long()}


@torch.no_grad()
def test_nothing_optional_unless_asked(tiny_model: Callable, model_class: type, inputs: dict):
    outputs = tiny_model(model_class)(**inputs)
    assert outputs.packed_last_hidden_state.shape == (BATCH, SLOTS, HIDDEN)
    assert not set(outputs.keys()) & set(FLAGS.values())


@torch.no_grad()
@pytest.mark.parametrize("flag", FLAGS)
def test_each_flag_adds_its_output_alone(tiny_model: Callable, model_class: type, inputs: dict, flag: str):
    outputs = tiny_model(model_class)(**inputs, **{flag: True})
    assert set(outputs.keys()) & set(FLAGS.values()) == {FLAGS[flag]}


@torch.no_grad()
@pytest.mark.parametrize("flag", ["output_hidden_states", "output_attentions"])
def test_flags_in_the_config(tiny_model: Callable, model_class: type, inputs: dict, flag: str):
    model = tiny_model(model_class)
    setattr(model.config, flag, True)
    assert set(model(**inputs).keys()) & set(FLAGS.values()) == {FLAGS[flag]}


@torch.no_grad()
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_hidden_states(tiny_model: Callable, model_class: type, inputs: dict, implementation: str):
    model = tiny_model(model_class, implementation)
    outputs = model(**inputs, output_hidden_states=True, output_packed_hidden_states=True)
    assert [state.shape for state in outputs.hidden_states] == [(BATCH, TOKENS, HIDDEN)] * (LAYERS + 1)
    assert [state.shape for state in outputs.packed_hidden_states] == [(BATCH, SLOTS, HIDDEN)] * (LAYERS + 1)
    assert torch.equal(outputs.packed_hidden_states[-1], outputs.packed_last_hidden_state)
    for states in (outputs.hidden_states, outputs.packed_hidden_states):
        assert (states[0] - states[1]).abs().max() > 0.05
        assert (states[1] - states[2]).abs().max() > 0.05
    # After the embeddings, padding and unused slots are zero.
    assert outputs.hidden_states[0][1, 4:].eq(0).all()
    assert outputs.packed_hidden_states[0][1, 4:].eq(0).all()
    assert outputs.packed_hidden_states[0][0].ne(0).any(dim=-1).all()


@torch.no_grad()
def test_pre_norm_ends_in_a_norm_of_both_states(tiny_model: Callable, inputs: dict):
    model = tiny_model(normalize_before=True)
    outputs = model(**inputs, output_hidden_states=True, output_packed_hidden_states=True)
    assert torch.equal(outputs.hidden_states[-1], outputs.last_hidden_state)
    expected = model.packed_final_layer_norm(outputs.packed_hidden_states[-1])
    torch.testing.assert_close(outputs.packed_last_hidden_state, expected)


@torch.no_grad()
@pytest.mark.parametrize("pack_heads", [None, 2])
def test_attentions(tiny_model: Callable, model_class: type, inputs: dict, pack_heads: int | None):
    model = tiny_model(model_class, num_pack_attention_heads=pack_heads)
    outputs = model(**inputs, output_attentions=True, output_pack_attentions=True)
    pack_shape = (BATCH, pack_heads or 4, SLOTS, TOKENS)
    assert [weights.shape for weights in outputs.attentions] == [(BATCH, 4, TOKENS, SLOTS)] * LAYERS
    assert [weights.shape for weights in outputs.pack_attentions] == [pack_shape] * LAYERS
    for weights in outputs.attentions + outputs.pack_attentions:
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(weights.shape[:-1]))
        # The second row has 4 tokens and so 4 slots; nothing attends beyond them.
        assert weights[1, ..., 4:].eq(0).all()
        assert weights[0].gt(0).all()


@torch.no_grad()
def test_values_of_attentions(tiny_model: Callable):
    """The weights of the first layer by hand, from the states that enter it."""
    model = tiny_model(num_attention_heads=1, tie_key_value=False)
    input_ids = torch.arange(3, 12).unsqueeze(0)
    outputs = model(
        input_ids,
        output_hidden_states=True,
        output_packed_hidden_states=True,
        output_attentions=True,
        output_pack_attentions=True,
    )
    tokens, packed = outputs.hidden_states[0][0], outputs.packed_hidden_states[0][0]
    pack, unpack = model.layers[0].pack_attention, model.layers[0].unpack_attention

    pack_weights = (pack.q_proj(packed) @ pack.k_proj(tokens).T / HIDDEN**0.5).softmax(dim=-1)
    torch.testing.assert_close(outputs.pack_attentions[0][0, 0], pack_weights)
    context = pack_weights @ pack.v_proj(tokens)
    unpack_weights = (unpack.q_proj(tokens) @ unpack.k_proj(context).T / HIDDEN**0.5).softmax(dim=-1)
    torch.testing.assert_close(outputs.attentions[0][0, 0], unpack_weights)


@torch.no_grad()
@pytest.mark.parametrize(("tokens", "dynamic", "slots"), [(4, True, 4), (4, False, SLOTS), (9, True, SLOTS)])
def test_number_of_slots(tiny_model: Callable, tokens: int, dynamic: bool, slots: int):
    outputs = tiny_model(dynamic_projection=dynamic)(torch.full((1, tokens), 5), output_attentions=True)
    assert outputs.packed_last_hidden_state.shape == (1, slots, HIDDEN)
    assert outputs.attentions[0].shape == (1, 4, tokens, slots)


def batch_for(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The inputs as this class takes them, with labels; multiple choice gets them as two choices of one question."""
    name = type(model).__name__.removeprefix("Bert").removeprefix("Luna")
    documents, tokens = torch.zeros(BATCH, dtype=torch.long), torch.zeros_like(inputs["input_ids"])
    labels = {
        "Model": {},
        "ForMaskedLM": {"labels": inputs["input_ids"]},
        "ForMultipleChoice": {"labels": documents[:1]},
        "ForQuestionAnswering": {"start_positions": documents, "end_positions": documents + 1},
        "ForSequenceClassification": {"labels": documents},
        "ForTokenClassification": {"labels": tokens},
    }[name]
    if name == "ForMultipleChoice":
        inputs = {name: value.unsqueeze(0) for name, value in inputs.items()}
    return inputs | labels


@torch.no_grad()
@pytest.mark.parametrize("flags", [{}, dict.fromkeys(FLAGS, True)], ids=["plain", "all"])
@pytest.mark.parametrize("where", ["config", "from_pretrained", "call"])
@every_class
def test_tuple_instead_of_output_class(
    tiny_model: Callable, each_class: type, inputs: dict, where: str, flags: dict, tmp_path: Path
):
    model = tiny_model(each_class)
    batch = batch_for(model, inputs) | flags
    named = model(**batch)
    if where == "from_pretrained":
        model.save_pretrained(tmp_path)
        model = each_class.from_pretrained(tmp_path, attn_implementation="eager", return_dict=False)
    elif where == "config":
        model.config.return_dict = False
    plain = model(**batch, return_dict=False) if where == "call" else model(**batch)
    assert type(plain) is tuple
    torch.testing.assert_close(plain, named.to_tuple(), rtol=1e-6, atol=1e-6)
    if where != "call":  # the call has the last word
        assert model(**batch, return_dict=True).keys() == named.keys()


@torch.no_grad()
@pytest.mark.parametrize("flag", FLAGS)
@every_class
def test_flags_of_from_pretrained(tiny_model: Callable, each_class: type, inputs: dict, flag: str, tmp_path: Path):
    tiny_model(each_class).save_pretrained(tmp_path)
    model = each_class.from_pretrained(tmp_path, attn_implementation="eager", **{flag: True})
    assert set(model(**batch_for(model, inputs)).keys()) & set(FLAGS.values()) == {FLAGS[flag]}


@torch.no_grad()
@every_class
def test_bert_order(tiny_model: Callable, each_class: type, inputs: dict):
    """What BERT has comes first, in its order, so that code which counts into the tuple of a head works."""
    flags = {"output_hidden_states": True, "output_attentions": True}
    luna = tiny_model(each_class)
    bert_class = BERT[each_class]
    config = BertConfig(
        vocab_size=53, hidden_size=24, num_hidden_layers=1, num_attention_heads=4, intermediate_size=40
    )
    bert = bert_class._from_config(config, attn_implementation="eager")
    found, expected = (list(model(**batch_for(model, inputs), **flags)) for model in (luna, bert))
    if each_class is LunaModel:  # P stands where BERT has its pooled token
        expected = ["packed_last_hidden_state" if name == "pooler_output" else name for name in expected]
        expected.remove("cross_attentions")
    assert found[: len(expected)] == expected


@torch.no_grad()
def test_masked_lm_passes_the_outputs_of_the_base_model_on(tiny_model: Callable, inputs: dict):
    model = tiny_model(LunaForMaskedLM)
    flags = dict.fromkeys(FLAGS, True)
    outputs, base = model(**inputs, **flags), model.luna(**inputs, **flags)
    for name in ("packed_last_hidden_state", *FLAGS.values()):
        torch.testing.assert_close(outputs[name], base[name], rtol=0, atol=0)
