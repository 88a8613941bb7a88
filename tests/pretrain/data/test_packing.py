"""Packings: whole sentences or documents in rows, none of them lost, and documents that do not see each other."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from common.labels import IGNORED
from pretrain.data.packed_data import PackedRows
from pretrain.data.packing import best_fit_rows, full_sentence_rows
from pretrain.data.sentences import sentence_starts
from pretrain.data.shards import SplitArrays
from pretrain.data.tokenizer import load_tokenizer
from pretrain.models.model import build_model
from pretrain.preparation import prepare
from pretrain.steps.batches import BatchPlan, BatchSizes, EvaluationBatches, TrainingBatches, model_arguments
from pretrain.steps.masking import Masking


LENGTH = 12  # of rows: <s>, ten tokens, </s>
END = 2
SPLITS = ("train", "validation")


def documents_of_sentences(*documents: list[int]) -> SplitArrays:
    """Documents of sentences of so many tokens; </s> follows each document and belongs to its last sentence."""
    sentences, starts, tokens = [], [], []
    for lengths in documents:
        starts.append(len(tokens))
        for length in lengths:
            sentences.append(len(tokens))
            tokens += range(100 + len(tokens), 100 + len(tokens) + length)
        tokens.append(END)
    ends = [len(tokens)]
    return SplitArrays(np.array(starts + ends), np.array(sentences + ends), np.array(tokens))


@pytest.mark.parametrize(
    ("documents", "rows"),
    [
        # Whole sentences, over the border of documents with </s> in between.
        ([[4, 4, 4], [3, 2]], [[8], [4, "</s>", 3, 2, "</s>"]]),
        # The </s> of a document that ends a row is the row's own, so ten tokens before it fit.
        ([[4, 6], [3]], [[4, 6, "</s>"], [3, "</s>"]]),
        ([[4, 7], [9]], [[4], [7, "</s>"], [9, "</s>"]]),
        # A sentence longer than a row begins one and is cut; what follows joins its rest.
        ([[3, 25, 4], [2]], [[3], [10], [10], [5, 4, "</s>"], [2, "</s>"]]),
        ([[10], [10]], [[10, "</s>"], [10, "</s>"]]),
        ([], []),
    ],
)
def test_full_sentences(documents: list[list[int]], rows: list[list]):
    arrays = documents_of_sentences(*documents)
    bounds = full_sentence_rows(arrays, LENGTH).tolist()
    assert bounds[0] == 0 and bounds[-1] == len(arrays.tokens)
    expected = np.cumsum([0, *(sum(1 if part == "</s>" else part for part in row) for row in rows)])
    assert bounds == expected.tolist()


def test_full_sentences_of_random_documents():
    generator = np.random.default_rng(0)
    arrays = documents_of_sentences(*(generator.integers(1, 15, size=generator.integers(1, 9)) for _ in range(300)))
    bounds = full_sentence_rows(arrays, LENGTH)
    sizes = np.diff(bounds.astype(int)) - (arrays.tokens[bounds[1:] - 1] == END)
    assert sizes.min() >= 1 and sizes.max() == 10
    # A row ends where the next sentence does not fit, or, within a sentence longer than a row, with a full row.
    starts = set(arrays.sentences.tolist())
    for first, last in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        if last not in starts:
            assert last - first == 10
        elif last < len(arrays.tokens):
            following = arrays.sentences[np.searchsorted(arrays.sentences, last) + 1]
            assert following - first - (arrays.tokens[following - 1] == END) > 10


def pieces_of_rows(arrays: SplitArrays) -> list[list[list[int]]]:
    """The tokens of the pieces of each row."""
    offsets, starts, lengths = (array.tolist() for array in best_fit_rows(arrays, LENGTH))
    pieces = [arrays.tokens[start : start + length].tolist() for start, length in zip(starts, lengths, strict=True)]
    return [pieces[first:last] for first, last in zip(offsets[:-1], offsets[1:], strict=True)]


@pytest.mark.parametrize(
    ("lengths", "rows"),
    [
        # With <s> and </s> they take 8, 4, 6, 6 and 3 of the 12 places of a row.
        ([6, 2, 4, 4, 1], [[6, 2], [4, 4], [1]]),
        # Best fit: 3 goes to the row with 3 places left, not to the one with 5.
        ([5, 7, 1], [[5], [7, 1]]),
        # Pieces of a document longer than a row fill rows; its rest is placed like a document.
        ([23, 5], [[10], [10], [3, 5]]),
        ([10, 0, 3], [[10], [3]]),
        ([], []),
    ],
)
def test_best_fit(lengths: list[int], rows: list[list[int]]):
    packed = pieces_of_rows(documents_of_sentences(*([length] for length in lengths)))
    assert [[len(piece) for piece in row] for row in packed] == rows


def test_best_fit_of_random_documents_loses_nothing_and_pads_little():
    generator = np.random.default_rng(0)
    arrays = documents_of_sentences(*([length] for length in generator.integers(1, 30, size=3000)))
    rows = pieces_of_rows(arrays)
    assert (
        sorted(token for row in rows for piece in row for token in piece)
        == arrays.tokens[arrays.tokens != END].tolist()
    )
    used = [sum(len(piece) + 2 for piece in row) for row in rows]
    assert max(used) <= LENGTH
    assert 1 - sum(used) / (LENGTH * len(rows)) < 0.03


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One. Two! Three? Four", ["One. ", "Two! ", "Three? ", "Four"]),
        ("A line\nand the next", ["A line\n", "and the next"]),
        ("He said “Yes.” Then he left.", ["He said “Yes.” ", "Then he left."]),
        ("Dr. J. Smith vs. Mr. Jones etc. and e.g. Bonn.", ["Dr. J. Smith vs. Mr. Jones etc. and e.g. Bonn."]),
        ("It is 3.5 m. long. no capital. Yes", ["It is 3.5 m. long. no capital. ", "Yes"]),
        ("1. First\n2. Second", ["1. First\n", "2. Second"]),
        ("今日は。明日は？", ["今日は。", "明日は？"]),
        ("", []),
    ],
)
def test_sentences(text: str, sentences: list[str]):
    starts = [0, *sentence_starts(text), len(text)]
    assert [text[first:last] for first, last in zip(starts[:-1], starts[1:], strict=True)] == (sentences or [""])


@pytest.fixture(scope="module")
def prepared(build_config: Callable, sentences: Callable, tmp_path_factory: pytest.TempPathFactory) -> tuple:
    """A corpus with short documents, a long one, and letters of several bytes; and its configuration."""
    folder = tmp_path_factory.mktemp("packing")
    text = sentences(folder / "text.txt", documents=80)
    content = text.read_text(encoding="utf-8")
    text.write_text(content + "\n\n" + content.replace("\n", " ")[:1500] + "\n\nÄ ö. Ü – “é”. Ö!\n", encoding="utf-8")
    config = build_config(folder / "run", data=str(text), prepared_dir=str(folder / "prepared"), packing="best_fit")
    return config, prepare(config)


def documents_of(rows: PackedRows) -> list[list[int]]:
    bounds = rows.documents[:]
    return [rows.stream[first : last - 1].tolist() for first, last in zip(bounds[:-1], bounds[1:], strict=True)]


@pytest.mark.parametrize("split", SPLITS)
def test_rows_of_best_fit_hold_each_document_once(prepared: tuple, split: str):
    config, folder = prepared
    rows = PackedRows.open(folder, split, config.max_length, "best_fit")
    batch = rows[np.arange(len(rows))]
    found = []
    for ids, starts in zip(batch.ids, batch.document_starts, strict=True):
        filled = ids[ids != rows.pad_token_id]
        assert starts[0] and not starts[len(filled) :].any()
        for document in np.split(filled, np.flatnonzero(starts)[1:]):
            assert (document[0], document[-1]) == rows.row_ends
            found.append(tuple(document[1:-1].tolist()))
    body = config.max_length - 2
    pieces = [
        document[first : first + body] for document in documents_of(rows) for first in range(0, len(document), body)
    ]
    assert sorted(found) == sorted(map(tuple, pieces))
    assert split == "validation" or max(map(len, documents_of(rows))) > 3 * body
    assert rows.padding_share == pytest.approx((batch.ids == rows.pad_token_id).mean())


@pytest.mark.parametrize("split", SPLITS)
def test_rows_of_full_sentences_reassemble_the_text(prepared: tuple, split: str):
    config, folder = prepared
    rows = PackedRows.open(folder, split, config.max_length, "full_sentences")
    tokenizer = load_tokenizer(str(folder / "tokenizer"))
    batch = rows[np.arange(len(rows))]
    assert batch.document_starts is None
    assert rows.padding_share == pytest.approx((batch.ids == rows.pad_token_id).mean()) and rows.padding_share > 0
    joined, begins_a_sentence = [], []
    documents = [tokenizer.decode(document) for document in documents_of(rows)]
    for ids in batch.ids:
        ids = ids[ids != rows.pad_token_id]
        assert (ids[0], ids[-1]) == rows.row_ends
        joined += ids[1:-1].tolist()
        text = tokenizer.decode(ids[1:-1]).split("</s>")
        # Each row begins where a sentence of some document does, or goes on with a sentence longer than a row.
        begins_a_sentence.append(any(_begins_a_sentence(document, text[0]) for document in documents))
    assert np.mean(begins_a_sentence) > 0.9
    assert [token for token in joined if token != END] == [
        token for document in documents_of(rows) for token in document
    ]


def _begins_a_sentence(document: str, text: str) -> bool:
    starts = [0, *sentence_starts(document)]
    return any(document[start:].strip().startswith(text.strip()) for start in starts)


@pytest.mark.parametrize("model", [{}, {"conv_kernel_size": 5}, {"dynamic_projection": False}], ids=str)
def test_no_document_sees_another(prepared: tuple, build_config: Callable, tmp_path: Path, model: dict):
    """What the model says of a document in a row of several is what it says of the document alone."""
    config, folder = prepared
    tokenizer = load_tokenizer(str(folder / "tokenizer"))
    rows = PackedRows.open(folder, "train", config.max_length, "best_fit")
    masking = Masking.from_config(config, tokenizer, None)
    torch.manual_seed(0)
    luna = build_model(build_config(tmp_path, model=model), tokenizer).eval()
    batches = TrainingBatches(rows, masking, BatchPlan(BatchSizes(len(rows), len(rows), 0)))
    (batch,) = batches[0]
    boundaries = batch["cu_seq_lens_q"].tolist()
    assert len(boundaries) - 1 > len(rows) + 20
    with torch.no_grad():
        together = luna(**batch).logits.flatten(0, 1)
        real = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).flatten().bool()
        ids = batch["input_ids"].flatten()
        for first, last in zip(boundaries[:-1], boundaries[1:], strict=True):
            places = torch.arange(first, last)[real[first:last]]
            alone = luna(ids[places][None]).logits[0]
            assert (together[places] - alone).abs().max() < 1e-5
        # The boundaries matter: without them the model says something else.
        plain = luna(batch["input_ids"], attention_mask=batch.get("attention_mask")).logits.flatten(0, 1)
    assert (together - plain)[real].abs().max() > 1e-2


def test_arguments_of_validation_rows_have_boundaries_too(prepared: tuple):
    config, folder = prepared
    rows = PackedRows.open(folder, "validation", config.max_length, "best_fit")
    masking = Masking.from_config(config, load_tokenizer(str(folder / "tokenizer")), None)
    batch = EvaluationBatches(rows, masking, BatchPlan(BatchSizes(4, 4, 0)), None)[0]
    assert (
        batch["cu_seq_lens_q"].tolist()
        == model_arguments(batch["input_ids"].numpy(), batch["labels"].numpy(), rows[np.arange(4)], rows.pad_token_id)[
            "cu_seq_lens_q"
        ].tolist()
    )
    assert (batch["labels"] != IGNORED).any()


@pytest.mark.parametrize("packing", ["full_sentences", "best_fit"])
@pytest.mark.slow
def test_training_on_a_packing(prepared: tuple, build_config: Callable, train: Callable, tmp_path: Path, packing: str):
    config, _ = prepared
    changes = {"data": config.data, "prepared_dir": config.prepared_dir, "packing": packing}
    metrics = train(build_config(tmp_path / "run", **changes))
    losses = [record["loss"] for record in metrics if "loss" in record]
    assert losses[-1] < losses[0] - 0.5


def test_index_that_is_damaged_is_made_again(prepared: tuple, tmp_path: Path):
    config, folder = prepared
    before = PackedRows.open(folder, "train", 24, "best_fit")[np.arange(9)].ids
    numbers = folder / "rows" / "best_fit-24" / "rows.bin"
    content = numbers.read_bytes()
    numbers.write_bytes(content[:40] + bytes([content[40] ^ 1]) + content[41:])
    np.testing.assert_array_equal(PackedRows.open(folder, "train", 24, "best_fit")[np.arange(9)].ids, before)
    assert numbers.read_bytes() == content
