# Copyright 2026 The Luna for Transformers authors.
# SPDX-License-Identifier: Apache-2.0
"""LunaTokenizer: words as in the sentence, texts as RoBERTa's, and what is made from a tokenizer."""

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import AddedToken, ByteLevelBPETokenizer
from transformers import AutoTokenizer, DataCollatorForTokenClassification, RobertaTokenizer

from modeling_luna import LunaForMaskedLM, LunaTokenizer


CORPUS = [
    "Luna packs the tokens of a sentence into a few slots, and unpacks the slots into the tokens.",
    "The moon goes round the earth, and the earth goes round the sun: isn't that 1 of 365 days?",
    "A short row uses fewer slots than a long row; they're padded, I'll say.",
]
SENTENCES = [
    "The moon goes round the earth , is n't it ?",
    "Luna packs <mask> sentences (<mask>) into 365 slots",
    "Ünïcödé 月 and 🌙 snake_case __init__ 3.14 's",
    "they ",
    "a  b",
]
OTHERS = ["def add(first, second):", "    return first + second  # the completely other thing", "\tOdd <s> words"] * 20
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
MASK = AddedToken("<mask>", lstrip=True, special=True, normalized=False)
UNKNOWN = 3


@pytest.fixture(scope="module")
def bpe() -> dict:
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(CORPUS, vocab_size=400, min_frequency=1, special_tokens=SPECIAL, show_progress=False)
    model = json.loads(trained._tokenizer.to_str())["model"]
    return {"tokens": list(model["vocab"]), "merges": [tuple(merge) for merge in model["merges"]]}


def build(bpe: dict, kind: str, **fields) -> LunaTokenizer:
    """With all tokens of the BPE, or without every fifth one that is longer than a byte."""
    places = range(len(bpe["tokens"]))
    missing = [i for i in places if kind == "lacking" and i % 5 == 0 and i > 260]
    tokens = [bpe["tokens"][i] for i in places if i not in missing] + ["<mask>"]
    size = len(tokens) if missing else None
    tokens += [bpe["tokens"][i] for i in missing]
    vocab = {token: index for index, token in enumerate(tokens)}
    return LunaTokenizer(
        vocab=vocab, merges=bpe["merges"], mask_token=MASK, dictionary_size=size, model_max_length=64, **fields
    )


WAYS = {
    "built": lambda tokenizer, folder: tokenizer,
    "loaded": lambda tokenizer, folder: AutoTokenizer.from_pretrained(folder),
    "copied": lambda tokenizer, folder: copy.deepcopy(tokenizer),
    "pickled": lambda tokenizer, folder: pickle.loads(pickle.dumps(tokenizer)),
    "trained": lambda tokenizer, folder: tokenizer.train_new_from_iterator(OTHERS, 300),
}


@pytest.fixture(params=["whole", "lacking"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=WAYS)
def tokenizer(bpe: dict, kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> LunaTokenizer:
    built = build(bpe, kind)
    built.save_pretrained(tmp_path)
    return WAYS[request.param](built, tmp_path)


# Words.


def test_words_have_the_tokens_of_the_sentence(tokenizer: LunaTokenizer):
    for sentence in SENTENCES:
        words = sentence.split(" ")
        assert tokenizer(words, is_split_into_words=True)["input_ids"] == tokenizer(sentence)["input_ids"], sentence
        assert tokenizer.tokenize(words, is_split_into_words=True) == tokenizer.tokenize(sentence)
    own_spaces = ["The", " moon", " goes"]
    assert tokenizer(own_spaces, is_split_into_words=True)["input_ids"] == tokenizer("The moon goes")["input_ids"]
    for special, ids in ((True, [0, 2]), (False, [])):
        assert tokenizer([], is_split_into_words=True, add_special_tokens=special)["input_ids"] == ids


def test_batches_and_pairs_of_words(tokenizer: LunaTokenizer):
    words = [sentence.split(" ") for sentence in SENTENCES[:3]]
    options = {"is_split_into_words": True, "padding": True}
    assert tokenizer(words, **options).data == tokenizer(SENTENCES[:3], padding=True).data
    pairs = tokenizer(SENTENCES[:3], SENTENCES[2::-1], padding=True).data
    assert tokenizer(words, words[::-1], **options).data == pairs
    assert tokenizer(list(zip(words, words[::-1], strict=True)), **options).data == pairs
    one = tokenizer(words[0], words[1], is_split_into_words=True)
    assert one["input_ids"] == tokenizer(SENTENCES[0], SENTENCES[1])["input_ids"]
    for batch, shape in ((words, (3,)), (words[0], (1,))):
        tensors = tokenizer(batch, **options, return_tensors="pt", return_offsets_mapping=True)
        assert tensors["input_ids"].shape[:1] == shape
        assert tensors["offset_mapping"].shape == (*tensors["input_ids"].shape, 2)


def assert_offsets_name_the_words(encoding, words: list[str], offsets: list[tuple[int, int]]):
    """The tokens of each word have its letters, in order and without a gap."""
    found = [""] * len(words)
    for token, (word, (start, end)) in enumerate(zip(encoding.word_ids, offsets, strict=True)):
        if word is None:
            assert (start, end) == (0, 0)
        else:
            assert start == len(found[word])
            found[word] += words[word][start:end]
            assert encoding.token_to_chars(token) == (start, end)
    assert found == words


def test_words_and_offsets_of_tokens(tokenizer: LunaTokenizer):
    for sentence in (SENTENCES[0], SENTENCES[1]):
        words = sentence.split(" ")
        output = tokenizer(words, is_split_into_words=True, return_offsets_mapping=True)
        assert_offsets_name_the_words(output.encodings[0], words, output["offset_mapping"])
    first, second = (sentence.split(" ") for sentence in SENTENCES[:2])
    output = tokenizer(first, second, is_split_into_words=True, return_offsets_mapping=True)
    for sequence, words in enumerate((first, second)):
        for word, text in enumerate(words):
            start, end = output.word_to_chars(0, word, sequence)
            assert text[start:end] == text
    alone = [len(tokenizer(sentence)["input_ids"]) - 2 for sentence in SENTENCES[:2]]
    assert output.sequence_ids(0) == [None, *[0] * alone[0], None, None, *[1] * alone[1], None]


def test_truncation_of_words(tokenizer: LunaTokenizer):
    sentence = SENTENCES[0]
    words = sentence.split(" ")
    options = {"truncation": True, "max_length": 9, "return_offsets_mapping": True}
    cut = tokenizer(words, is_split_into_words=True, **options)
    assert cut["input_ids"] == tokenizer(sentence, **options)["input_ids"]
    kept = [word for word in cut.word_ids() if word is not None]
    assert len(kept) == 7 and kept == sorted(kept)

    options |= {"stride": 2, "return_overflowing_tokens": True}
    pieces = tokenizer([words, words[::-1]], is_split_into_words=True, **options)
    whole = tokenizer([sentence, " ".join(words[::-1])], **options)
    assert pieces["input_ids"] == whole["input_ids"]
    assert pieces["overflow_to_sample_mapping"] == whole["overflow_to_sample_mapping"]
    for place, sample in enumerate(pieces["overflow_to_sample_mapping"]):
        texts = words if sample == 0 else words[::-1]
        for word, (start, end) in zip(pieces.word_ids(place), pieces["offset_mapping"][place], strict=True):
            assert word is None or (0 <= start <= end <= len(texts[word]))


def test_words_are_refused_as_ever(tokenizer: LunaTokenizer):
    for wrong in ("a sentence", [1, 2]):
        with pytest.raises((TypeError, ValueError)):
            tokenizer(wrong, is_split_into_words=True)


# Texts.


def test_made_from_a_folder_of_roberta(bpe: dict, tmp_path: Path):
    luna = build(bpe, "whole")
    roberta = RobertaTokenizer(vocab=luna.get_vocab(), merges=bpe["merges"], mask_token=MASK)
    roberta.save_pretrained(tmp_path)
    loaded = LunaTokenizer.from_pretrained(tmp_path)
    assert loaded.backend_tokenizer.to_str() == luna.backend_tokenizer.to_str()
    for sentence in SENTENCES:
        assert loaded(sentence.split(" "), is_split_into_words=True)["input_ids"] == roberta(sentence)["input_ids"]


@pytest.mark.parametrize("add_prefix_space", [False, True])
def test_texts_and_file_are_those_of_roberta(bpe: dict, tmp_path: Path, add_prefix_space: bool):
    luna = build(bpe, "whole", add_prefix_space=add_prefix_space)
    vocab = luna.get_vocab()
    roberta = RobertaTokenizer(
        vocab=vocab, merges=bpe["merges"], mask_token=MASK, model_max_length=64, add_prefix_space=add_prefix_space
    )
    luna.save_pretrained(tmp_path)
    for tokenizer in (luna, AutoTokenizer.from_pretrained(tmp_path)):
        assert tokenizer.backend_tokenizer.to_str() == roberta.backend_tokenizer.to_str()
        for text in (*SENTENCES, *OTHERS, ""):
            assert tokenizer(text, return_offsets_mapping=True).data == roberta(text, return_offsets_mapping=True).data


def test_prefix_space_given_while_loading(bpe: dict, kind: str, tmp_path: Path):
    """Then each text begins with a space, and the first word, too, as with `RobertaTokenizer`."""
    plain = build(bpe, kind)
    plain.save_pretrained(tmp_path / "plain")
    spaced = AutoTokenizer.from_pretrained(tmp_path / "plain", add_prefix_space=True)
    spaced.save_pretrained(tmp_path / "spaced")
    for tokenizer in (spaced, AutoTokenizer.from_pretrained(tmp_path / "spaced")):
        for sentence in (SENTENCES[0], SENTENCES[2]):
            expected = plain(" " + sentence)["input_ids"]
            assert tokenizer(sentence)["input_ids"] == expected
            assert tokenizer(sentence.split(" "), is_split_into_words=True)["input_ids"] == expected
    back = AutoTokenizer.from_pretrained(tmp_path / "spaced", add_prefix_space=False)
    assert back(SENTENCES[0])["input_ids"] == plain(SENTENCES[0])["input_ids"]


# What is made from a tokenizer.


@pytest.mark.parametrize("size", [300, 1000])
def test_trained_anew(bpe: dict, kind: str, tmp_path: Path, size: int):
    texts = [f"def function_{i * 7919 % 1000}(argument): return the other thing number {i}" for i in range(400)]
    trained = build(bpe, kind).train_new_from_iterator(texts, size)
    trained.save_pretrained(tmp_path)
    for tokenizer in (trained, AutoTokenizer.from_pretrained(tmp_path)):
        assert type(tokenizer) is LunaTokenizer
        assert len(tokenizer) == tokenizer.vocab_size == size
        assert sorted(tokenizer.get_vocab().values()) == list(range(size))
        assert tokenizer.convert_tokens_to_ids([*SPECIAL, "<mask>"]) == [0, 1, 2, 3, size - 1]
        assert tokenizer.mask_token_id == size - 1
        assert tokenizer.model_max_length == 64
        for text in (*texts[:5], *CORPUS, *SENTENCES):
            ids = tokenizer(text)["input_ids"]
            assert UNKNOWN not in ids and max(ids) < size
            assert tokenizer.decode(ids[1:-1]) == text.replace(" <mask>", "<mask>")
        assert len(tokenizer(texts[0])["input_ids"]) < 0.5 * len(build(bpe, kind)(texts[0])["input_ids"])


@pytest.mark.parametrize("way", ["built", "loaded"])
def test_trained_anew_with_other_special_tokens(bpe: dict, kind: str, way: str, tmp_path: Path):
    built = build(bpe, kind)
    built.add_tokens(["<word>"])
    built.add_special_tokens({"extra_special_tokens": [AddedToken("<kept>", rstrip=True)]})
    built.save_pretrained(tmp_path)
    trained = WAYS[way](built, tmp_path).train_new_from_iterator(
        OTHERS, 310, new_special_tokens=["<entity>"], special_tokens_map={"<unk>": "[UNK]"}
    )
    assert len(trained) == trained.vocab_size == 310
    assert trained.convert_tokens_to_ids(["<s>", "<pad>", "</s>", "[UNK]"]) == [0, 1, 2, 3]
    assert trained.unk_token == "[UNK]"
    assert not {"<word>", "<unk>"} & set(trained.get_vocab())
    assert trained.mask_token_id == 309
    kept, entity = trained.convert_tokens_to_ids(["<kept>", "<entity>"])
    assert {kept, entity} <= set(trained.all_special_ids)
    ids = trained("the<entity> thing <kept> <mask>")["input_ids"]
    assert entity in ids and ids[-3:] == [kept, 309, 2]  # the spaces belong to <kept> and <mask>


def test_added_tokens(bpe: dict, kind: str, tiny_model: Callable, tmp_path: Path):
    tokenizer = build(bpe, kind)
    size = len(tokenizer)
    before = tokenizer(SENTENCES[0])["input_ids"]
    assert tokenizer.add_tokens(["<e1>", "<e2>"]) == 2
    assert tokenizer.add_tokens(["<e1>"]) == 0
    assert tokenizer.add_special_tokens({"extra_special_tokens": ["<sep2>"]}) == 1
    tokenizer.save_pretrained(tmp_path)
    for each in (tokenizer, AutoTokenizer.from_pretrained(tmp_path), pickle.loads(pickle.dumps(tokenizer))):
        added = [size, size + 1]
        assert each.convert_tokens_to_ids(["<e1>", "<e2>"]) == added
        assert each.convert_ids_to_tokens(added) == ["<e1>", "<e2>"]
        assert each.decode(added) == "<e1><e2>"
        assert each.vocab_size == size < len(each)
        assert sorted(each.get_vocab().values()) == list(range(len(each)))
        assert each.get_vocab()["<e2>"] == each.added_tokens_encoder["<e2>"] == size + 1
        assert each.added_tokens_decoder[size].content == "<e1>"
        assert [i for i in each("<e1>moon<e2> <sep2>")["input_ids"] if i >= size] == [*added, len(each) - 1]
        assert each(SENTENCES[0])["input_ids"] == before
        assert each.convert_ids_to_tokens([len(each) - 1, size], skip_special_tokens=True) == ["<e1>"]
        assert each.decode([len(each) - 1, size], skip_special_tokens=True) == "<e1>"

    model = tiny_model(LunaForMaskedLM, vocab_size=size)
    model.resize_token_embeddings(len(tokenizer))
    logits = model(**tokenizer("<e1>moon<e2>", return_tensors="pt")).logits
    assert logits.shape[-1] == len(tokenizer) and logits.isfinite().all()


def test_collator_aligns_labels_of_words(bpe: dict, kind: str, tiny_model: Callable):
    """The way of run_ner.py: a label for the first token of each word, -100 for the others and for padding."""
    tokenizer = build(bpe, kind)
    words = [sentence.split(" ") for sentence in SENTENCES[:2]]
    encoded = tokenizer(words, is_split_into_words=True)
    labels = []
    for row in range(2):
        ids = encoded.word_ids(row)
        labels.append([-100 if w is None or w == before else w for before, w in zip([None, *ids], ids, strict=False)])
    features = [
        {
            "input_ids": encoded["input_ids"][row],
            "labels": labels[row],
            "attention_mask": encoded["attention_mask"][row],
        }
        for row in range(2)
    ]
    batch = DataCollatorForTokenClassification(tokenizer)(features)
    for row in range(2):
        assert batch["labels"][row][batch["labels"][row] != -100].tolist() == list(range(len(words[row])))
    assert torch.equal(batch["input_ids"], tokenizer(SENTENCES[:2], padding=True, return_tensors="pt")["input_ids"])
