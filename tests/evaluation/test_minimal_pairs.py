"""Minimal pairs: pseudo-log-likelihoods as a plain loop has them, and what they are counted to."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_masked_models import (
    ARCHITECTURES,
    build,
    build_wordpiece,
    masked_log_probabilities,
    save,
    save_all,
)
from transformers import AutoModelForMaskedLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from common.errors import UserError
from evaluation.minimal_pairs import (
    PSEUDO_LOG_LIKELIHOODS,
    encode_sentences,
    evaluate_minimal_pairs,
    read_minimal_pairs,
    score_sentences,
)
from evaluation.models import MaskedModel, ModelError, Scorer


SINGULAR, PLURAL = ("moon", "river", "stone", "reader"), ("moons", "rivers", "stones", "readers")
FOLLOWERS = ("the garden", "a paper", "every window", "its light")


def agreement(good: bool) -> list[str]:
    """Sentences whose verb agrees with the subject, or does not; both verbs are as frequent in either."""
    return [
        f"the {subject} {'follows' if is_singular == good else 'follow'} {follower}"
        for subjects, is_singular in ((SINGULAR, True), (PLURAL, False))
        for subject in subjects
        for follower in FOLLOWERS
    ]


def write_pairs(path: Path, pairs: list[tuple[str, str]], **more: str) -> Path:
    lines = [json.dumps({"sentence_good": good, "sentence_bad": bad, **more}) for good, bad in pairs]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return save_all(tmp_path_factory.mktemp("models"), agreement(good=True))


def open_scorer(folder: Path, batch_tokens: int = 500) -> Scorer:
    opened = MaskedModel.open(str(folder), trust_remote_code=False)
    return opened.load(torch.float32, torch.device("cpu"), batch_tokens)


def plain_pseudo_log_likelihood(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sentence: str, kind: str
) -> float:
    """One forward pass for each token."""
    encoded = tokenizer(sentence)
    ids, words = encoded["input_ids"], encoded.word_ids()
    total = 0.0
    for place in range(1, len(ids) - 1):
        masked = [place]
        if kind == "within_word_l2r":
            masked += [later for later in range(place + 1, len(ids) - 1) if words[later] == words[place]]
        total += masked_log_probabilities(model, tokenizer, ids, masked)[place, ids[place]].item()
    return total


@pytest.mark.parametrize("kind", PSEUDO_LOG_LIKELIHOODS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_pseudo_log_likelihoods_are_those_of_a_plain_loop(folders: dict, tmp_path: Path, architecture: str, kind: str):
    texts = [("The moon follows the riverside", "the moons follow"), ("stone", "Readers, and a moonstone near it.")]
    scorer = open_scorer(folders[architecture])
    pairs = read_minimal_pairs(str(write_pairs(tmp_path / "pairs.jsonl", texts)))
    likelihoods, _, _ = score_sentences(scorer, encode_sentences(scorer.opened, pairs), kind)
    model = AutoModelForMaskedLM.from_pretrained(folders[architecture]).eval()
    tokenizer = AutoTokenizer.from_pretrained(folders[architecture])
    expected = [plain_pseudo_log_likelihood(model, tokenizer, text, kind) for pair in texts for text in pair]
    assert likelihoods == pytest.approx(np.array(expected), rel=1e-5)


def test_the_two_kinds_differ_where_words_have_several_tokens(folders: dict, tmp_path: Path):
    scorer = open_scorer(folders["bert"])
    path = write_pairs(tmp_path / "pairs.jsonl", [("the moonstone", "the moon")])
    sentences = encode_sentences(scorer.opened, read_minimal_pairs(str(path)))
    original, l2r = (score_sentences(scorer, sentences, kind)[0] for kind in PSEUDO_LOG_LIKELIHOODS)
    assert len(sentences[0].places) > len(sentences[1].places) == 2
    assert abs(original[0] - l2r[0]) > 0.1
    assert original[1] == pytest.approx(l2r[1], rel=1e-6)


@pytest.mark.parametrize("architecture", ["luna", "nystromformer", "convbert"])
def test_batches_and_chunks_change_nothing(
    folders: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architecture: str
):
    pairs = read_minimal_pairs(
        str(write_pairs(tmp_path / "pairs.jsonl", list(zip(agreement(True), agreement(False), strict=True))[::5]))
    )
    results = []
    for batch_tokens, chunk_tokens in ((1, 2**18), (200, 2**18), (5000, 100)):
        monkeypatch.setattr("evaluation.minimal_pairs.CHUNK_TOKENS", chunk_tokens)
        scorer = open_scorer(folders[architecture], batch_tokens)
        results.append(score_sentences(scorer, encode_sentences(scorer.opened, pairs), "original")[0])
    assert results[1] == pytest.approx(results[0], rel=1e-5)
    assert results[2] == pytest.approx(results[0], rel=1e-5)


@pytest.mark.slow
def test_batches_are_faster_than_a_loop(folders: dict, tmp_path: Path):
    """`-s` shows by how much."""
    good, bad = agreement(good=True), agreement(good=False)
    path = write_pairs(tmp_path / "pairs.jsonl", list(zip(good, bad, strict=True)))
    scorer = open_scorer(folders["luna"], batch_tokens=2048)
    sentences = encode_sentences(scorer.opened, read_minimal_pairs(str(path)))
    ratios = []
    for _ in range(3):
        started = time.perf_counter()
        score_sentences(scorer, sentences, "original")
        batched = time.perf_counter()
        for text in good + bad:
            plain_pseudo_log_likelihood(scorer.weights, scorer.opened.encoder.tokenizer, text, "original")
        ratios.append((time.perf_counter() - batched) / (batched - started))
    print(
        f"batches are {', '.join(f'{ratio:.1f}' for ratio in sorted(ratios))} times as fast as a loop over the tokens"
    )
    assert max(ratios) > 2


def train(model, tokenizer, sentences: list[str], steps: int):
    """Predict each token from the others."""
    ids = torch.tensor(tokenizer(sentences, padding=True)["input_ids"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    generator = torch.Generator().manual_seed(0)
    model.train()
    for _ in range(steps):
        hidden = (torch.rand(ids.shape, generator=generator) < 0.2) & (ids > 4)
        labels = ids.masked_fill(~hidden, -100)
        loss = model(
            input_ids=ids.masked_fill(hidden, tokenizer.mask_token_id),
            attention_mask=(ids != tokenizer.pad_token_id).long(),
            labels=labels,
        ).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


@pytest.mark.slow
def test_a_model_that_has_learnt_agreement_knows_it(tmp_path: Path):
    good, bad = agreement(good=True), agreement(good=False)
    tokenizer = build_wordpiece(good)
    # No dropout: it would take more steps.
    model = build("luna", tokenizer, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, initializer_range=0.1)
    pairs = read_minimal_pairs(str(write_pairs(tmp_path / "pairs.jsonl", list(zip(good, bad, strict=True)))))
    before = evaluate_minimal_pairs(open_scorer(save(tmp_path / "model", model, tokenizer)), pairs, "original")
    torch.manual_seed(0)
    train(model, tokenizer, good, steps=300)
    after = evaluate_minimal_pairs(open_scorer(save(tmp_path / "model", model, tokenizer)), pairs, "original")
    assert 0.25 <= before["overall"]["accuracy"] <= 0.75
    assert after["overall"]["accuracy"] >= 0.95
    assert after["overall"]["pairs"] == 32


def test_counts_of_files_and_groups(folders: dict, tmp_path: Path):
    good, bad = agreement(good=True), agreement(good=False)
    pairs = list(zip(good, bad, strict=True))
    write_pairs(tmp_path / "p/agreement/first.jsonl", pairs[:10], field="syntax", linguistics_term="verb", UID="x")
    write_pairs(tmp_path / "p/second.jsonl", pairs[10:16], field="syntax")
    write_pairs(tmp_path / "p/third.jsonl", pairs[16:20])
    write_pairs(tmp_path / "p/.hidden/fourth.jsonl", pairs)
    (tmp_path / "p/README.md").write_text("no pairs", encoding="utf-8")
    scorer = open_scorer(folders["luna"])
    read = read_minimal_pairs(str(tmp_path / "p"))
    results = evaluate_minimal_pairs(scorer, read, "original")

    values, _, _ = score_sentences(scorer, encode_sentences(scorer.opened, read), "original")
    right = values[::2] > values[1::2]
    assert 0 < right.sum() < 20

    def count(numbers: slice) -> dict:
        return {"accuracy": right[numbers].mean(), "pairs": len(right[numbers]), "ties": 0}

    assert results["overall"] == count(slice(0, 20))
    files = {"agreement/first": slice(0, 10), "second": slice(10, 16), "third": slice(16, 20)}
    assert results["files"] == {name: count(numbers) for name, numbers in files.items()}
    assert results["groups"] == {
        "field": {"syntax": count(slice(0, 16))},
        "linguistics_term": {"verb": count(slice(0, 10))},
    }
    assert results["unknown_tokens"] == 0 and results["tokens_per_second"] > 0


def test_ties_count_as_half(folders: dict, tmp_path: Path):
    good, bad = agreement(good=True)[0], agreement(good=False)[0]
    path = write_pairs(tmp_path / "pairs.jsonl", [(good, good.upper()), (good, bad), (bad, good), (bad.upper(), bad)])
    pairs = read_minimal_pairs(str(path))
    results = evaluate_minimal_pairs(open_scorer(folders["bert"]), pairs, "original")  # knows lower case only
    assert results["overall"] == {"accuracy": 0.5, "pairs": 4, "ties": 2}


def test_unknown_tokens_are_counted(folders: dict, tmp_path: Path):
    pairs = read_minimal_pairs(str(write_pairs(tmp_path / "pairs.jsonl", [("the ☃", "the ☃ ☃")])))
    assert evaluate_minimal_pairs(open_scorer(folders["bert"]), pairs, "original")["unknown_tokens"] == 3
    assert evaluate_minimal_pairs(open_scorer(folders["luna"]), pairs, "original")["unknown_tokens"] == 0


def test_sentences_are_never_cut(folders: dict, tmp_path: Path):
    long = "the moon " * 31
    path = write_pairs(tmp_path / "pairs.jsonl", [("the moon", "the moons"), ("the river", long + "the")])
    scorer = open_scorer(folders["bert"])
    with pytest.raises(ModelError, match=rf"{path}:2: sentence_bad has 65 tokens, but it takes 64 at most"):
        evaluate_minimal_pairs(scorer, read_minimal_pairs(str(path)), "original")
    path = write_pairs(tmp_path / "pairs.jsonl", [("the river", long.strip())])
    assert evaluate_minimal_pairs(scorer, read_minimal_pairs(str(path)), "original")["overall"]["pairs"] == 1


BAD_LINES = {
    "no end": ('{"sentence_good": "a', ":2: not JSON: "),
    "array": ('["a", "b"]', ":2: the line must be a JSON object"),
    "missing": ('{"sentence_good": "a", "bad": "b"}', ":2: there is no 'sentence_bad', only 'sentence_good', 'bad'"),
    "number": ('{"sentence_good": 5, "sentence_bad": "b"}', ":2: 'sentence_good' must hold text, but here it is 5"),
    "blank": ('{"sentence_good": "a", "sentence_bad": " "}', ":2: 'sentence_bad' must hold text"),
    "group": ('{"sentence_good": "a", "sentence_bad": "b", "field": null}', ":2: 'field' must hold text"),
    "same": (
        '{"sentence_good": "a b", "sentence_bad": "a b"}',
        ":2: the good and the bad sentence are the same: 'a b'",
    ),
    "digits": (f'{{"number": {"1" * 5000}}}', ":2: the JSON cannot be read: Exceeds the limit"),
    "brackets": ("[" * 100_000, ":2: the JSON cannot be read: maximum recursion depth"),
    "surrogate": ('{"sentence_good": "a \\ud83d", "sentence_bad": "b"}', ":2: 'sentence_good' has half a surrogate"),
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_bad_line(tmp_path: Path, name: str):
    line, message = BAD_LINES[name]
    path = write_pairs(tmp_path / "pairs.jsonl", [("a good one", "a bad one")])
    path.write_text(path.read_text(encoding="utf-8") + line + "\n", encoding="utf-8")
    with pytest.raises(UserError) as error:
        read_minimal_pairs(str(tmp_path))
    assert str(path) + message in str(error.value)


def test_bad_bytes_and_files(tmp_path: Path):
    with pytest.raises(UserError, match="there is no folder .*absent"):
        read_minimal_pairs(str(tmp_path / "absent"))
    with pytest.raises(UserError, match="holds no file that ends in .jsonl"):
        read_minimal_pairs(str(tmp_path))
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(b"\n \n")
    with pytest.raises(UserError, match="pairs.jsonl: the file holds no pair"):
        read_minimal_pairs(str(tmp_path))
    path.write_bytes('{"sentence_good": "Garçon", "sentence_bad": "b"}'.encode("latin-1"))
    with pytest.raises(UserError, match="pairs.jsonl:1: the line is not UTF-8"):
        read_minimal_pairs(str(tmp_path))
    path.write_bytes('{"sentence_good": "a", "sentence_bad": "b"}\n'.encode("utf-16"))
    with pytest.raises(UserError, match="pairs.jsonl:1: the line is not UTF-8"):
        read_minimal_pairs(str(tmp_path))


def test_byte_order_mark_and_windows_lines(tmp_path: Path):
    line = '{"sentence_good": "a", "sentence_bad": "b"}\r\n'
    (tmp_path / "pairs.jsonl").write_bytes(b"\xef\xbb\xbf" + 2 * line.encode())
    assert [pair.sentences for pair in read_minimal_pairs(str(tmp_path))] == [("a", "b"), ("a", "b")]
