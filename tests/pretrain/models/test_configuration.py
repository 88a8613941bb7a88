"""The configuration of a run's model: its fields, checked, for the tokenizer and the rows."""

import json
from pathlib import Path
from typing import Any

import pytest
from run_files import error_of, load, with_keys

from common.config.yaml_config import ConfigurationError
from modeling_luna import LunaConfig
from pretrain.models.configuration import model_configuration


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "run.yaml"


def test_json_that_is_nested_too_deeply(file: Path, tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text(100_000 * "[")
    assert error_of(file, arguments=f"--model_config {tmp_path}/model.json").endswith(
        "model.json is not JSON: it is nested too deeply."
    )


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        ("model: {hidden_sise: 8}", "", "model: unknown key 'hidden_sise'. Did you mean 'hidden_size'?"),
        ("", "--model.num_heads 4", "model: unknown key 'num_heads'. Did you mean 'num_attention_heads'?"),
        ("model: {7: 8}", "", "model: unknown key 7. Known are: vocab_size, hidden_size, "),
        ("model: {return_dict: true}", "", "model: unknown key 'return_dict'. Known are: vocab_size, "),
        ("model: {hidden_size: big}", "", "model: Field 'hidden_size' expected int, got str (value: 'big')"),
        ("model: {hidden_size: 50}", "", "model: hidden_size (50) must be a multiple of num_attention_heads (12): "),
        ("model: {position_embedding_type: none}", "", "model: Field 'position_embedding_type' expected one of "),
        (
            "model: {vocab_size: 16000}",
            "",
            (
                "model.vocab_size is 16000, but the tokenizer has 16384 tokens: raise it to at least 16384, or leave "
                "it out to take the tokenizer's."
            ),
        ),
        (
            "max_length: 600",
            "",
            (
                "max_length is 600, but model.max_position_embeddings is 512: rows must not be longer than the "
                "model's positions."
            ),
        ),
    ],
)
def test_what_does_not_fit_the_model(file: Path, content: str, arguments: str, message: str) -> None:
    assert error_of(file, with_keys(content), arguments).startswith(message)


def test_the_vocabulary_of_the_model_is_that_of_the_tokenizer_unless_it_is_given(file: Path) -> None:
    assert model_configuration(load(file), vocab_size=1000) == LunaConfig(vocab_size=1000)
    larger = load(file, arguments="--vocab_size 300 --model.vocab_size 1024")
    assert model_configuration(larger, vocab_size=300).vocab_size == 1024
    with pytest.raises(ConfigurationError, match="^model.vocab_size is 1024, but the tokenizer has 1025 tokens"):
        model_configuration(larger, vocab_size=1025)


def test_a_given_tokenizer_brings_its_own_vocabulary(file: Path) -> None:
    config = load(file, arguments="--tokenizer folder --vocab_size 5 --model.hidden_size 24")
    assert model_configuration(config, vocab_size=70).vocab_size == 70


def test_rows_may_be_longer_than_the_positions_where_these_are_computed(file: Path) -> None:
    config = load(file, arguments="--max_length 600 --model.position_embedding_type sinusoidal")
    assert model_configuration(config, vocab_size=300).position_embedding_type == "sinusoidal"


def test_the_fields_of_the_model_may_come_from_a_file_as_transformers_saves_it(file: Path, tmp_path: Path) -> None:
    saved = LunaConfig(
        hidden_size=24, projection_length=7, vocab_size=300, architectures=["LunaModel"], dtype="bfloat16"
    )
    saved.save_pretrained(tmp_path)
    arguments = f"--vocab_size 300 --model_config {tmp_path}/config.json --model.projection_length 5"
    built = model_configuration(load(file, arguments=arguments), vocab_size=300)
    assert (built.hidden_size, built.projection_length, built.vocab_size) == (24, 5, 300)
    assert (built.architectures, built.dtype) == (None, None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "MODEL cannot be read: No such file or directory."),
        ("{", "MODEL is not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)."),
        ("[]", "MODEL must hold one JSON object."),
        ('{"model_type": "bert"}', "MODEL is of a bert model, but model_type is luna."),
        ('{"hidden": 8}', "model: unknown key 'hidden'. Did you mean 'hidden_act'?"),
    ],
)
def test_broken_files_of_a_model(file: Path, tmp_path: Path, content: str | None, message: str) -> None:
    model = tmp_path / "model.json"
    if content is not None:
        model.write_text(content)
    assert error_of(file, arguments=f"--model_config {model}").replace(str(model), "MODEL") == message


@pytest.mark.parametrize(
    ("name", "differences"),
    [
        ("luna-base", {}),
        ("luna-base-untied", {"tie_key_value": False}),
        (
            "luna-large",
            {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
        ),
    ],
)
def test_the_official_sizes(file: Path, name: str, differences: dict[str, Any]) -> None:
    model_file = Path(__file__).parents[3] / f"configs/model/{name}.json"
    config = load(file, arguments=f"--model_config {model_file}")
    assert model_configuration(config, vocab_size=50265) == LunaConfig(**differences)
    assert json.loads(model_file.read_text())["model_type"] == "luna"
