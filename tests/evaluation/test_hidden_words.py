"""Hidden words: the same ones for every tokenizer, scored as a plain computation does."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_masked_models import (
    ARCHITECTURES,
    MAX_LENGTH,
    build_wordpiece,
    masked_log_probabilities,
    save_all,
    train_bpe,
)
from tokenizers import Tokenizer, models
from transformers import AutoModelForMaskedLM, AutoTokenizer, PreTrainedTokenizerFast

from evaluation.hidden_words import WORD, HiddenWords, evaluate_hidden_words, hidden_words
from evaluation.models import MaskedModel, Scorer, TextEncoder


@pytest.fixture(scope="module")
def documents(corpus: Path) -> list[str]:
    """Texts of at most a dozen words: each of them is a row of every tokenizer."""
    sentences = re.split(r"(?<=[.])\s+", corpus.read_text(encoding="utf-8"))
    return [" ".join(sentence.split()[:9]) for sentence in sentences][:60]


@pytest.fixture(scope="module")
def folders(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return save_all(tmp_path_factory.mktemp("models"), corpus.read_text(encoding="utf-8").splitlines())


@pytest.fixture(scope="module")
def encoders(corpus: Path) -> list[TextEncoder]:
    lines = corpus.read_text(encoding="utf-8").splitlines()
    return [TextEncoder(train_bpe(lines)), TextEncoder(build_wordpiece(lines))]


def open_scorer(folder: Path, batch_tokens: int = 2000, dtype: torch.dtype = torch.float32) -> Scorer:
    return MaskedModel.open(str(folder), trust_remote_code=False).load(dtype, torch.device("cpu"), batch_tokens)


def plain_results(
    folder: Path, documents: list[str], seed: int, probability: float, prediction: str
) -> dict[str, float]:
    """Document by document, over the logits of all places."""
    model = AutoModelForMaskedLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    losses, right_tokens, right_words, num_bytes = [], [], [], 0
    for text in documents:
        spans = [match.span() for match in re.finditer(r"\S+", text)]
        chosen = np.array(spans)[hidden_words(text, len(spans), seed, probability)].tolist()
        encoded = tokenizer(text, return_offsets_mapping=True, return_special_tokens_mask=True)
        places_of_words = [
            [
                place
                for place, (a, b) in enumerate(encoded["offset_mapping"])
                if not encoded["special_tokens_mask"][place] and a < end and b > start
            ]
            for start, end in chosen
        ]
        steps = max(map(len, places_of_words), default=0) if prediction == "left_to_right" else 1
        log_probabilities = []
        for step in range(steps):
            masked = [place for places in places_of_words for place in places[step:]]
            log_probabilities.append(masked_log_probabilities(model, tokenizer, encoded["input_ids"], masked))
        for (start, end), places in zip(chosen, places_of_words, strict=True):
            right = []
            for index, place in enumerate(places):
                values = log_probabilities[index if steps > 1 else 0][place]
                losses.append(-values[encoded["input_ids"][place]].item())
                right.append(values.argmax().item() == encoded["input_ids"][place])
            right_tokens += right
            right_words.append(all(right))
            num_bytes += len(text[start:end].encode())
    return {
        "nats_per_word": sum(losses) / len(right_words),
        "bits_per_byte": sum(losses) / np.log(2) / num_bytes,
        "word_accuracy": np.mean(right_words),
        "loss": np.mean(losses),
        "perplexity": np.exp(np.mean(losses)),
        "accuracy": np.mean(right_tokens),
        "tokens_predicted": len(losses),
    }


@pytest.mark.parametrize(
    ("architecture", "prediction"),
    [*((name, "at_once") for name in ARCHITECTURES), *((name, "left_to_right") for name in ("luna", "bert"))],
)
def test_results_are_those_of_a_plain_computation(
    folders: dict, documents: list[str], architecture: str, prediction: str
):
    scorer = open_scorer(folders[architecture])
    text = HiddenWords.cut(documents, [scorer.opened.encoder], MAX_LENGTH, 3, 0.3, prediction)
    results = evaluate_hidden_words(scorer, text, 0, "text")
    expected = plain_results(folders[architecture], documents, 3, 0.3, prediction)
    assert text.num_rows > 40 and expected["tokens_predicted"] > 200
    assert len(text.rows[0]) == text.num_rows if prediction == "at_once" else len(text.rows[0]) > 2 * text.num_rows
    assert results["tokens_per_second"] > 0
    for key, value in expected.items():
        assert results[key] == pytest.approx(value, rel=1e-5, abs=1e-5), key


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_batch_size_changes_nothing(folders: dict, corpus: Path, architecture: str):
    documents = corpus.read_text(encoding="utf-8").split("\n\n")
    results = []
    for batch_size in (1, 3, 64):
        scorer = open_scorer(folders[architecture], batch_tokens=batch_size * MAX_LENGTH)
        text = HiddenWords.cut(documents, [scorer.opened.encoder], MAX_LENGTH)
        results.append(evaluate_hidden_words(scorer, text, 0, "text"))
    for other in results[1:]:
        assert other["tokens_predicted"] == results[0]["tokens_predicted"]
        for key in ("nats_per_word", "bits_per_byte", "word_accuracy", "loss", "accuracy"):
            assert other[key] == pytest.approx(results[0][key], abs=1e-5), key


def test_bfloat16(folders: dict, documents: list[str]):
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        scorer = open_scorer(folders["luna"], dtype=dtype)
        assert scorer.weights.dtype == dtype
        text = HiddenWords.cut(documents, [scorer.opened.encoder], MAX_LENGTH)
        results.append(evaluate_hidden_words(scorer, text, 0, "text"))
    assert results[0]["tokens_predicted"] == results[1]["tokens_predicted"]
    assert results[0]["loss"] == pytest.approx(results[1]["loss"], rel=0.02)
    assert results[0]["loss"] != results[1]["loss"]


def test_hidden_words_depend_on_seed_and_document_alone():
    texts = [f"Text number {number} of some words." for number in range(2000)]
    hidden = [hidden_words(text, 6, seed=0, probability=0.15) for text in texts]
    assert np.mean(hidden) == pytest.approx(0.15, abs=0.01)
    assert len({tuple(words) for words in hidden}) > 20
    other_seed = [hidden_words(text, 6, seed=1, probability=0.15) for text in texts]
    assert np.mean(np.array(hidden) != other_seed) == pytest.approx(2 * 0.15 * 0.85, abs=0.02)
    # More words of the same text come after those that were there, and a higher rate only adds to them.
    assert (hidden_words(texts[7], 50, 0, 0.15)[:6] == hidden[7]).all()
    assert (hidden_words(texts[7], 6, 0, 0.5) >= hidden[7]).all()


def hidden_places(text: HiddenWords, tokenizer: int) -> list[tuple]:
    return [(row.input_ids.tolist(), row.places.tolist()) for row in text.rows[tokenizer]]


def test_what_else_is_read_changes_no_row(encoders: list[TextEncoder], documents: list[str]):
    some = HiddenWords.cut(documents[10:20], encoders, MAX_LENGTH)
    more = HiddenWords.cut(documents, encoders, MAX_LENGTH)
    assert some.scored > 0
    for tokenizer in range(2):
        rows = hidden_places(more, tokenizer)
        assert all(row in rows for row in hidden_places(some, tokenizer))


def scored_words(text: HiddenWords, encoder: TextEncoder, tokenizer: int) -> list[str]:
    """The hidden words in lower case, from the tokens that are to be predicted."""
    words: list[list[int]] = [[] for _ in range(text.scored)]
    for row, numbers in zip(text.rows[tokenizer], text.words[tokenizer], strict=True):
        for target, number in zip(row.targets, numbers, strict=True):
            words[number].append(target)
    return [encoder.tokenizer.decode(ids).replace(" ", "").lower() for ids in words]


@pytest.mark.parametrize("max_length", [12, 20, MAX_LENGTH])
def test_every_tokenizer_predicts_the_same_words_in_the_same_text(
    encoders: list[TextEncoder], corpus: Path, max_length: int
):
    documents = [corpus.read_text(encoding="utf-8")]
    text = HiddenWords.cut(documents, encoders, max_length, probability=0.3)
    words = np.array(documents[0].lower().split())
    expected = words[hidden_words(documents[0], len(words), 0, 0.3)].tolist()
    assert text.hidden == text.scored == len(expected) > 300 and text.too_long == 0
    assert text.scored_bytes == sum(map(len, expected))
    for tokenizer, encoder in enumerate(encoders):
        assert scored_words(text, encoder, tokenizer) == expected
        lengths = [len(row.input_ids) for row in text.rows[tokenizer]]
        assert max(lengths) <= max_length
        for row in text.rows[tokenizer]:
            assert (row.input_ids[row.places] == encoder.mask_token_id).all()
            assert (row.input_ids == encoder.mask_token_id).sum() == len(row.places)
    # Rows are as long as they can be: no two neighbours would fit into one.
    longest = np.max([[len(row.input_ids) - 2 for row in rows] for rows in text.rows], axis=0)
    if max_length < MAX_LENGTH:
        assert (longest[:-1] + longest[1:] > max_length - 2).mean() > 0.9


def test_a_long_document_is_encoded_in_sections(
    encoders: list[TextEncoder], corpus: Path, monkeypatch: pytest.MonkeyPatch
):
    document = corpus.read_text(encoding="utf-8")
    whole = HiddenWords.cut([document], encoders, MAX_LENGTH)
    monkeypatch.setattr("evaluation.hidden_words.SECTION_CHARACTERS", 500)
    sections = HiddenWords.cut([document], encoders, MAX_LENGTH)
    assert scored_words(sections, encoders[1], 1) == scored_words(whole, encoders[1], 1)
    assert len(sections.rows[0]) > len(whole.rows[0])


def test_words_that_a_tokenizer_does_not_know_are_scored_for_none(encoders: list[TextEncoder]):
    text = HiddenWords.cut(["the moon ☃☃ follows the snow☃man"], encoders, MAX_LENGTH, probability=1.0)
    assert (text.words_read, text.hidden, text.scored) == (6, 6, 4)
    for tokenizer, encoder in enumerate(encoders):
        assert scored_words(text, encoder, tokenizer) == ["the", "moon", "follows", "the"]
        # They are hidden all the same.
        (row,) = text.rows[tokenizer]
        shown = encoder.tokenizer.decode(row.input_ids[1:-1]).replace(encoder.tokenizer.mask_token, "")
        assert not shown.strip()
    alone = HiddenWords.cut(["the moon ☃☃ follows the snow☃man"], encoders[:1], MAX_LENGTH, probability=1.0)
    assert alone.scored == 6


def test_tokens_of_two_words_are_masked_but_not_scored():
    vocabulary = {"[UNK]": 0, "[MASK]": 1, "a": 2, "b": 3, " ": 4, "a b": 5}
    backend = Tokenizer(models.Unigram([(token, -1.0) for token in vocabulary], unk_id=0))
    encoder = TextEncoder(PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", mask_token="[MASK]"))
    assert encoder.num_special_tokens == 0
    text = HiddenWords.cut(["b a b a"], [encoder], MAX_LENGTH, probability=1.0)
    assert (text.hidden, text.scored) == (4, 2)
    (row,) = text.rows[0]
    assert row.input_ids.tolist() == [1, 4, 1, 4, 1]  # b, white space, "a b", white space, a
    assert (row.places.tolist(), row.targets.tolist()) == ([0, 4], [3, 2])


def test_chinese_characters_are_words():
    assert WORD.findall("the moon: 月光是 m月x.") == ["the", "moon:", "月", "光", "是", "m", "月", "x."]


def test_documents_that_are_longer_than_a_row_are_counted(encoders: list[TextEncoder]):
    for words, cut in ((10, 0), (11, 1), (200, 1)):  # 10 words of one token each, and two tokens around them
        documents = ["the " * words, "the moon"]
        text = HiddenWords.cut(documents, encoders[1:], max_length=12, probability=1.0)
        assert (text.documents, len(text.cut_documents), text.scored) == (2, cut, words + 2)
        assert len(text.rows[0]) == -(-words // 10) + 1


def test_long_stretches_are_context(encoders: list[TextEncoder]):
    limit = "moon" * 10
    text = HiddenWords.cut([f"the {limit}x moon {limit} river"], encoders, max_length=512, probability=1.0)
    assert scored_words(text, encoders[0], 0) == ["the", "moon", limit, "river"]
    assert limit + "x" in encoders[0].tokenizer.decode(text.rows[0][0].input_ids)


def test_words_longer_than_a_row_are_left_out_and_counted(encoders: list[TextEncoder]):
    text = HiddenWords.cut(["the " + "xyzq" * 9 + " moon"], encoders, max_length=12, probability=1.0)
    assert (text.words_read, text.too_long) == (3, 1)
    assert scored_words(text, encoders[0], 0) == ["the", "moon"]
    assert len(text.rows[0]) == 2


def test_names_of_special_tokens_in_the_text_are_text(encoders: list[TextEncoder]):
    text = HiddenWords.cut(["the <mask> moon </s> river"], encoders[:1], MAX_LENGTH, probability=1e-9)
    assert text.scored == 0
    encoded = encoders[0].encode(["the <mask> moon </s> river"])[0]
    assert encoders[0].mask_token_id not in encoded.ids
    assert encoders[0].tokenizer.eos_token_id not in encoded.ids
