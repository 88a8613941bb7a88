"""The tokenizer of a run: its form where it is trained, and what is asked of a given one."""

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizerFast, RobertaTokenizer

from modeling_luna import LunaConfig
from pretrain.data import tokenizer as tokenizer_module
from pretrain.data.tokenizer import (
    TokenizerError,
    load_tokenizer,
    row_ends,
    token_type_of,
    train_tokenizer,
    without_code,
    word_starts,
)


TEXTS = [
    "The moon goes round the earth, and the earth goes round the sun.",
    "A short row of tokens uses fewer slots than a long row of tokens does.",
    "Luna packs the tokens of a text into slots, and unpacks the slots into tokens.",
]
WORD_PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "moon", "##light", "##s", "earth", "the"]


@pytest.fixture(scope="module")
def trained() -> PreTrainedTokenizerFast:
    return train_tokenizer(TEXTS, vocab_size=300, max_length=64)


@pytest.fixture
def word_piece(tmp_path: Path) -> Path:
    """A folder with a tokenizer in BERT's form."""
    vocab = {piece: number for number, piece in enumerate(WORD_PIECES)}
    BertTokenizer(vocab=vocab).save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


def save_word_level(folder: Path, **special_tokens: str) -> Path:
    """A tokenizer of whole words with these special tokens and no others."""
    vocab = {token: number for number, token in enumerate([*special_tokens.values(), "moon", "earth"])}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="moon"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, **special_tokens).save_pretrained(folder)
    return folder


def test_special_tokens_have_the_ids_of_roberta_and_the_mask_is_last(trained) -> None:
    assert trained.convert_tokens_to_ids(["<s>", "<pad>", "</s>", "<unk>", "<mask>"]) == [0, 1, 2, 3, 299]
    assert len(trained) == 300
    assert sorted(trained.all_special_ids) == [0, 1, 2, 3, 299]
    assert row_ends(trained) == (0, 2)
    assert trained.pad_token_id == 1
    assert trained.model_max_length == 64


def test_rows_are_wrapped_and_text_comes_back_as_it_was(trained) -> None:
    text = "The moon — naïve, 月 — goes\n round  the tokens."
    ids = trained(text)["input_ids"]
    assert (ids[0], ids[-1]) == (0, 2)
    assert 3 not in ids
    assert trained.decode(ids, skip_special_tokens=True) == text


def test_mask_takes_the_space_before_it(trained) -> None:
    masked = trained("round the <mask> of tokens")["input_ids"]
    word = trained("round the tokens of tokens")["input_ids"]
    assert masked.count(299) == 1
    assert len(masked) == len(word)
    assert [mine for mine, other in zip(masked, word, strict=True) if mine != other] == [299]


@pytest.mark.parametrize("with_model", [False, True])
def test_auto_tokenizer_loads_what_was_saved(trained, tmp_path: Path, with_model: bool) -> None:
    trained.save_pretrained(tmp_path)
    if with_model:
        LunaConfig(vocab_size=300).save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = "round the <mask> of the moon"
    assert type(loaded) is type(trained)
    assert loaded(text)["input_ids"] == trained(text)["input_ids"]
    assert loaded.mask_token_id == 299
    assert loaded.model_max_length == 64
    assert load_tokenizer(str(tmp_path)).get_vocab() == trained.get_vocab()


def test_tokenizer_for_a_folder_without_code(trained, tmp_path: Path) -> None:
    trained.save_pretrained(tmp_path / "luna")
    loaded = load_tokenizer(str(tmp_path / "luna"))
    loaded.model_max_length = 32
    loaded.add_tokens(["<moon>"])
    without_code(loaded).save_pretrained(tmp_path / "roberta")
    assert {path.name for path in (tmp_path / "roberta").iterdir()} == {"tokenizer.json", "tokenizer_config.json"}
    assert "Luna" not in (tmp_path / "roberta/tokenizer_config.json").read_text()
    roberta = AutoTokenizer.from_pretrained(tmp_path / "roberta")
    assert type(roberta) is RobertaTokenizer
    assert roberta.backend_tokenizer.to_str() == loaded.backend_tokenizer.to_str()
    assert roberta.model_max_length == 32
    assert roberta.special_tokens_map == loaded.special_tokens_map


def test_words_have_the_tokens_of_the_sentence(trained, tmp_path: Path) -> None:
    trained.save_pretrained(tmp_path)
    for tokenizer in (trained, load_tokenizer(str(tmp_path))):
        for text in TEXTS:
            assert tokenizer(text.split(" "), is_split_into_words=True)["input_ids"] == tokenizer(text)["input_ids"]


LETTERS = ["a", "B", "é", "漢", "字", "ж", "ा", "٣", "7", "²", "_", "'", "!", "。", "-", " ", "  ", "\n", "\t", " \n"]


def test_long_text_is_read_in_pieces_that_have_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    text = "".join(generator.choice([*LETTERS, "don't", "the ", "word's"], size=20_000))
    whole = train_tokenizer([text], 600, 64)
    read: list[str] = []
    pieces = tokenizer_module._pieces
    monkeypatch.setattr(tokenizer_module, "PIECE_LETTERS", 20)
    monkeypatch.setattr(
        tokenizer_module, "_pieces", lambda text: (read.append(piece) or piece for piece in pieces(text))
    )
    in_pieces = train_tokenizer([text], 600, 64)
    assert "".join(read) == text and len(read) > 500
    assert in_pieces.backend_tokenizer.to_str() == whole.backend_tokenizer.to_str()


@pytest.mark.parametrize("letter", ["a", "7", "漢", "!", "_", "\n"])
def test_words_of_many_letters_take_no_time(letter: str) -> None:
    """Time would grow with the square of their length: minutes for each of these."""
    vocabulary = train_tokenizer([letter * 2**20], 300, 64).get_vocab()
    assert len(vocabulary) > 262


def test_little_text_gives_fewer_tokens() -> None:
    tokenizer = train_tokenizer(["ab ab"], vocab_size=1000, max_length=64)
    assert len(tokenizer) == 263  # 4 special tokens, 256 bytes, "ab", " ab", <mask>
    assert tokenizer.mask_token_id == 262


def test_the_smallest_vocabulary_holds_the_bytes() -> None:
    tokenizer = train_tokenizer(TEXTS, vocab_size=261, max_length=64)
    assert len(tokenizer) == 261
    assert tokenizer.decode(tokenizer("月")["input_ids"], skip_special_tokens=True) == "月"
    with pytest.raises(TokenizerError, match=r"^vocab_size is 260: a byte-level tokenizer needs at least 261\.$"):
        train_tokenizer(TEXTS, vocab_size=260, max_length=64)


def test_words_of_byte_level_tokens_start_at_a_space(trained) -> None:
    starts = word_starts(trained)
    ids = trained("round the tokens", add_special_tokens=False)["input_ids"]
    tokens = trained.convert_ids_to_tokens(ids)
    assert [token for token, number in zip(tokens, ids, strict=True) if starts[number]] == [
        token for token in tokens if token.startswith("Ġ")
    ]
    assert sum(starts[number] for number in ids) == 2
    assert len(starts) == 300


def test_a_word_piece_tokenizer_serves(word_piece: Path) -> None:
    tokenizer = load_tokenizer(str(word_piece))
    assert row_ends(tokenizer) == (2, 3)
    assert (tokenizer.pad_token_id, tokenizer.mask_token_id) == (0, 4)
    assert tokenizer("The moonlights")["input_ids"] == [2, 9, 5, 6, 7, 3]
    assert word_starts(tokenizer) == [True, True, True, True, True, True, False, False, True, True]


def test_sentence_piece_words_start_at_their_mark(tmp_path: Path) -> None:
    vocab = [("<s>", 0.0), ("</s>", 0.0), ("<mask>", 0.0), ("▁the", -1.0), ("▁moon", -2.0), ("light", -2.0)]
    backend = Tokenizer(models.Unigram(vocab, unk_id=0))
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    backend.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>", "mask_token": "<mask>"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **names).save_pretrained(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path))
    assert word_starts(tokenizer) == [False, False, False, True, True, False]
    assert row_ends(tokenizer) == (0, 1)  # of bos and eos, where there is no cls and sep


@pytest.mark.parametrize(
    ("special_tokens", "missing"),
    [
        ({"pad_token": "<pad>", "cls_token": "<s>", "sep_token": "</s>"}, "no mask_token;"),
        ({"mask_token": "<mask>", "cls_token": "<s>", "sep_token": "</s>"}, "no pad_token;"),
        (
            {"mask_token": "<mask>", "pad_token": "<pad>", "cls_token": "<s>"},
            "no cls_token and sep_token (or bos_token and eos_token);",
        ),
        ({"bos_token": "<s>", "eos_token": "</s>"}, "no mask_token, no pad_token;"),
    ],
)
def test_a_tokenizer_without_what_masking_needs(tmp_path: Path, special_tokens: dict, missing: str) -> None:
    folder = save_word_level(tmp_path, **special_tokens)
    with pytest.raises(TokenizerError) as error:
        load_tokenizer(str(folder))
    assert str(error.value) == f"tokenizer: {folder} has {missing} masked LM needs them."


def test_a_folder_that_holds_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="cannot be loaded as a folder or from the Hub"):
        load_tokenizer(str(tmp_path))
    with pytest.raises(TokenizerError, match=f"^tokenizer: {tmp_path}/missing cannot be loaded"):
        load_tokenizer(f"{tmp_path}/missing")


def test_a_folder_without_the_vocabulary(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "RobertaTokenizer"}))
    with pytest.raises(TokenizerError, match="has special tokens only: its vocabulary is not there"):
        load_tokenizer(str(tmp_path))


def test_ids_are_stored_in_the_smallest_type_that_holds_them() -> None:
    assert [token_type_of(size) for size in (261, 65_536, 65_537)] == ["uint16", "uint16", "uint32"]
