"""Lengths of documents, and rows made of them."""

from pathlib import Path

import pytest
import torch

from benchmarks.speed.models import ModelName, new_config
from benchmarks.speed.rows import document_lengths, new_batch
from common.errors import UserError


CPU = torch.device("cpu")


@pytest.mark.parametrize("longest", [128, 2048])
def test_half_of_padded_rows_is_padding(longest: int):
    lengths = document_lengths(64, longest)
    assert sum(lengths) / (64 * longest) == pytest.approx(0.5, abs=0.02)
    assert min(lengths) >= 1 and max(lengths) == longest
    assert lengths.count(longest) == pytest.approx(64 * 0.19, abs=2)
    assert document_lengths(1, 1000) == [417]


def test_lengths_of_a_file(tmp_path: Path):
    file = tmp_path / "lengths.txt"
    file.write_text("10\n300\n20\n40\n")
    assert document_lengths(4, 128, str(file)) == [10, 20, 40, 128]
    assert document_lengths(2, 128, str(file)) == [20, 128]
    assert document_lengths(8, 128, str(file)) == [10, 10, 20, 20, 40, 40, 128, 128]


@pytest.mark.parametrize(
    ("content", "message"),
    [("10\n-3\n", "line 2: '-3' is no number"), ("", "is empty"), ("0\n", "line 1"), (None, "cannot be read")],
)
def test_files_without_lengths_are_refused(content: str | None, message: str, tmp_path: Path):
    file = tmp_path / "lengths.txt"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UserError, match=f"--lengths_file: .*{message}"):
        document_lengths(2, 128, str(file))


def test_padded_and_varlen_rows_hold_the_same_documents():
    name = ModelName.parse("luna-16")
    config = new_config(name, 8, size="tiny")
    padded = new_batch(name, config, "padded", [3, 8, 5], 8, CPU)
    varlen = new_batch(name, config, "varlen", [3, 8, 5], 8, CPU)
    assert padded.num_tokens == varlen.num_tokens == 16
    assert padded.token_mask.sum(dim=1).tolist() == [3, 8, 5]
    assert padded.inputs["attention_mask"].equal(padded.token_mask.long())
    assert (padded.inputs["input_ids"] == config.pad_token_id).equal(~padded.token_mask)
    assert padded.inputs["input_ids"][padded.token_mask].equal(varlen.inputs["input_ids"][0])
    assert padded.labels[padded.token_mask].equal(varlen.labels[0])
    assert (padded.labels[~padded.token_mask] == -100).all()
    assert varlen.inputs["cu_seq_lens_q"].tolist() == [0, 3, 11, 16]
    assert varlen.inputs["max_length_q"] == 8


def test_a_seventh_of_the_tokens_is_labelled():
    name = ModelName.parse("roberta")
    batch = new_batch(name, new_config(name, 512, size="tiny"), "full", [512] * 8, 512, CPU)
    predicted = batch.labels != -100
    assert predicted.float().mean().item() == pytest.approx(0.15, abs=0.02)
    assert batch.labels[predicted].equal(batch.inputs["input_ids"][predicted])
    assert list(batch.inputs) == ["input_ids"]


def test_positions_of_peers_begin_again_with_each_document():
    name = ModelName.parse("roberta+flash")
    batch = new_batch(name, new_config(name, 8, size="tiny"), "varlen", [2, 3], 8, CPU)
    assert batch.inputs["position_ids"].tolist() == [[2, 3, 2, 3, 4]]


def test_models_that_cannot_keep_documents_apart_are_refused():
    name = ModelName.parse("longformer")
    with pytest.raises(UserError, match="longformer cannot keep the documents of a row apart"):
        new_batch(name, new_config(name, 8, size="tiny"), "varlen", [2, 3], 8, CPU)
