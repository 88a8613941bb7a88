"""What a masked language model gives to hidden tokens: rows in batches, shared out over the processes."""

import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, TypeVar, cast

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import nn
from tqdm import tqdm
from transformers import BigBirdForMaskedLM, PreTrainedModel

from pretrain.evaluation.models import MaskedModel, ModelError


T = TypeVar("T")


class MaskedRow(NamedTuple):
    """One input of a model.

    Args:
        input_ids: (tokens,), masks in place.
        places: (predictions,), which of them to predict.
        targets: (predictions,), what was there.
    """

    input_ids: np.ndarray
    places: np.ndarray
    targets: np.ndarray


class Scores(NamedTuple):
    """What a model gave to the targets of its rows, row by row.

    Args:
        log_probabilities: (predictions,), float64, in nats.
        correct: (predictions,), whether the target was the likeliest token.
        tokens: that went through the model, without padding.
        seconds: that the slowest process took.
    """

    log_probabilities: np.ndarray
    correct: np.ndarray
    tokens: int
    seconds: float


class Scorer:
    """A loaded model that scores rows on all processes.

    Args:
        opened: what the model needs of its rows.
        model: its weights, on the device of this process.
        batch_tokens: the places of the largest batch; a single row may have more.
    """

    def __init__(self, opened: MaskedModel, model: PreTrainedModel, batch_tokens: int):
        self.opened = opened
        self.model = model
        self.batch_tokens = batch_tokens

    def score(self, rows: Sequence[MaskedRow], name: str) -> Scores:
        """Score rows; each is scored once, by one of the processes, and all of them get all results.

        Raises:
            ModelError: on all processes, where the model fails on one of them or gives what is not a number.
        """
        state = PartialState()
        batches = self._batches(np.array([len(row.input_ids) for row in rows]))
        mine = batches[state.process_index :: state.num_processes]
        scored = run_together(lambda: self._score(rows, mine, name))
        log_probabilities, correct, seconds = zip(*gather_object([scored]), strict=True)

        first = np.cumsum([0, *(len(row.places) for row in rows)])
        order = [
            np.arange(first[row], first[row + 1])
            for process in range(state.num_processes)
            for batch in batches[process :: state.num_processes]
            for row in batch
        ]
        scores = Scores(
            log_probabilities=np.empty(first[-1]),
            correct=np.empty(first[-1], dtype=bool),
            tokens=sum(len(row.input_ids) for row in rows),
            seconds=max(seconds),
        )
        places = np.concatenate(order)
        scores.log_probabilities[places] = np.concatenate(log_probabilities)
        scores.correct[places] = np.concatenate(correct)
        if not np.isfinite(scores.log_probabilities).all():
            broken = int((~np.isfinite(scores.log_probabilities)).sum())
            raise ModelError(f"{broken} of {first[-1]} log probabilities are not finite numbers")
        return scores

    def _batches(self, lengths: np.ndarray) -> list[np.ndarray]:
        """The rows of each batch: of one length, since several architectures let padding leak into the rest of a row
        (by convolutions, by Fourier transforms, or by a choice of attention that depends on the length of the batch).

        Long ones come first, so that too large a batch shows at once.
        """
        order = np.argsort(-lengths, kind="stable")
        batches = []
        for rows in np.split(order, np.flatnonzero(np.diff(lengths[order])) + 1):
            size = max(1, self.batch_tokens // (self.opened.fixed_length or int(lengths[rows[0]])))
            batches += np.split(rows, range(size, len(rows), size))
        return batches

    @torch.inference_mode()
    def _score(
        self, rows: Sequence[MaskedRow], batches: list[np.ndarray], name: str
    ) -> tuple[np.ndarray, np.ndarray, float]:
        reset_big_bird(self.model)
        log_probabilities, correct = [torch.empty(0)], [torch.empty(0, dtype=torch.bool)]
        started = time.perf_counter()
        # None: no bar where the output is not a terminal.
        hide = None if PartialState().is_main_process else True
        for batch in tqdm(batches, desc=f"{self.opened.name}: {name}", unit="batch", leave=False, disable=hide):
            scored = self._score_batch([rows[row] for row in batch])
            log_probabilities.append(scored[0])
            correct.append(scored[1])
        # One by one on the way they would make the host wait for each batch.
        device = self.model.device
        results = [
            torch.cat([tensor.to(device) for tensor in tensors]).cpu() for tensors in (log_probabilities, correct)
        ]
        return results[0].double().numpy(), results[1].numpy(), time.perf_counter() - started

    def _score_batch(self, rows: list[MaskedRow]) -> tuple[torch.Tensor, torch.Tensor]:
        arrays = (
            np.stack([row.input_ids for row in rows]),
            np.repeat(np.arange(len(rows)), [len(row.places) for row in rows]),
            np.concatenate([row.places for row in rows]),
            np.concatenate([row.targets for row in rows]),
        )
        device = self.model.device
        tensors = [torch.from_numpy(array).to(device, non_blocking=True) for array in arrays]
        input_ids, numbers, places, targets = tensors
        attention_mask = None
        if self.opened.fixed_length is not None:
            input_ids, attention_mask = self._pad(input_ids, self.opened.fixed_length)

        with head_at(self.model, tuple(input_ids.shape), numbers, places):
            logits = self.model(input_ids=input_ids, attention_mask=attention_mask).logits
        if logits.ndim == 3:
            logits = logits[numbers, places]
        log_probabilities = logits.float().log_softmax(dim=-1)
        chosen = log_probabilities.gather(1, targets.unsqueeze(1)).squeeze(1)
        return chosen, log_probabilities.argmax(dim=-1) == targets

    def _pad(self, input_ids: torch.Tensor, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows (rows, length) and what is added to their attention scores, (rows, 1, 1, length).

        Transformers 5.24 makes a mask of the usual form (rows, length) into one that does not fit the landmarks of
        Nystromformer.
        """
        tokenizer = self.opened.encoder.tokenizer
        padding = tokenizer.mask_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        tokens = input_ids.shape[1]
        input_ids = nn.functional.pad(input_ids, (0, length - tokens), value=padding)
        added = torch.zeros(input_ids.shape, dtype=self.model.dtype, device=input_ids.device)
        added[:, tokens:] = torch.finfo(self.model.dtype).min
        return input_ids, added[:, None, None]


@contextmanager
def head_at(
    model: PreTrainedModel, shape: tuple[int, ...], rows: torch.Tensor, places: torch.Tensor
) -> Iterator[None]:
    """Let the last matrix product of a model see the places that are predicted only.

    The logits then are (predictions, vocabulary); where the architecture multiplies in another way they stay (batch,
    length, vocabulary), which for a large vocabulary are gigabytes and most of the time.
    """
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        yield
        return

    def select(module: nn.Module, arguments: tuple):
        states = arguments[0]
        return (states[rows, places],) if states.shape[:-1] == shape else None

    handle = head.register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()


def reset_big_bird(model: PreTrainedModel):
    """Give BigBird its sparse attention back, which it has put off for good at the first short batch."""
    if isinstance(model, BigBirdForMaskedLM):
        model.bert.set_attention_type(model.config.attention_type)


def run_together(work: Callable[[], T]) -> T:
    """Work on every process; the result is that of this one.

    Raises:
        ModelError: on all processes, where one of them fails: the others would wait for it for ever.
    """
    result, problem = None, ""
    try:
        result = work()
    except Exception as error:  # whatever it is, the models that follow can still be evaluated
        problem = str(error).strip() if isinstance(error, (ModelError, OSError, ValueError)) else ""
        if not problem:
            traceback.print_exc()
            problem = f"{type(error).__name__}: {error}"
    problems = [problem for problem in gather_object([problem]) if problem]
    if problems:
        raise ModelError(problems[0])
    return cast(T, result)
