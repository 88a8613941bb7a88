"""Every key of a pretraining run, and what its values must be."""

import dataclasses
import os
import re
from typing import Annotated, Literal

from common.config.keys import Range, find_problem
from common.config.yaml_config import ConfigurationError, shown, suggest
from pretrain.data.text_source import DocumentMode, OnBadRecord, Source


Packing = Literal["stream", "full_sentences", "best_fit"]
TRACKERS = ("tensorboard", "trackio", "wandb")
# No run comes near these; what lies beyond them is a slip of the pen.
MOST_STEPS, MOST_TOKENS, MOST_HOURS = 10**9, 10**15, 10**5
LARGEST_SIZE = 2**24  # rows, tokens of a vocabulary, and sizes of a model
LARGEST_STEP = 2**28  # places of all rows of a step
# The length of a run, of its warm-up and of its decay in each unit.
LENGTH_KEYS = {
    "steps": ("max_steps", "warmup_steps", "decay_steps"),
    "tokens": ("max_tokens", "warmup_tokens", "decay_tokens"),
    "hours": ("max_train_hours", "warmup_hours", "decay_hours"),
}


@dataclasses.dataclass
class PretrainConfig:
    """Every key of `configs/pretrain/*.yaml`, with its default.

    Names are those of `transformers.TrainingArguments` where it has them. Unlike there, `batch_size` is the number of
    rows of one optimiser step over all processes and accumulation steps together: a run keeps its curve when it moves
    to another number of processes.
    """

    output_dir: str
    """The run's folder: checkpoints, metrics, curves and the finished model."""

    # Data and rows
    data: str | list = "python-docs"
    """`python-docs`, a dataset id of the Hub, local files, folders or globs; or mappings with the fields of
    `pretrain.data.text_source.Source` (docs/pretraining-data.md)."""
    text_column: str = "text"
    """Column of tables, and key of JSON lines, that holds the text."""
    documents: DocumentMode = "auto"
    """What a document is in a text file."""
    validation_share: Annotated[float, Range(0, 1, above=True, below=True)] = 0.02
    """Share of the documents held out for validation."""
    on_bad_record: OnBadRecord = "error"
    """What is done with a record that cannot be read; skip leaves it out and counts it."""
    prepared_dir: str = "data/prepared"
    """Folder of prepared data, which runs share."""
    num_proc: Annotated[int | None, Range(1, 1024)] = None
    """Processes that prepare the data; null: one for each core."""
    packing: Packing = "stream"
    """stream cuts the stream of documents anywhere; full_sentences (RoBERTa's) only between sentences; best_fit fills
    rows with whole documents, each with its own positions and packed state."""

    # Tokenizer
    tokenizer: str | None = None
    """Folder or Hub id; null: train one on the data."""
    vocab_size: Annotated[int, Range(1, LARGEST_SIZE)] = 16384
    """Tokens of a tokenizer that is trained."""
    tokenizer_train_megabytes: Annotated[int, Range(1, 10**6)] = 200
    """Megabytes of text that a tokenizer is trained on, sampled from all of it."""
    max_length: Annotated[int, Range(8, 2**20)] = 512
    """Tokens of a row."""

    # Model
    model_type: str = "luna"
    """Architecture: luna, or another masked language model of Transformers for comparisons, on stream or
    full_sentences."""
    model_config: str | None = None
    """JSON file of fields of the model's configuration."""
    model: dict = dataclasses.field(default_factory=dict)
    """Fields of the model's configuration on top of model_config (for luna docs/model.md), also as --model.FIELD."""
    init_from: str | None = None
    """Model to start from, a folder or an id of the Hub (ID@REVISION for a revision). It gives the architecture and,
    where none is named, the tokenizer; `model` may change dropout, convolution, positions and vocabulary alone."""
    attn_implementation: str | None = None
    """eager, sdpa, flex_attention or flash_attention_2; null: the model's choice."""

    # Objective
    masking: Literal["token", "whole_word", "span"] = "token"
    """What is predicted; a span is one to ten whole words."""
    mask_probability: Annotated[float, Range(0, 1, above=True, below=True)] = 0.15
    """Share of the tokens that are predicted."""
    mask_probability_end: Annotated[float | None, Range(0, 1, above=True, below=True)] = None
    """Share at the end, reached in a straight line; null: it stays."""
    mask_probability_steps: Annotated[int | None, Range(1, MOST_STEPS)] = None
    """Steps after which that end is reached; null: those of the run."""
    mean_span_length: Annotated[float, Range(1, 5)] = 3.0
    """Mean length of spans, in words."""

    # Length of the run: One of the max_* is needed, and warm-up and decay are in its unit.
    max_steps: Annotated[int | None, Range(1, MOST_STEPS)] = None
    """Length of the run in optimiser steps."""
    warmup_steps: Annotated[int | None, Range(0, MOST_STEPS)] = None
    """Steps over which the learning rate rises; null: 6 % of the run."""
    decay_steps: Annotated[int | None, Range(0, MOST_STEPS)] = None
    """Steps over which the trapezoidal schedule falls; null: 10 % of the run."""
    max_tokens: Annotated[int | None, Range(1, MOST_TOKENS)] = None
    """Length of the run in tokens (places of rows, padding included), instead of max_steps."""
    warmup_tokens: Annotated[int | None, Range(0, MOST_TOKENS)] = None
    """Tokens over which the learning rate rises; null: 6 % of the run."""
    decay_tokens: Annotated[int | None, Range(0, MOST_TOKENS)] = None
    """Tokens over which the trapezoidal schedule falls; null: 10 % of the run."""
    max_train_hours: Annotated[float | None, Range(0, MOST_HOURS, above=True)] = None
    """Length of the run in hours of training, instead of max_steps."""
    warmup_hours: Annotated[float | None, Range(0, MOST_HOURS)] = None
    """Hours over which the learning rate rises; null: 6 % of the run."""
    decay_hours: Annotated[float | None, Range(0, MOST_HOURS)] = None
    """Hours over which the trapezoidal schedule falls; null: 10 % of the run."""
    lr_scheduler_type: Literal["linear", "cosine", "trapezoidal"] = "linear"
    """Schedule after the warm-up."""
    learning_rate: Annotated[float, Range(0, 10**6, above=True)] = 6e-4
    """Learning rate at the end of the warm-up."""
    min_learning_rate: Annotated[float, Range(0, 10**6)] = 0.0
    """Learning rate that the schedule reaches after the last step."""

    # Optimisation: The defaults are those of the paper's appendix.
    seed: Annotated[int, Range(0, 2**63, below=True)] = 0
    """Seed of weights, rows, masks and dropout."""
    batch_size: Annotated[int, Range(1, LARGEST_SIZE)] = 256
    """Rows of one optimiser step, over all processes and accumulation steps together."""
    batch_size_start: Annotated[int | None, Range(1, LARGEST_SIZE)] = None
    """Rows of the first steps, which rise to batch_size; null: no rise."""
    batch_size_ramp_steps: Annotated[int, Range(0, 10**6)] = 0
    """Steps over which the batch rises from batch_size_start."""
    max_length_start: Annotated[int | None, Range(4, 2**20)] = None
    """Tokens of the pieces into which the first steps cut their rows, doubled in stages up to max_length; null: whole
    rows."""
    max_length_ramp_steps: Annotated[int, Range(0, MOST_STEPS)] = 0
    """Steps over which the rows grow from max_length_start."""
    per_device_train_batch_size: Annotated[int | None, Range(1, LARGEST_SIZE)] = None
    """Rows that a process takes at once at most; null: all its share."""
    optimizer: Literal["adamw", "stable_adamw"] = "adamw"
    """Optimiser."""
    adam_beta1: Annotated[float, Range(0, 1, below=True)] = 0.9
    """Decay of the mean of the gradients."""
    adam_beta2: Annotated[float, Range(0, 1, below=True)] = 0.98
    """Decay of the mean of their squares."""
    adam_epsilon: Annotated[float, Range(0, 1, above=True)] = 1e-6
    """Added to the divisor of a step."""
    weight_decay: Annotated[float, Range(0, 1000)] = 0.01
    """Decoupled weight decay; biases and norms have none."""
    max_grad_norm: Annotated[float, Range(0, 1e9, above=True)] = 1.0
    """Norm that gradients are clipped to."""
    mixed_precision: Literal["no", "bf16"] | None = None
    """Precision of the computation; null: as the launcher says."""
    gradient_checkpointing: bool | Literal["selective"] = False
    """true computes layers again in the backward pass; selective only what is cheap of them."""
    torch_compile: bool = False
    """Compile layers, head and loss."""
    max_skipped_in_a_row: Annotated[int, Range(1, MOST_STEPS)] = 10
    """Steps in a row without a finite loss and gradient after which the run ends."""

    # Averaged weights: A second set of weights, the average over steps.
    weight_averaging: Literal["exponential", "stage"] | None = None
    """How weights are averaged; stage is the plain mean, null no average."""
    averaging_decay: Annotated[float, Range(0, 1, below=True)] = 0.999
    """Weight of the old average in the exponential one."""
    averaging_start_step: Annotated[int, Range(0, MOST_STEPS)] = 0
    """Step from which weights are averaged."""
    averaging_interval: Annotated[int, Range(1, MOST_STEPS)] = 1
    """Steps between two that are averaged."""

    # What is written
    logging_steps: Annotated[int, Range(1, MOST_STEPS)] = 10
    """Steps between two lines of metrics."""
    eval_steps: Annotated[int, Range(0, MOST_STEPS)] = 100
    """Steps between two evaluations; 0: one at the end."""
    max_eval_rows: Annotated[int | None, Range(1, 10**12)] = None
    """Validation rows that an evaluation reads at most; null: all."""
    save_steps: Annotated[int, Range(0, MOST_STEPS)] = 500
    """Steps between two checkpoints; 0: one at the end."""
    save_total_limit: Annotated[int | None, Range(1, MOST_STEPS)] = 3
    """Newest checkpoints that are kept, besides that of the lowest validation loss; null: all."""
    keep_every: Annotated[int | None, Range(1, MOST_STEPS)] = None
    """Checkpoints at multiples of so many steps are kept, too."""
    on_bad_checkpoint: Literal["error", "previous"] = "error"
    """What is done where the last checkpoint is damaged; previous resumes from the newest one that is whole."""
    max_time: str | None = None
    """HH:MM:SS after which the run writes a checkpoint and ends, to be resumed by the same command."""
    dataloader_num_workers: Annotated[int, Range(0, 256)] = 1
    """Processes that make batches; 0: the training process does it."""

    # The Hub: Each checkpoint becomes a commit on main and a tag step-N, the finished model the tag final.
    push_to_hub: str | None = None
    """Repository that checkpoints and the model go to, NAMESPACE/NAME."""
    hub_private_repo: bool | None = None
    """Whether a new repository is private; null: as the namespace has it."""
    hub_overwrite: bool = False
    """Use a repository that holds other files and tags, replacing those of the same names."""
    hub_wait: str = "00:30:00"
    """HH:MM:SS for which the end of the run waits for uploads."""
    hub_max_waiting: Annotated[int | None, Range(1, MOST_STEPS)] = 10
    """Checkpoints deleted here that wait for the Hub at most; null: all."""
    language: str | list | None = None
    """ISO 639 codes of the text, for the model card."""
    license: str | None = None
    """License of the model, for the model card."""
    report_to: str | list = dataclasses.field(default_factory=list)
    """Trackers besides metrics.jsonl: tensorboard, trackio, wandb, or several."""
    project: str = "luna"
    """Project of the trackers; there the run has the name of its folder."""

    def sources(self) -> list[Source]:
        """The entries of `data`, each with its own fields or those of the run."""
        entries = self.data if isinstance(self.data, list) else [self.data]
        if not entries:
            raise ConfigurationError("data: name at least one source.")
        defaults = {
            "text_column": self.text_column,
            "documents": self.documents,
            "on_bad_record": self.on_bad_record,
        }
        fields = [field.name for field in dataclasses.fields(Source)]
        sources = []
        for entry in entries:
            entry = {"path": entry} if isinstance(entry, str) else entry
            if not isinstance(entry, dict) or "path" not in entry:
                raise ConfigurationError(f"data: {shown(entry)} is neither a path nor a mapping with the key 'path'.")
            for key in entry:
                if key not in fields:
                    raise ConfigurationError(f"data: unknown key {key!r} of {entry['path']}.{suggest(key, fields)}")
            sources.append(Source(**{**defaults, **entry}))
        return sources

    def validate(self):
        """
        Raises:
            ConfigurationError: where the value of a key is invalid. What `model` holds is checked where the model's
                configuration is made (`pretrain.models.configuration`).
        """
        from pretrain.data.mixture import check_weights
        from pretrain.data.tokenizer import SMALLEST_VOCABULARY

        if found := find_problem(self):
            self._require(found[0], False, found[1])
        if self.tokenizer is None:
            self._require(
                "vocab_size",
                self.vocab_size >= SMALLEST_VOCABULARY,
                f"must be at least {SMALLEST_VOCABULARY}, the bytes and the special tokens",
            )
        self._require(
            "gradient_checkpointing",
            self.gradient_checkpointing != "selective" or self.model_type == "luna",
            "is for luna alone, since others may change in place what is kept: give true",
        )
        self._require(
            "min_learning_rate",
            self.min_learning_rate <= self.learning_rate,
            f"must not exceed learning_rate ({self.learning_rate})",
        )
        self._validate_length()
        places = self.batch_size * self.max_length
        self._require(
            "batch_size",
            places <= LARGEST_STEP,
            f"makes steps of {places:,} tokens with max_length {self.max_length:,}; {LARGEST_STEP:,} are the most",
        )
        self._require(
            "batch_size_start",
            self.batch_size_start is None or self.batch_size_start <= self.batch_size,
            f"must not exceed batch_size ({self.batch_size})",
        )
        self._validate_length_ramp()
        for tracker in [self.report_to] if isinstance(self.report_to, str) else self.report_to:
            self._require("report_to", tracker in TRACKERS, f"must be one or several of {', '.join(TRACKERS)}")
        self._require("project", bool(self.project), "must not be empty")
        languages = self.language if isinstance(self.language, list) else []
        self._require("language", all(isinstance(code, str) for code in languages), "must be a code or a list of them")
        self.max_time_seconds()
        self.hub_wait_seconds()
        if self.push_to_hub is not None:
            self._validate_repository(self.push_to_hub)
        check_weights([source.weight for source in self.sources()])
        if self.init_from is not None:
            self._require("model_config", self.model_config is None, "must be null where init_from gives the model")
            self._require(
                "model_type", self.model_type == "luna", "must be luna, the only architecture that init_from takes"
            )

    def _validate_length(self):
        units = [unit for unit, keys in LENGTH_KEYS.items() if getattr(self, keys[0]) is not None]
        if len(units) != 1:
            given = ", ".join(LENGTH_KEYS[unit][0] for unit in units) or "none"
            raise ConfigurationError(
                f"The run needs one of max_steps, max_tokens and max_train_hours; given: {given}. The command line "
                "takes a key of the file back with `--KEY null`."
            )
        for unit, keys in LENGTH_KEYS.items():
            for key in keys:
                value = getattr(self, key)
                self._require(
                    key, value is None or unit == units[0], f"must be null, as the run's length is in {units[0]}"
                )
        self._require(
            "averaging_start_step",
            self.max_steps is None or self.averaging_start_step <= self.max_steps,
            f"exceeds max_steps ({self.max_steps})",
        )
        end, warmup, decay = LENGTH_KEYS[units[0]]
        for key in (warmup, decay):
            value = getattr(self, key)
            self._require(key, value is None or value <= getattr(self, end), f"exceeds {end} ({getattr(self, end)})")
        self._require(
            decay,
            getattr(self, decay) is None or self.lr_scheduler_type == "trapezoidal",
            "must be null, as only the trapezoidal schedule has a decay of its own",
        )
        self._require(
            "mask_probability_end",
            self.mask_probability_end is None or units[0] != "hours" or self.mask_probability_steps is not None,
            "needs mask_probability_steps where the length is in hours: masks must not depend on the clock",
        )
        self._require(
            "mask_probability_steps",
            self.mask_probability_steps is None or self.mask_probability_end is not None,
            "must be null without mask_probability_end",
        )

    def _validate_length_ramp(self):
        start, steps = self.max_length_start, self.max_length_ramp_steps
        if start is None:
            self._require("max_length_ramp_steps", steps == 0, "must be 0 without max_length_start")
            return
        pieces = self.max_length // start
        doublings = pieces.bit_length() - 1
        self._require(
            "max_length_start",
            pieces * start == self.max_length and pieces.bit_count() == 1,
            f"must be max_length ({self.max_length}) halved several times",
        )
        self._require(
            "max_length_ramp_steps", steps >= doublings, f"must be at least {doublings}, a step for each length"
        )
        self._require(
            "max_length_start",
            self.packing != "best_fit",
            "must be null with best_fit, which packs whole documents already",
        )

    def trackers(self) -> list[str]:
        """`report_to` as a list, each tracker once."""
        return [self.report_to] if isinstance(self.report_to, str) else list(dict.fromkeys(self.report_to))

    def preparation_processes(self) -> int:
        """`num_proc`, or the cores that this process may use."""
        return self.num_proc or len(os.sched_getaffinity(0))

    def max_time_seconds(self) -> float:
        """`max_time` in seconds; infinite without it."""
        return float("inf") if self.max_time is None else _seconds("max_time", self.max_time)

    def hub_wait_seconds(self) -> float:
        """`hub_wait` in seconds."""
        return _seconds("hub_wait", self.hub_wait)

    def _validate_repository(self, repository: str):
        from huggingface_hub.utils import HFValidationError, validate_repo_id

        try:
            validate_repo_id(repository)
        except HFValidationError as error:
            raise ConfigurationError(f"push_to_hub: {error}") from error
        self._require("push_to_hub", "/" in repository, "must have the form USER/NAME or ORGANISATION/NAME")

    def _require(self, key: str, fulfilled: bool, message: str):
        if not fulfilled:
            raise ConfigurationError(f"{key} is {shown(getattr(self, key))}: it {message}.")


def _seconds(key: str, time: str) -> float:
    """The seconds of HH:MM:SS."""
    match = re.fullmatch(r"([0-9]{1,6}):([0-5][0-9]):([0-5][0-9])", time)
    if match is None:
        raise ConfigurationError(
            f"{key} is {shown(time)}: it must have the form HH:MM:SS, such as 11:30:00, with six digits of hours at "
            "most."
        )
    hours, minutes, seconds = map(int, match.groups())
    return 3600.0 * hours + 60 * minutes + seconds
