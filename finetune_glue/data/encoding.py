"""From rows of text to token ids: single sentences, pairs, and the choices of a question."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from transformers import BatchEncoding, PreTrainedTokenizerBase

from common.errors import UserError
from common.labels import IGNORED
from experiments.progress import ignore
from finetune_glue.data.task_data import TaskData
from finetune_glue.data.tasks import Task


CHUNK = 1000  # sequences that the tokenizer gets at once
GAP = "_"  # in the questions of RACE: where the choice belongs


class Row(NamedTuple):
    """One row.

    Args:
        columns: of each the sequences, (tokens,); one sequence but for multiple choice.
        label: int64 or float32.
    """

    columns: dict[str, list[np.ndarray]]
    label: np.generic | None


@dataclass(frozen=True)
class EncodedRows(torch.utils.data.Dataset):
    """The token ids of a split, all sequences one behind the other.

    Args:
        columns: what the tokenizer gives beside the mask, `input_ids` and perhaps `token_type_ids`, each (tokens,).
        starts: (sequences + 1,), where each sequence begins; a row has `choices` sequences.
        choices: 1 but for multiple choice.
        labels: (rows,), int64 or float32; None where the split has none.
        truncated: the number of rows that were cut.
    """

    columns: dict[str, np.ndarray]
    starts: np.ndarray
    choices: int
    labels: np.ndarray | None
    truncated: int

    def __len__(self) -> int:
        return (len(self.starts) - 1) // self.choices

    def __getitem__(self, row: int) -> Row:
        """A row; asked for as `~row` it comes without its label, and counts for nothing in a loss."""
        first = (row if row >= 0 else ~row) * self.choices
        ends = self.starts[first : first + self.choices + 1].tolist()
        return Row(
            {
                name: [values[start:end] for start, end in zip(ends[:-1], ends[1:], strict=True)]
                for name, values in self.columns.items()
            },
            None if self.labels is None else self.labels[row] if row >= 0 else self.labels.dtype.type(IGNORED),
        )

    @property
    def lengths(self) -> np.ndarray:
        """(rows,), the tokens of each row's longest sequence."""
        return np.diff(self.starts).reshape(-1, self.choices).max(axis=1)


def encode(
    data: TaskData,
    split: str,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    vocab_size: int,
    on_progress: Callable[[str, int, int], object] = ignore,
) -> EncodedRows:
    """Encode a split; rows of more than `max_length` tokens are cut at the end of their longer text.

    Args:
        max_length: tokens of a sequence, special ones included.
        vocab_size: number of tokens that the model embeds.
        on_progress: called with what is going on, and how many of how many sequences are done.

    Raises:
        UserError: for a token that the model does not embed.
    """
    task, rows = data.task, data.splits[split]
    firsts, seconds = sequences(task, {name: rows[name][:] for name in (*task.text_columns, *task.choice_columns)})
    names = [name for name in tokenizer.model_input_names if name != "attention_mask"]
    parts: dict[str, list[np.ndarray]] = {name: [] for name in names}
    lengths: list[int] = []
    cut: list[int] = []
    for start in range(0, len(firsts), CHUNK):
        on_progress(f"tokenising {split}", start, len(firsts))
        first = firsts[start : start + CHUNK]
        second = None if seconds is None else seconds[start : start + CHUNK]
        encoded = _tokenize(tokenizer, first, second)
        long = [place for place, ids in enumerate(encoded["input_ids"]) if len(ids) > max_length]
        if long:
            shorter = _tokenize(
                tokenizer,
                [first[place] for place in long],
                None if second is None else [second[place] for place in long],
                truncation=True,
                max_length=max_length,
            )
            for name in names:
                for place, values in zip(long, shorter[name], strict=True):
                    encoded[name][place] = values
        for name in names:
            parts[name] += [np.array(values, dtype=np.int32) for values in encoded[name]]
        lengths += map(len, encoded["input_ids"])
        cut += [start + place for place in long]
    choices = len(task.choice_columns) or 1
    labels = None
    if "label" in rows.column_names:
        labels = np.array(rows["label"][:], dtype=np.float32 if task.problem == "regression" else np.int64)
    columns = {name: np.concatenate(arrays) for name, arrays in parts.items()}
    starts = np.cumsum([0, *lengths])
    _check_vocabulary(columns["input_ids"], starts, choices, tokenizer, vocab_size, f"{task.name}, {split}")
    return EncodedRows(
        columns=columns,
        starts=starts,
        choices=choices,
        labels=labels,
        truncated=len({place // choices for place in cut}),
    )


def sequences(task: Task, columns: dict[str, list[str]]) -> tuple[list[str], list[str] | None]:
    """The first and the second text of each sequence; a question has one for each of its choices.

    A choice stands in the gap of the question, if there is one, or behind it; a text that both are about comes first.
    """
    texts = [columns[name] for name in task.text_columns]
    if not task.choice_columns:
        return texts[0], texts[1] if len(texts) > 1 else None
    firsts, seconds = [], []
    for (*contexts,) in zip(*texts, *(columns[name] for name in task.choice_columns), strict=True):
        for choice in contexts[len(texts) :]:
            firsts.append(contexts[0])
            seconds.append(choice if len(texts) == 1 else _answered(contexts[1], choice))
    return firsts, seconds


def _answered(question: str, choice: str) -> str:
    return question.replace(GAP, choice) if GAP in question else f"{question} {choice}"


def _tokenize(
    tokenizer: PreTrainedTokenizerBase, first: list[str], second: list[str] | None, **options
) -> BatchEncoding:
    return tokenizer(first, second, return_attention_mask=False, split_special_tokens=True, verbose=False, **options)


def _check_vocabulary(
    ids: np.ndarray,
    starts: np.ndarray,
    choices: int,
    tokenizer: PreTrainedTokenizerBase,
    vocab_size: int,
    where: str,
):
    unknown = np.flatnonzero(ids >= vocab_size)
    if len(unknown):
        place, token = int(unknown[0]), int(ids[unknown[0]])
        row = (int(np.searchsorted(starts, place, side="right")) - 1) // choices
        raise UserError(
            f"{where}, row {row}: the token {tokenizer.convert_ids_to_tokens(token)!r} has the id {token}, but the "
            f"model embeds {vocab_size} tokens: the tokenizer in its folder is not the one it was trained with."
        )
