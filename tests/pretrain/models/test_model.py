"""The model of a run: fresh weights, and those of a saved model with other positions, tokens and dropout."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hub_stand_in import hub_stand_in
from safetensors.torch import load_file, save_file
from transformers import BertTokenizer, ModernBertConfig, PreTrainedTokenizerBase

from common.config.yaml_config import ConfigurationError
from modeling_luna import LunaConfig, LunaForMaskedLM, LunaForSequenceClassification, LunaModel
from pretrain.configuration import PretrainConfig
from pretrain.data.tokenizer import train_tokenizer
from pretrain.models.model import build_model, config_for_others
from pretrain.models.saved_model import read_saved_config


WORDS = "luna.embeddings.word_embeddings.weight"
PLACES = "luna.embeddings.position_embeddings.weight"


@pytest.fixture(scope="module")
def tokenizer(corpus: Path) -> PreTrainedTokenizerBase:
    return train_tokenizer([corpus.read_text(encoding="utf-8")], vocab_size=300, max_length=32)


@pytest.fixture(scope="module")
def other_tokenizer() -> PreTrainedTokenizerBase:
    """Some of the same tokens, in another order, and words that the first one has not."""
    text = "moonlit riverside lanterns slowly glow, " * 50
    return train_tokenizer([text], vocab_size=290, max_length=32)


@pytest.fixture
def saved(build_config: Callable, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Path:
    """A model whose weights are all above 0, as trained ones would be: norms and biases are not those of a new one."""
    return save(build_config, tokenizer, tmp_path)


def save(build_config: Callable, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, dtype=None, **model) -> Path:
    model = build_model(build_config(tmp_path, model=model, vocab_size=300), tokenizer)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.rand(parameter.shape, generator=torch.Generator().manual_seed(1)), alpha=0.1)
    model.to(dtype).save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def start(build_config: Callable, saved: Path, model: dict | None = None, **changes) -> PretrainConfig:
    config = build_config(saved.parent / "run", init_from=str(saved), **changes)
    config.model = model or {}
    return config


def logits(model: LunaForMaskedLM, input_ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids).logits


def some_ids(length: int = 20) -> torch.Tensor:
    return torch.randint(4, 280, (2, length), generator=torch.Generator().manual_seed(0))


def test_fresh_weights_depend_on_the_seed_alone(build_config: Callable, tokenizer, tmp_path: Path):
    first = build_model(build_config(tmp_path, seed=3), tokenizer).state_dict()
    torch.manual_seed(99)
    state = torch.get_rng_state()
    second = build_model(build_config(tmp_path, seed=3), tokenizer).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = build_model(build_config(tmp_path, seed=4), tokenizer).state_dict()
    assert not torch.equal(first[WORDS], other[WORDS])


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_model_goes_on_as_it_was(build_config: Callable, tokenizer, tmp_path: Path, tied: bool, dtype):
    saved = save(build_config, tokenizer, tmp_path, dtype, tie_word_embeddings=tied, vocab_size=310)
    model = build_model(start(build_config, saved), tokenizer)
    expected = LunaForMaskedLM.from_pretrained(saved, dtype=torch.float32)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.config.vocab_size == 310  # ids that no token uses are kept
    assert (model.lm_head.decoder.weight is model.luna.embeddings.word_embeddings.weight) == tied
    for name, value in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    assert torch.equal(logits(model, some_ids()), logits(expected, some_ids()))


def test_longer_rows(build_config: Callable, tokenizer, saved: Path):
    model = build_model(start(build_config, saved, max_length=80), tokenizer)
    expected = LunaForMaskedLM.from_pretrained(saved)
    assert model.config.max_position_embeddings == 80
    assert torch.equal(logits(model, some_ids()), logits(expected, some_ids()))
    table, before = model.state_dict()[PLACES], expected.state_dict()[PLACES]
    assert torch.equal(table[2 + 32 : 2 + 64], before[2:])
    assert logits(model, some_ids(80)).isfinite().all()
    # Shorter rows leave the positions alone; the configuration may add more than the rows need.
    assert build_model(start(build_config, saved, max_length=16), tokenizer).config.max_position_embeddings == 32
    more = start(build_config, saved, {"max_position_embeddings": 100}, max_length=80)
    assert build_model(more, tokenizer).state_dict()[PLACES].shape[0] == 102


@pytest.mark.parametrize("tied", [True, False])
def test_another_vocabulary(build_config: Callable, tokenizer, other_tokenizer, tmp_path: Path, tied: bool):
    saved = save(build_config, tokenizer, tmp_path, tie_word_embeddings=tied)
    model = build_model(start(build_config, saved), other_tokenizer)
    before, after = LunaForMaskedLM.from_pretrained(saved).state_dict(), model.state_dict()
    assert model.config.vocab_size == len(other_tokenizer) == 290
    old, new = tokenizer.get_vocab(), other_tokenizer.get_vocab()
    common = [token for token in new if token in old]
    added = [token for token in new if token not in old]
    assert len(common) > 250 and len(added) > 20 and old["<mask>"] != new["<mask>"]
    for name in (WORDS, "lm_head.decoder.weight", "lm_head.decoder.bias"):
        for token in common:
            assert torch.equal(after[name][new[token]], before[name][old[token]]), (name, token)
        for token in added:
            torch.testing.assert_close(after[name][new[token]], before[name][:300].mean(dim=0))
    assert all(
        torch.equal(after[name], before[name])
        for name in before
        if "embeddings.w" not in name and "decoder" not in name
    )

    ids = torch.tensor([[new[token] for token in common[20:40]]])
    old_ids = torch.tensor([[old[token] for token in common[20:40]]])
    columns = [new[token] for token in common], [old[token] for token in common]
    expected = logits(LunaForMaskedLM.from_pretrained(saved), old_ids)[..., columns[1]]
    torch.testing.assert_close(logits(model, ids)[..., columns[0]], expected)


def test_tokens_of_the_same_part_keep_their_rows(build_config: Callable, tokenizer, saved: Path, tmp_path: Path):
    """BERT's special tokens have other names, and its padding, whose id is 0, other positions before the first."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh"]
    bert = BertTokenizer(vocab={word: number for number, word in enumerate(words)})
    model = build_model(start(build_config, saved, max_length=40), bert)
    before, after = LunaForMaskedLM.from_pretrained(saved).state_dict(), model.state_dict()
    for token_id, same in enumerate(["<pad>", "<unk>", "<s>", "</s>", "<mask>", "a", "b"]):
        assert torch.equal(after[WORDS][token_id], before[WORDS][tokenizer.convert_tokens_to_ids(same)])
    assert model.config.pad_token_id == 0
    assert after[PLACES].shape[0] == 41
    assert torch.equal(after[PLACES][1:33], before[PLACES][2:])
    old_ids = torch.tensor([tokenizer.convert_tokens_to_ids(["<s>", "a", "<mask>", "c", "</s>"])])
    expected = logits(LunaForMaskedLM.from_pretrained(saved), old_ids)
    kept = [tokenizer.convert_tokens_to_ids(token) for token in "abcdefgh"]
    torch.testing.assert_close(logits(model, torch.tensor([[2, 5, 4, 7, 3]]))[..., 5:], expected[..., kept])


def test_changes_that_leave_the_weights_alone(build_config: Callable, tokenizer, saved: Path):
    changes = {"hidden_dropout_prob": 0.2, "sparse_prediction": True, "conv_kernel_size": 5, "hidden_size": 32}
    model = build_model(start(build_config, saved, changes | {"vocab_size": 320}), tokenizer)
    assert model.luna.embeddings.dropout.p == 0.2
    assert model.config.sparse_prediction
    assert model.luna.layers[0].convolution.kernel_size == (5,)
    # The new convolutions change nothing yet, and ids that no token uses are there.
    expected = logits(LunaForMaskedLM.from_pretrained(saved), some_ids())
    torch.testing.assert_close(logits(model, some_ids())[..., :300], expected)
    assert model.config.vocab_size == 320


def test_logits_of_predicted_tokens_alone_unless_the_run_says_no(build_config: Callable, tokenizer, saved: Path):
    assert not LunaForMaskedLM.from_pretrained(saved).config.sparse_prediction
    assert build_model(start(build_config, saved), tokenizer).config.sparse_prediction
    assert not build_model(
        start(build_config, saved, {"sparse_prediction": False}), tokenizer
    ).config.sparse_prediction


@pytest.mark.parametrize("config_class", [LunaConfig, ModernBertConfig])
def test_what_is_saved_for_others(config_class: type):
    given = config_class(sparse_prediction=True, hidden_dropout_prob=0.2)
    saved = config_for_others(given)
    assert given.sparse_prediction is True
    assert saved.to_dict() == given.to_dict() | {"sparse_prediction": False}


def test_the_result_can_be_saved_and_started_from_again(
    build_config: Callable, tokenizer, saved: Path, tmp_path: Path
):
    first = build_model(start(build_config, saved, {"conv_kernel_size": 3}, max_length=48), tokenizer)
    first.save_pretrained(tmp_path / "second/model")
    tokenizer.save_pretrained(tmp_path / "second/model")
    loaded = LunaForMaskedLM.from_pretrained(tmp_path / "second/model")
    assert torch.equal(logits(loaded, some_ids(48)), logits(first, some_ids(48)))
    again = build_model(start(build_config, tmp_path / "second/model", max_length=48), tokenizer)
    assert torch.equal(logits(again, some_ids(48)), logits(first, some_ids(48)))
    config = start(build_config, tmp_path / "second/model", {"conv_kernel_size": 5})
    with pytest.raises(ConfigurationError, match="has convolutions of the width 3 already"):
        build_model(config, tokenizer)


@pytest.mark.parametrize(
    "model, changes, message",
    [
        ({"hidden_size": 64}, {}, "model.hidden_size is 64, but .* was made with 32"),
        ({"projection_length": 16}, {}, "model.projection_length is 16, but .* was made with 8"),
        ({"hiden_size": 32}, {}, "unknown key 'hiden_size'. Did you mean 'hidden_size'"),
        ({"hidden_dropout_prob": 1.5}, {}, "hidden_dropout_prob must be at least 0 and below 1"),
        ({"vocab_size": 200}, {}, "model.vocab_size is 200, but the tokenizer has 300 tokens"),
        ({"max_position_embeddings": 20}, {}, "max_length is 32, but model.max_position_embeddings is 20"),
        ({}, {"init_from": "no/such/folder"}, "no/such/folder is no folder, and cannot be loaded from the Hub"),
    ],
)
def test_what_cannot_be_changed(
    build_config: Callable, tokenizer, saved: Path, model: dict, changes: dict, message: str
):
    config = start(build_config, saved, model)
    config.init_from = changes.get("init_from", config.init_from)
    with pytest.raises(ConfigurationError, match=message):
        build_model(config, tokenizer)


@pytest.mark.parametrize("vocabulary", ["the same", "another"])
@pytest.mark.slow
def test_a_run_goes_on_from_a_saved_model_with_other_texts(
    build_config: Callable, train: Callable, sentences: Callable, tmp_path: Path, capsys, vocabulary: str
):
    """It begins with what the saved model knows, and finds its own checkpoints before that."""
    first = train(build_config(tmp_path / "first", learning_rate=2e-2, max_steps=60))
    text = sentences(tmp_path / "text.txt", documents=90, seed=1)
    changes = {"data": str(text), "max_length": 48, "max_steps": 6}
    if vocabulary == "another":
        own = train_tokenizer([text.read_text(encoding="utf-8")], vocab_size=410, max_length=48)
        own.save_pretrained(tmp_path / "tokenizer")
        changes["tokenizer"] = str(tmp_path / "tokenizer")
    fresh = train(build_config(tmp_path / "fresh", {"max_position_embeddings": 48}, **changes))
    config = build_config(tmp_path / "second", init_from=str(tmp_path / "first/model"), **changes)
    config.model = {}
    started = train(config)
    assert first[-1]["validation_loss"] < fresh[0]["loss"] - 1.0
    assert started[0]["loss"] < fresh[0]["loss"] - 0.8
    model = LunaForMaskedLM.from_pretrained(tmp_path / "second/model")
    assert model.config.max_position_embeddings == 48
    assert model.config.vocab_size == (400 if vocabulary == "the same" else 410)
    capsys.readouterr()
    assert train(config) == started
    assert "Going on from step 6 of 6" in capsys.readouterr().out


def test_what_is_wrong_is_seen_before_the_weights_are_read(build_config: Callable, saved: Path):
    os.unlink(saved / "model.safetensors")
    assert read_saved_config(start(build_config, saved)).hidden_size == 32
    with pytest.raises(ConfigurationError, match="hidden_size"):
        read_saved_config(start(build_config, saved, {"hidden_size": 64}))


def edit_config(folder: Path, **fields):
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | fields), encoding="utf-8")


def edit_weights(folder: Path, edit: Callable[[dict], object]):
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def cut(folder: Path):
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


def remove(folder: Path, *names: str):
    for name in names:
        (folder / name).unlink()


LAYER = "luna.layers.1.mlp.fc1.weight"
DAMAGES = {
    "no model": (lambda folder: remove(folder, "config.json"), "holds no config.json: it is no saved model"),
    "not JSON": (lambda folder: (folder / "config.json").write_text("{"), "config.json is not JSON"),
    "another kind of model": (lambda folder: edit_config(folder, model_type="bert"), "is a bert model, not Luna"),
    "impossible sizes": (lambda folder: edit_config(folder, num_attention_heads=5), "must be a multiple of num_att"),
    "no weights": (lambda folder: remove(folder, "model.safetensors"), "weights of .* cannot be loaded"),
    "cut weights": (cut, "weights of .* cannot be loaded"),
    "other shapes": (lambda folder: edit_config(folder, intermediate_size=48), r"fc1.bias has the shape \(64,\)"),
    "a missing weight": (lambda folder: edit_weights(folder, lambda t: t.pop(LAYER)), f"1 are missing .{LAYER}"),
    "a missing bias of the head": (
        lambda folder: edit_weights(folder, lambda t: t.pop("lm_head.dense.bias")), "has no masked-LM head"
    ),
    "more layers than it should": (
        lambda folder: edit_config(folder, num_hidden_layers=1), "belong to nothing .luna.layers.1"
    ),
    "not finite": (
        lambda folder: edit_weights(folder, lambda t: t[LAYER].view(-1)[7:8].fill_(float("nan"))),
        f"holds numbers that are not finite, in {LAYER}",
    ),
    "no tokenizer": (lambda folder: remove(folder, "tokenizer.json", "tokenizer_config.json"), "holds no tokenizer"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_refused(build_config: Callable, tokenizer, saved: Path, damage: str):
    build_model(start(build_config, saved), tokenizer)
    harm, message = DAMAGES[damage]
    harm(saved)
    with pytest.raises(ConfigurationError, match=message):
        build_model(start(build_config, saved), tokenizer)


@pytest.mark.parametrize("model_class", [LunaModel, LunaForSequenceClassification])
def test_a_model_without_the_head_is_refused(build_config: Callable, tokenizer, saved: Path, model_class: type):
    config = LunaForMaskedLM.from_pretrained(saved).config
    model_class(config).save_pretrained(saved)
    with pytest.raises(ConfigurationError, match=r"has no masked-LM head \(lm_head.decoder.bias"):
        build_model(start(build_config, saved), tokenizer)


def test_a_tokenizer_of_another_model_is_refused(build_config: Callable, tokenizer, saved: Path, corpus: Path):
    train_tokenizer([corpus.read_text(encoding="utf-8")], vocab_size=340, max_length=32).save_pretrained(saved)
    with pytest.raises(ConfigurationError, match="ids up to 339, but the model is for 300 tokens"):
        build_model(start(build_config, saved), tokenizer)


@pytest.mark.slow
def test_two_processes_start_from_a_model_of_the_hub(
    build_config: Callable, tokenizer, saved: Path, write_config: Callable, environment: dict[str, str], tmp_path: Path
):
    (tmp_path / "hub/models/someone").mkdir(parents=True)
    shutil.copytree(saved, tmp_path / "hub/models/someone/small")
    config = build_config(tmp_path / "run", {"max_position_embeddings": 40}, max_length=40, max_steps=6)
    launcher = ("-m", "accelerate.commands.launch", "--config_file", "configs/accelerate/cpu_2_processes.yaml")
    with hub_stand_in(tmp_path / "hub") as hub:
        config.init_from = f"someone/small@{hub.repository('someone/small').head().id}"
        command = (*launcher, "pretrain/run_mlm.py", write_config(config, tmp_path / "run.yaml"))
        variables = environment | hub.environment(tmp_path / "home") | {"HF_HUB_OFFLINE": "0"}
        finished = subprocess.run(
            [sys.executable, *map(str, command)], cwd=environment["PYTHONPATH"], env=variables, capture_output=True,
            text=True, timeout=240,
        )  # fmt: skip
        assert not hub.unknown_requests
    assert finished.returncode == 0, finished.stderr
    assert f"Luna from {config.init_from}" in finished.stdout and "2 on cpu" in finished.stdout
    model = LunaForMaskedLM.from_pretrained(tmp_path / "run/model")
    assert (model.config.vocab_size, model.config.max_position_embeddings) == (300, 40)
