"""Masked language models of Transformers: opening them, and what they give to hidden tokens.

`MaskedModel.open` reads the configuration and the tokenizer, `MaskedModel.load` the weights; `Scorer.score` puts rows
into batches and shares these out over the processes.
"""

import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, TypeVar, cast

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import nn
from transformers import (
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    AutoModelForMaskedLM,
    AutoTokenizer,
    BigBirdForMaskedLM,
    NystromformerForMaskedLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.nystromformer.modeling_nystromformer import NystromformerSelfAttention

import modeling_luna  # noqa: F401  (makes the Auto classes know Luna)
from common.architectures import (
    NO_LIMIT,
    blocking_mask,
    describe_mismatch,
    fixed_length,
    located,
    position_limits,
    why_not_loaded,
)
from common.signs_of_life import with_progress


T = TypeVar("T")


class ModelError(ValueError):
    """A model that cannot be evaluated, or not on this input; the others still can."""


class Encoded(NamedTuple):
    """The tokens of a text, without those that the tokenizer puts before and after it.

    Args:
        ids: (tokens,), int32.
        offsets: (tokens, 2), the characters from which each token was made.
        word_ids: (tokens,), the word of each token as the tokenizer splits them.
    """

    ids: np.ndarray
    offsets: np.ndarray
    word_ids: np.ndarray


class TextEncoder:
    """A tokenizer that says which characters each token was made of.

    Args:
        tokenizer: must have a fast version, which alone knows of characters, and a mask token.

    Raises:
        ModelError: where it has not.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        if not tokenizer.is_fast:
            raise ModelError("its tokenizer has no fast version, which alone knows the characters of each token")
        if tokenizer.mask_token_id is None:
            raise ModelError("its tokenizer has no mask token")
        if len(tokenizer) <= len(tokenizer.all_special_ids):
            # What Transformers makes of a folder without the files of the vocabulary.
            raise ModelError("its tokenizer has special tokens only: its vocabulary is not there")
        self.tokenizer = tokenizer
        self.mask_token_id: int = tokenizer.mask_token_id
        self.unk_token_id: int | None = tokenizer.unk_token_id
        probe = tokenizer("a", return_special_tokens_mask=True)
        text = np.flatnonzero(np.array(probe["special_tokens_mask"]) == 0)
        if not len(text):
            raise ModelError("its tokenizer makes no token of the letter 'a'")
        ids = np.array(probe["input_ids"], dtype=np.int32)
        self.before, self.after = ids[: text[0]], ids[text[-1] + 1 :]

    @cached_property
    def key(self) -> tuple:
        """The same for tokenizers that do the same."""
        tokenizer = self.tokenizer
        return tokenizer.backend_tokenizer.to_str(), len(tokenizer), self.mask_token_id, self.unk_token_id

    @property
    def num_special_tokens(self) -> int:
        return len(self.before) + len(self.after)

    def encode(self, texts: list[str]) -> list[Encoded]:
        """Encode texts; the names of special tokens in them are words like others."""
        batch = self.tokenizer(
            texts,
            add_special_tokens=False,
            split_special_tokens=True,
            truncation=False,
            padding=False,
            return_offsets_mapping=True,
            verbose=False,
        )
        return [
            Encoded(
                ids=np.array(ids, dtype=np.int32),
                offsets=np.array(offsets, dtype=np.int64).reshape(-1, 2),
                word_ids=np.array(batch.word_ids(text), dtype=np.int64),
            )
            for text, (ids, offsets) in enumerate(zip(batch["input_ids"], batch["offset_mapping"], strict=True))
        ]

    def row(self, ids: np.ndarray) -> np.ndarray:
        """Tokens of a text as a row for the model."""
        return np.concatenate([self.before, ids, self.after])


@dataclass
class MaskedModel:
    """A masked language model without its weights.

    Args:
        name: a folder, or an id of the Hub, with `@REVISION` for one that is not the newest.
        config: of the model.
        encoder: its tokenizer.
        max_length: the number of tokens that a row may hold; None where it has no limit.
        fixed_length: what every row must be padded to, for architectures that take rows of one length only.
        trust_remote_code: whether the model may run Python code that it brings along.
    """

    name: str
    config: PreTrainedConfig
    encoder: TextEncoder
    max_length: int | None
    fixed_length: int | None
    trust_remote_code: bool

    @classmethod
    def open(cls, name: str, trust_remote_code: bool) -> "MaskedModel":
        """Read the configuration and the tokenizer of a model.

        Raises:
            ModelError: where it is not a masked language model with a fast tokenizer, or cannot be loaded.
        """
        with _explained():
            path, arguments = located(name, trust_remote_code)
            config = AutoConfig.from_pretrained(path, **arguments)
        known = type(config) in MODEL_FOR_MASKED_LM_MAPPING
        brought = trust_remote_code and "AutoModelForMaskedLM" in (getattr(config, "auto_map", None) or {})
        if config.is_encoder_decoder or not (known or brought):
            raise ModelError(
                f"{config.model_type} is no masked language model: AutoModelForMaskedLM has no class for it"
            )
        with _explained():
            encoder = TextEncoder(AutoTokenizer.from_pretrained(path, **arguments))
        length = fixed_length(config)
        with _explained(), torch.device("meta"):
            skeleton = AutoModelForMaskedLM.from_config(config, trust_remote_code=trust_remote_code)
        max_length = min([*position_limits(skeleton), encoder.tokenizer.model_max_length, length or NO_LIMIT])
        return cls(
            name=name,
            config=config,
            encoder=encoder,
            max_length=max_length if max_length < NO_LIMIT else None,
            fixed_length=length,
            trust_remote_code=trust_remote_code,
        )

    def takes(self, length: int) -> bool:
        """Whether rows of so many tokens fit."""
        return self.max_length is None or length <= self.max_length

    def load(self, dtype: torch.dtype, device: torch.device, batch_tokens: int) -> "Scorer":
        """Load the weights.

        Args:
            dtype, device: of the weights.
            batch_tokens: the places of the largest batch; a single row may have more.

        Raises:
            ModelError: where they cannot be loaded, or some of them are not there, so that they would be random.
        """
        path, arguments = located(self.name, self.trust_remote_code)
        with _explained():
            weights, report = AutoModelForMaskedLM.from_pretrained(
                path,
                dtype=dtype,
                return_dict=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **arguments,
            )
        if report["mismatched_keys"]:
            raise ModelError(describe_mismatch(report["mismatched_keys"]))
        missing = sorted(report["missing_keys"])
        if missing:
            names = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
            raise ModelError(
                f"{len(missing)} of its weights are not there ({names}): it has no masked-LM head, or a part"
            )
        vocabulary, embedded = len(self.encoder.tokenizer), weights.get_input_embeddings().weight.shape[0]
        if vocabulary > embedded:
            raise ModelError(
                f"its tokenizer has {vocabulary} tokens, but the model embeds {embedded}: they do not belong together"
            )
        if isinstance(weights, NystromformerForMaskedLM):
            _invert_row_by_row(weights)
        return Scorer(self, weights.eval().to(device), batch_tokens)


@contextmanager
def _explained() -> Iterator[None]:
    """Make a `ModelError` of whatever loading a model ends in."""
    try:
        yield
    except (ModelError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise ModelError(why_not_loaded(error)) from error


def _invert_row_by_row(model: NystromformerForMaskedLM):
    """Let no row of a batch change another: Nystromformer scales the matrices that it inverts by their common maximum.

    In float32, which the inversion needs whatever the dtype of the model is.
    """
    for module in model.modules():
        if isinstance(module, NystromformerSelfAttention):

            def invert(matrices: torch.Tensor, invert_together=module.iterative_inv) -> torch.Tensor:
                rows = [invert_together(row) for row in matrices.float().split(1)]
                return torch.cat(rows).to(matrices.dtype)

            module.iterative_inv = invert  # type: ignore[method-assign]


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
        weights: on the device of this process.
        batch_tokens: the places of the largest batch; a single row may have more.
    """

    def __init__(self, opened: MaskedModel, weights: PreTrainedModel, batch_tokens: int):
        self.opened = opened
        self.weights = weights
        self.batch_tokens = batch_tokens

    def score(self, rows: Sequence[MaskedRow], title: str) -> Scores:
        """Score rows; each is scored once, by one of the processes, and all of them get all results.

        Which rows are in a batch together does not depend on the number of processes.

        Raises:
            ModelError: on all processes, where the model fails on one of them or gives what is not a number.
        """
        state = PartialState()
        batches = self._batches(np.array([len(row.input_ids) for row in rows]))
        mine = batches[state.process_index :: state.num_processes]
        scored = run_together(lambda: self._score(rows, mine, title))
        log_probabilities, correct, seconds = zip(*gather_object([scored]), strict=True)

        first = np.cumsum([0, *(len(row.places) for row in rows)])
        order = [
            np.arange(first[row], first[row + 1])
            for process in range(state.num_processes)
            for batch in batches[process :: state.num_processes]
            for row in batch
        ]
        places = np.concatenate(order)
        scores = Scores(
            log_probabilities=np.empty(first[-1]),
            correct=np.empty(first[-1], dtype=bool),
            tokens=sum(len(row.input_ids) for row in rows),
            seconds=max(seconds),
        )
        scores.log_probabilities[places] = np.concatenate(log_probabilities)
        scores.correct[places] = np.concatenate(correct)
        broken = int((~np.isfinite(scores.log_probabilities)).sum())
        if broken:
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
        self, rows: Sequence[MaskedRow], batches: list[np.ndarray], title: str
    ) -> tuple[np.ndarray, np.ndarray, float]:
        if isinstance(self.weights, BigBirdForMaskedLM):
            # It puts its sparse attention off for good at the first short batch.
            self.weights.bert.set_attention_type(self.weights.config.attention_type)
        started = time.perf_counter()
        shown: Iterable[np.ndarray] = batches
        if PartialState().is_main_process:
            shown = with_progress(batches, f"{self.opened.name}: {title}", "batches", total=len(batches))
        scored = [self._score_batch([rows[row] for row in batch]) for batch in shown]
        if not scored:
            return np.empty(0), np.empty(0, dtype=bool), 0.0
        # Here and not batch by batch, which would make the host wait for each of them.
        log_probabilities, correct = (torch.cat(tensors).cpu() for tensors in zip(*scored, strict=True))
        return log_probabilities.double().numpy(), correct.numpy(), time.perf_counter() - started

    def _score_batch(self, rows: list[MaskedRow]) -> tuple[torch.Tensor, torch.Tensor]:
        arrays = (
            np.stack([row.input_ids for row in rows]),
            np.repeat(np.arange(len(rows)), [len(row.places) for row in rows]),
            np.concatenate([row.places for row in rows]),
            np.concatenate([row.targets for row in rows]),
        )
        device = self.weights.device
        input_ids, numbers, places, targets = (
            torch.from_numpy(array).to(device, torch.long, non_blocking=True) for array in arrays
        )
        attention_mask = None
        if self.opened.fixed_length is not None:
            input_ids, attention_mask = self._pad(input_ids, self.opened.fixed_length)

        with _head_at(self.weights, tuple(input_ids.shape), numbers, places):
            logits = self.weights(input_ids=input_ids, attention_mask=attention_mask).logits
        if logits.ndim == 3:
            logits = logits[numbers, places]
        log_probabilities = logits.float().log_softmax(dim=-1)
        chosen = log_probabilities.gather(1, targets.unsqueeze(1)).squeeze(1)
        return chosen, log_probabilities.argmax(dim=-1) == targets

    def _pad(self, input_ids: torch.Tensor, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows (rows, length) and their mask, as Nystromformer takes it."""
        tokenizer = self.opened.encoder.tokenizer
        padding = tokenizer.mask_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        tokens = input_ids.shape[1]
        input_ids = nn.functional.pad(input_ids, (0, length - tokens), value=padding)
        mask = torch.arange(length, device=input_ids.device).expand(input_ids.shape) < tokens
        return input_ids, blocking_mask(mask, self.weights.dtype)


@contextmanager
def _head_at(
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


def run_together(work: Callable[[], T], one_by_one: bool = False) -> T:
    """Work on every process; the result is that of this one.

    Args:
        work: what each process does.
        one_by_one: let the first process of each machine finish before the others of it begin: it leaves files in a
            cache that they read.

    Raises:
        ModelError: on all processes, where one of them fails: the others would wait for it for ever.
    """
    result, problem = None, ""
    state = PartialState()
    if one_by_one and not state.is_local_main_process:
        state.wait_for_everyone()
    try:
        result = work()
    except (ModelError, OSError, ValueError) as error:
        problem = str(error).strip() or type(error).__name__
    except torch.OutOfMemoryError as error:
        problem = f"out of memory: a smaller --batch_size needs less ({error})"
    except Exception as error:  # whatever it is, the models that follow can still be evaluated
        traceback.print_exc()
        problem = f"{type(error).__name__}: {error}"
    if one_by_one and state.is_local_main_process:
        state.wait_for_everyone()
    problems = [problem for problem in gather_object([problem]) if problem]
    if problems:
        raise ModelError(problems[0])
    return cast(T, result)
