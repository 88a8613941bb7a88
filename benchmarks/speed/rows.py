"""The rows of a batch: documents of random tokens, full, padded, or one after another without padding."""

import math
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

import torch
from transformers import PreTrainedConfig

from benchmarks.speed.models import ModelName
from common.architectures import blocking_mask
from common.errors import UserError
from common.labels import IGNORED


LABELLED = 0.15  # of the tokens
# Logarithms of lengths as shares of a row: documents of the web are spread about so, and when they are cut at the
# length of a row, half of the tokens of padded rows are padding.
LOG_SHARES = NormalDist(mu=-0.875, sigma=1.0)


@dataclass(frozen=True)
class Batch:
    """
    Args:
        inputs: for the model's forward pass.
        labels: of the shape of the tokens; -100 where there is nothing to predict.
        token_mask: of the same shape, False at padding.
        lengths: of the documents.
    """

    inputs: dict
    labels: torch.Tensor
    token_mask: torch.Tensor
    lengths: list[int]

    @property
    def num_tokens(self) -> int:
        """Without padding."""
        return sum(self.lengths)


def document_lengths(count: int, longest: int, file: str | None = None) -> list[int]:
    """So many lengths that stand for all documents: at evenly spaced quantiles, and cut at the length of a row.

    Args:
        longest: the length of a row.
        file: with one length a line; None for a log-normal distribution that scales with the row's length.

    Raises:
        UserError: for a file that cannot be read or holds something else.
    """
    quantiles = [(number + 0.5) / count for number in range(count)]
    if file is None:
        lengths = [longest * math.exp(LOG_SHARES.inv_cdf(quantile)) for quantile in quantiles]
    else:
        known = sorted(read_lengths(Path(file)))
        lengths = [known[int(quantile * len(known))] for quantile in quantiles]
    return [max(1, min(longest, round(length))) for length in lengths]


def read_lengths(path: Path) -> list[int]:
    """
    Raises:
        UserError
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--lengths_file: {path} cannot be read ({error}).") from error
    for number, line in enumerate(lines, start=1):
        if not (line.isascii() and line.strip().isdecimal()) or int(line) == 0:
            raise UserError(
                f"--lengths_file: {path}, line {number}: {line!r} is no number of tokens. Write one of at least 1 a "
                "line, for each document."
            )
    if not lines:
        raise UserError(f"--lengths_file: {path} is empty. Write the number of tokens of a document a line.")
    return [int(line) for line in lines]


def new_batch(
    name: ModelName, config: PreTrainedConfig, rows: str, lengths: list[int], width: int, device: torch.device
) -> Batch:
    """The same documents and labels for every model and for every kind of rows.

    Args:
        rows: `full` or `padded`, a document a row of `width` tokens, or `varlen`, all in one row.
        lengths: of the documents; `full` rows hold documents of `width` tokens.

    Raises:
        UserError: where the model has no way to keep the documents of a row apart.
    """
    generator = torch.Generator().manual_seed(0)
    num_tokens = sum(lengths)
    tokens = torch.randint(4, config.vocab_size, (num_tokens,), generator=generator)
    labels = tokens.masked_fill(torch.rand(num_tokens, generator=generator) >= LABELLED, IGNORED)
    if rows == "varlen":
        token_mask = torch.ones(1, num_tokens, dtype=torch.bool)
        inputs = boundaries(name, lengths)
    else:
        token_mask = torch.arange(width) < torch.tensor(lengths).unsqueeze(1)
        inputs = {} if rows == "full" else padding(name, token_mask)
    inputs["input_ids"] = torch.full(token_mask.shape, config.pad_token_id).masked_scatter(token_mask, tokens)
    labels = torch.full(token_mask.shape, IGNORED).masked_scatter(token_mask, labels)
    inputs = {key: value.to(device) if torch.is_tensor(value) else value for key, value in inputs.items()}
    return Batch(inputs, labels.to(device), token_mask.to(device), lengths)


def padding(name: ModelName, token_mask: torch.Tensor) -> dict:
    """How a model is told of padding."""
    if name.kind == "fnet":  # it mixes padding in
        return {}
    if name.kind == "nystromformer":
        return {"attention_mask": blocking_mask(token_mask)}
    return {"attention_mask": token_mask.long()}


def boundaries(name: ModelName, lengths: list[int]) -> dict:
    """How a model is told of the documents of a row."""
    if not name.takes_varlen:
        raise UserError(f"{name.kind} cannot keep the documents of a row apart without flash attention.")
    ends = torch.tensor([0, *lengths]).cumsum(dim=0).int()
    inputs = {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": max(lengths), "max_length_k": max(lengths)}
    if name.kind != "luna":  # which counts the tokens of each document by itself
        first = 2 if name.kind == "roberta" else 0
        inputs["position_ids"] = torch.cat([torch.arange(length) + first for length in lengths]).unsqueeze(0)
    return inputs
