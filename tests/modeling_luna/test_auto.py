# Copyright 2026 The Luna for Transformers authors.
# SPDX-License-Identifier: Apache-2.0
"""A saved folder opens through the Auto classes, pipelines and every way of loading."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoTokenizer,
    RobertaTokenizer,
    pipeline,
)

from modeling_luna import LunaConfig, LunaForMaskedLM, LunaForSequenceClassification, LunaModel
from modeling_luna.modeling_luna import AUTO_CLASSES


SENTENCE = "Luna packs the tokens of a <mask> into a few slots."

FRESH_PROCESS = """
import json, sys
import torch
import modeling_luna
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, AutoTokenizer, pipeline

folder, sentence = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder)
model, report = AutoModelForMaskedLM.from_pretrained(folder, output_loading_info=True)
with torch.no_grad():
    logits = model(**tokenizer(sentence, return_tensors="pt")).logits
print(json.dumps({
    "classes": [
        type(thing).__name__
        for thing in (AutoConfig.from_pretrained(folder), AutoModel.from_pretrained(folder), model, tokenizer)
    ],
    "missing": sorted(report["missing_keys"]),
    "logits": logits[0, 3, :5].tolist(),
    "answer": pipeline("fill-mask", model=folder)(sentence)[0]["token"],
}))
"""


@pytest.mark.slow
def test_fresh_process(saved_folder: Path, subprocess_environment: dict[str, str]):
    command = [sys.executable, "-c", FRESH_PROCESS, str(saved_folder), SENTENCE]
    done = subprocess.run(command, env=subprocess_environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])

    assert result["classes"] == ["LunaConfig", "LunaModel", "LunaForMaskedLM", "RobertaTokenizer"]
    assert result["missing"] == []
    tokenizer = RobertaTokenizer.from_pretrained(saved_folder)
    inputs = tokenizer(SENTENCE, return_tensors="pt")
    with torch.no_grad():
        logits = LunaForMaskedLM.from_pretrained(saved_folder)(**inputs).logits[0]
    assert result["logits"] == pytest.approx(logits[3, :5].tolist(), abs=1e-4)
    masked = inputs["input_ids"][0].tolist().index(tokenizer.mask_token_id)
    assert result["answer"] == logits[masked].argmax().item()


@pytest.mark.parametrize(
    ("auto_class", "expected"),
    [
        (AutoConfig, LunaConfig),
        (AutoTokenizer, RobertaTokenizer),
        *((getattr(transformers, name), model_class) for name, model_class in AUTO_CLASSES.items()),
    ],
)
def test_auto_class(saved_folder: Path, auto_class: type, expected: type):
    assert type(auto_class.from_pretrained(saved_folder)) is expected


def test_tokenizer_without_its_class_name(saved_folder: Path, tmp_path: Path):
    """The class follows from the configuration where tokenizer_config.json does not name it."""
    for file in saved_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    path = tmp_path / "tokenizer_config.json"
    stored = json.loads(path.read_text())
    del stored["tokenizer_class"]
    path.write_text(json.dumps(stored))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert type(tokenizer) is RobertaTokenizer
    assert tokenizer(SENTENCE)["input_ids"] == AutoTokenizer.from_pretrained(saved_folder)(SENTENCE)["input_ids"]


def test_tokenizer_and_model_belong_together(saved_folder: Path):
    tokenizer, config = AutoTokenizer.from_pretrained(saved_folder), AutoConfig.from_pretrained(saved_folder)
    assert len(tokenizer) == config.vocab_size
    ids = (tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id)
    assert ids == (config.bos_token_id, config.pad_token_id, config.eos_token_id) == (0, 1, 2)
    long_text = "moon " * 100
    inputs = tokenizer([long_text, "moon"], truncation=True, padding=True, return_tensors="pt")
    assert set(inputs) == {"input_ids", "attention_mask"}
    with torch.no_grad():
        hidden_states = LunaModel.from_pretrained(saved_folder)(**inputs).last_hidden_state
    assert hidden_states.shape == (2, config.max_position_embeddings, config.hidden_size)


def test_base_model_from_masked_lm_folder(saved_folder: Path):
    masked_lm = LunaForMaskedLM.from_pretrained(saved_folder)
    base, report = LunaModel.from_pretrained(saved_folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert all(key.startswith("lm_head.") for key in report["unexpected_keys"])
    torch.testing.assert_close(base.state_dict(), masked_lm.luna.state_dict(), atol=0, rtol=0)


def test_masked_lm_from_base_model_folder(tiny_model: Callable, tmp_path: Path):
    base = tiny_model()
    base.save_pretrained(tmp_path)
    masked_lm, report = LunaForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert report["missing_keys"]
    assert all(key.startswith("lm_head.") for key in report["missing_keys"])
    assert "lm_head.decoder.weight" not in report["missing_keys"]
    torch.testing.assert_close(masked_lm.luna.state_dict(), base.state_dict(), atol=0, rtol=0)
    assert masked_lm.get_output_embeddings().weight is masked_lm.get_input_embeddings().weight


def test_extension_starts_as_the_identity_where_a_folder_lacks_it(saved_folder: Path):
    """A model without the convolution opens with it: the missing kernels are made after loading, not left empty."""
    plain = LunaModel.from_pretrained(saved_folder)
    convolved, report = LunaModel.from_pretrained(saved_folder, conv_kernel_size=3, output_loading_info=True)
    assert len(report["missing_keys"]) == 4
    input_ids = torch.arange(5, 15).unsqueeze(0)
    with torch.no_grad():
        expected, result = plain(input_ids).last_hidden_state, convolved(input_ids).last_hidden_state
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)


def test_fill_mask_pipeline(saved_folder: Path):
    answers = pipeline("fill-mask", model=str(saved_folder))([SENTENCE, "The <mask> goes round."], top_k=3)
    assert [len(answer) for answer in answers] == [3, 3]
    for answer in answers:
        scores = [candidate["score"] for candidate in answer]
        assert scores == sorted(scores, reverse=True)
        assert 0 < sum(scores) <= 1


@pytest.mark.parametrize("model_class", [LunaModel, LunaForMaskedLM])
def test_loading_does_not_depend_on_the_random_state(saved_folder: Path, model_class: type):
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        states.append(model_class.from_pretrained(saved_folder).state_dict())
    torch.testing.assert_close(*states, atol=0, rtol=0)


@pytest.mark.parametrize("fields", [{}, {"position_embedding_type": "sinusoidal", "conv_kernel_size": 3}])
def test_model_built_on_meta_loads_the_same_weights(tiny_model: Callable, tmp_path: Path, fields: dict):
    model = tiny_model(LunaForMaskedLM, **fields)
    model.save_pretrained(tmp_path)
    with torch.device("meta"):
        empty = LunaForMaskedLM(model.config)
    assert all(parameter.is_meta for parameter in empty.parameters())
    assert not list(empty.buffers())
    empty.load_state_dict(model.state_dict(), assign=True)
    loaded = LunaForMaskedLM.from_pretrained(tmp_path, low_cpu_mem_usage=True)
    input_ids = torch.arange(3, 13).unsqueeze(0)
    with torch.no_grad():
        expected = model(input_ids).logits
        assert torch.equal(empty.eval()(input_ids).logits, expected)
        torch.testing.assert_close(loaded(input_ids).logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(saved_folder: Path, dtype: torch.dtype):
    model = LunaForMaskedLM.from_pretrained(saved_folder, dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    input_ids = torch.arange(5, 25).view(2, 10)
    mask = torch.ones_like(input_ids)
    mask[1, 4:] = 0
    labels = torch.where(mask.bool(), input_ids, -100)
    with torch.no_grad():
        outputs = model(input_ids, attention_mask=mask, labels=labels)
        exact = LunaForMaskedLM.from_pretrained(saved_folder)(input_ids, attention_mask=mask, labels=labels)
    assert outputs.logits.dtype == dtype
    assert outputs.logits.isfinite().all()
    assert outputs.loss.item() == pytest.approx(exact.loss.item(), rel=0.02)


@pytest.mark.parametrize("model_class", [LunaModel, LunaForMaskedLM])
def test_same_seed_builds_the_same_model(tiny_config: Callable, model_class: type):
    states = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        states.append(model_class._from_config(tiny_config(conv_kernel_size=3)).state_dict())
    torch.testing.assert_close(states[0], states[1], atol=0, rtol=0)
    name = next(name for name in states[0] if name.endswith("packed_embeddings"))
    assert not torch.equal(states[0][name], states[2][name])


def test_implementation_may_change_after_construction(saved_folder: Path):
    model = LunaModel.from_pretrained(saved_folder, attn_implementation="sdpa")
    input_ids = torch.arange(5, 15).unsqueeze(0)
    with torch.no_grad():
        expected = model(input_ids).last_hidden_state
        model.set_attn_implementation("eager")
        outputs = model(input_ids, output_attentions=True)
    torch.testing.assert_close(outputs.last_hidden_state, expected, atol=1e-5, rtol=1e-5)
    assert len(outputs.attentions) == 2


META_KINDS = [
    (LunaModel, {"conv_kernel_size": 3}),
    (LunaForMaskedLM, {"position_embedding_type": "sinusoidal", "normalize_before": True}),
    (LunaForSequenceClassification, {"classifier_pooling": "packed_attention"}),
]


def forget_initialization(model: torch.nn.Module):
    """Transformers marks what it has initialised, and leaves it alone from then on."""
    for part in (*model.modules(), *model.parameters()):
        part._is_hf_initialized = False


@pytest.mark.parametrize(("model_class", "fields"), META_KINDS)
def test_initialisation_from_the_meta_device(tiny_config: Callable, model_class: type, fields: dict):
    """Every parameter gets its value, and the same one as in a model that was never on the meta device."""
    config = tiny_config(**fields)
    with torch.device("meta"):
        model = model_class(config)
    model.to_empty(device="cpu")
    model.tie_weights()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
    states = []
    for each in (model, model_class(config)):
        forget_initialization(each)
        torch.manual_seed(5)
        each.init_weights()
        states.append(each.state_dict())
    torch.testing.assert_close(*states, atol=0, rtol=0)
    assert all(value.isfinite().all() for value in states[0].values())


@pytest.mark.parametrize(("model_class", "fields"), META_KINDS)
def test_missing_weights_are_reproducible(tiny_config: Callable, model_class: type, fields: dict):
    """Loading builds on the meta device and initialises what the file lacks: here, everything."""
    states = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        states.append(model_class.from_pretrained(None, config=tiny_config(**fields), state_dict={}).state_dict())
    torch.testing.assert_close(states[0], states[1], atol=0, rtol=0)
    matrices = [name for name, value in states[0].items() if value.ndim == 2]
    assert len(matrices) > 10
    assert not any(torch.equal(states[0][name], states[2][name]) for name in matrices)


def is_tied(model: LunaForMaskedLM) -> bool:
    return model.lm_head.decoder.weight is model.luna.embeddings.word_embeddings.weight


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    ("arguments", "size"),
    [
        ({"new_num_tokens": 60}, 60),
        ({"new_num_tokens": 50}, 50),
        ({"pad_to_multiple_of": 16}, 64),
        ({"new_num_tokens": 57, "pad_to_multiple_of": 8}, 64),
    ],
)
def test_resized_embeddings(tiny_model: Callable, tmp_path: Path, arguments: dict, size: int, tied: bool):
    """Table and decoder keep their first rows, remain tied, and are in the file once where they are."""
    model = tiny_model(LunaForMaskedLM, tie_word_embeddings=tied)
    input_ids = torch.arange(3, 15).view(2, 6)
    kept = min(size, 53)
    with torch.no_grad():
        expected = model(input_ids).logits[..., :kept]
        model.resize_token_embeddings(**arguments)
        logits = model(input_ids).logits
    torch.testing.assert_close(logits[..., :kept], expected, atol=1e-5, rtol=1e-5)
    assert logits.shape[-1] == size == model.config.vocab_size
    assert is_tied(model) == tied
    assert model.luna.embeddings.word_embeddings.padding_idx == model.config.pad_token_id

    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert ("lm_head.decoder.weight" in stored) != tied
    assert stored["luna.embeddings.word_embeddings.weight"].shape[0] == stored["lm_head.decoder.bias"].shape[0] == size
    loaded, report = LunaForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert is_tied(loaded) == tied
    with torch.no_grad():
        torch.testing.assert_close(loaded(input_ids).logits, logits, atol=1e-5, rtol=1e-5)
    loaded.train()(input_ids, labels=input_ids).loss.backward()
    assert loaded.lm_head.decoder.weight.grad.shape == (size, 24)


def test_ids_of_the_resized_table_are_checked(tiny_model: Callable):
    model = tiny_model(LunaForMaskedLM)
    model.resize_token_embeddings(60)
    with torch.no_grad():
        assert model(torch.tensor([[59]])).logits.isfinite().all()
        with pytest.raises(ValueError, match="between 0 and 59"):
            model(torch.tensor([[60]]))
