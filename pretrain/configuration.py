"""The configuration of a pretraining run: a YAML file, with `--key value` overrides."""

import dataclasses
import math
import re
import typing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.yaml_config import ConfigurationError, read_json, read_values, suggest
from pretrain.data.text_source import ON_BAD_RECORD, Source


if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from modeling_luna import LunaConfig

# What a saved configuration holds besides the fields of the model.
IGNORED_MODEL_KEYS = ("architectures", "auto_map", "dtype", "model_type", "transformers_version")
TRACKERS = ("tensorboard", "trackio", "wandb")
CHOICES = {
    "masking": ("token", "whole_word", "span"),
    "lr_scheduler_type": ("linear", "cosine", "trapezoidal"),
    "optimizer": ("adamw", "stable_adamw"),
    "mixed_precision": (None, "no", "bf16"),
    "gradient_checkpointing": (False, True, "selective"),
    "weight_averaging": (None, "exponential", "stage"),
    "on_bad_checkpoint": ("error", "previous"),
}
YAML_NAMES: dict[Any, str] = {None: "null", False: "false", True: "true"}
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

    # Data: `python-docs`, a dataset id of the Hub, local files, folders or globs; or mappings with the fields of
    # `pretrain.data.sources.Source`.
    data: str | list = "python-docs"
    text_column: str = "text"
    documents: str = "auto"
    validation_share: float = 0.02
    on_bad_record: str = "error"  # or "skip": leave out what cannot be read, and count it
    prepared_dir: str = "data/prepared"
    num_proc: int | None = None

    # Rows: "stream" cuts the stream of documents anywhere; "full_sentences" (RoBERTa's) only between sentences;
    # "best_fit" fills rows with whole documents, each with its own positions and packed state.
    packing: str = "stream"

    # Tokenizer: a folder or Hub id, or none to train one of `vocab_size` tokens on the data.
    tokenizer: str | None = None
    vocab_size: int = 16384
    tokenizer_train_megabytes: int = 200  # of text that a tokenizer is trained on, sampled from all of it
    max_length: int = 512

    # Model: fields of `LunaConfig`, on top of a JSON file of them where one is named. Another `model_type` is another
    # masked language model of Transformers, for comparisons, with the fields of its own configuration; it can be
    # trained on "stream" and "full_sentences" alone. `init_from` is a model to start
    # from, a folder or an id of the Hub (with `@REVISION` if need be). It gives the architecture and, where none is
    # named, the tokenizer; `model` may change what `pretrain.saved_model.CHANGEABLE` lists, and positions are added
    # where `max_length` asks for them.
    model_type: str = "luna"
    model_config: str | None = None
    model: dict = dataclasses.field(default_factory=dict)
    init_from: str | None = None
    attn_implementation: str | None = None

    # Objective: what is chosen ("token", "whole_word" or "span": one to ten whole words, `mean_span_length` on
    # average), and what share of the tokens. With `mask_probability_end` the share goes there in a straight line over
    # `mask_probability_steps`, or over the run.
    masking: str = "token"
    mask_probability: float = 0.15
    mask_probability_end: float | None = None
    mask_probability_steps: int | None = None
    mean_span_length: float = 3.0

    # Length of the run and of its schedule: in steps, in tokens (places of rows, padding included) or in hours of
    # training. One of the max_* is needed; warm-up and decay are in the same unit. Without them the warm-up takes 6 %
    # of the run, and the decay of the trapezoidal schedule 10 %.
    max_steps: int | None = None
    warmup_steps: int | None = None
    decay_steps: int | None = None
    max_tokens: int | None = None
    warmup_tokens: int | None = None
    decay_tokens: int | None = None
    max_train_hours: float | None = None
    warmup_hours: float | None = None
    decay_hours: float | None = None
    lr_scheduler_type: str = "linear"  # or "cosine", "trapezoidal"
    learning_rate: float = 6e-4
    min_learning_rate: float = 0.0

    # Optimisation: the paper's appendix.
    seed: int = 0
    batch_size: int = 256
    batch_size_start: int | None = None  # rows of the first steps, which rise to batch_size ...
    batch_size_ramp_steps: int = 0  # ... over so many
    max_length_start: int | None = None  # the first steps cut their rows into pieces of so many tokens; doubled ...
    max_length_ramp_steps: int = 0  # ... in stages of the same length up to max_length, over so many steps
    per_device_train_batch_size: int | None = None  # rows that a process takes at once, at most; null: all its share
    optimizer: str = "adamw"  # or "stable_adamw"
    adam_beta1: float = 0.9
    adam_beta2: float = 0.98
    adam_epsilon: float = 1e-6
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    mixed_precision: str | None = None
    gradient_checkpointing: bool | str = False  # or "selective": of what is cheap to compute again
    torch_compile: bool = False  # layers, head and loss
    max_skipped_in_a_row: int = 10

    # A second set of weights, averaged at each `averaging_interval` steps from `averaging_start_step` on:
    # "exponential" with `averaging_decay`, or "stage", the plain mean.
    weight_averaging: str | None = None
    averaging_decay: float = 0.999
    averaging_start_step: int = 0
    averaging_interval: int = 1

    # What is written, in steps. Of the checkpoints the newest `save_total_limit`, those at multiples of `keep_every`
    # and the one with the lowest validation loss at its own step stay.
    logging_steps: int = 10
    eval_steps: int = 100
    max_eval_rows: int | None = None
    save_steps: int = 500
    save_total_limit: int | None = 3
    keep_every: int | None = None
    on_bad_checkpoint: str = "error"  # or "previous": go on from the newest checkpoint that is whole
    max_time: str | None = None  # HH:MM:SS, after which the run makes a checkpoint and ends, to be gone on with
    dataloader_num_workers: int = 1

    # The Hub: each checkpoint becomes a commit on main and a tag step-N, the finished model the tag final.
    push_to_hub: str | None = None  # NAMESPACE/NAME
    hub_private_repo: bool | None = None  # of a new repository; null: as the namespace has it
    hub_overwrite: bool = False  # use a repository that holds other files and tags, replacing those of the same names
    hub_wait: str = "00:30:00"  # HH:MM:SS for which the end of the run waits for uploads
    hub_max_waiting: int | None = 10  # checkpoints deleted here that wait for the Hub; null: all
    language: str | list | None = None  # for the model card: ISO 639 codes of the text
    license: str | None = None  # for the model card: of the model
    # Where it can be watched, besides metrics.jsonl: `tensorboard`, `trackio`, `wandb`, or several. There the run has
    # the name of its folder, in this project.
    report_to: str | list = dataclasses.field(default_factory=list)
    project: str = "luna"

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
                raise ConfigurationError(f"data: {entry!r} is neither a path nor a mapping with the key 'path'.")
            for key in entry:
                if key not in fields:
                    raise ConfigurationError(f"data: unknown key {key!r} of {entry['path']}.{suggest(key, fields)}")
            sources.append(Source(**{**defaults, **entry}))
        return sources

    def model_configuration(
        self, vocab_size: int | None, special_ids: dict[str, int] | None = None
    ) -> "PreTrainedConfig":
        """The model's configuration.

        Args:
            vocab_size: of the tokenizer, if it is known; counts where the configuration gives none.
            special_ids: `pad_token_id` and the like of the tokenizer, which the model takes over.

        Raises:
            ConfigurationError: where the tokenizer or the rows do not fit into the model.
        """
        fields = self._model_fields()
        if vocab_size is not None:
            fields = {"vocab_size": vocab_size, **fields, **(special_ids or {})}
        config = self._luna_config(fields) if self.model_type == "luna" else self._peer_config(fields)
        if vocab_size is not None and config.vocab_size < vocab_size:
            raise ConfigurationError(
                f"model.vocab_size is {config.vocab_size}, but the tokenizer has {vocab_size} tokens: raise it to at "
                f"least {vocab_size}, or leave it out to take the tokenizer's."
            )
        return config

    def _luna_config(self, fields: dict) -> "LunaConfig":
        # Imported here, since it takes seconds that the processes of `python-docs` need not wait for.
        from huggingface_hub.errors import StrictDataclassError

        from modeling_luna import LunaConfig

        known = list(LunaConfig.__annotations__)
        for key in fields:
            if key not in known:
                raise ConfigurationError(f"model: unknown key {key!r}.{suggest(key, known)}")
        try:
            config = LunaConfig(**fields)
        except StrictDataclassError as error:
            raise ConfigurationError(f"model: {error.__cause__ or error}") from error
        if config.position_embedding_type == "learned" and config.max_position_embeddings < self.max_length:
            raise ConfigurationError(
                f"max_length is {self.max_length}, but model.max_position_embeddings is "
                f"{config.max_position_embeddings}: rows must not be longer than the model's positions."
            )
        return config

    def _peer_config(self, fields: dict) -> "PreTrainedConfig":
        from pretrain.peers import peer_config

        self._require(
            "packing", self.packing != "best_fit", f"cannot be had: {self.model_type} does not keep documents apart"
        )
        return peer_config(self.model_type, fields)

    def _model_fields(self) -> dict[str, Any]:
        """The fields of the model's configuration that the run gives."""
        fields = {}
        if self.model_config is not None:
            fields = read_json(Path(self.model_config))
            if fields.get("model_type", self.model_type) != self.model_type:
                raise ConfigurationError(
                    f"{self.model_config} is of a {fields['model_type']} model, but model_type is {self.model_type}."
                )
            fields = {key: value for key, value in fields.items() if key not in IGNORED_MODEL_KEYS}
        return {**fields, **self.model}

    def validate(self):
        """Raise a `ConfigurationError` that names the key where a value makes no sense."""
        from pretrain.data.mixture import check_weights
        from pretrain.data.packing import PACKINGS
        from pretrain.data.tokenizer import SMALLEST_VOCABULARY

        for key in (
            "vocab_size", "tokenizer_train_megabytes", "batch_size", "logging_steps", "averaging_interval",
            "max_skipped_in_a_row",
        ):  # fmt: skip
            self._require(key, getattr(self, key) >= 1, "must be at least 1")
        for key in (
            "eval_steps", "save_steps", "dataloader_num_workers", "weight_decay", "min_learning_rate",
            "batch_size_ramp_steps", "max_length_ramp_steps", "averaging_start_step",
        ):  # fmt: skip
            self._require(key, getattr(self, key) >= 0, "must not be negative")
        for key in (
            "num_proc", "max_eval_rows", "save_total_limit", "keep_every", "batch_size_start",
            "per_device_train_batch_size", "hub_max_waiting", "mask_probability_steps",
        ):  # fmt: skip
            self._require(key, getattr(self, key) is None or getattr(self, key) >= 1, "must be at least 1, or null")
        for key in ("learning_rate", "max_grad_norm", "adam_epsilon"):
            self._require(key, 0 < getattr(self, key) < math.inf, "must be above 0")
        for key in ("mask_probability", "mask_probability_end", "validation_share"):
            value = getattr(self, key)
            self._require(key, value is None or 0 < value < 1, "must lie between 0 and 1")
        for key in ("adam_beta1", "adam_beta2", "averaging_decay"):
            self._require(key, 0 <= getattr(self, key) < 1, "must be at least 0 and below 1")
        if self.tokenizer is None:
            self._require(
                "vocab_size",
                self.vocab_size >= SMALLEST_VOCABULARY,
                f"must be at least {SMALLEST_VOCABULARY}, the bytes and the special tokens",
            )
        self._require("max_length", self.max_length >= 8, "must be at least 8")
        self._require("seed", 0 <= self.seed < 2**63, "must be at least 0 and below 2**63")
        self._require("packing", self.packing in PACKINGS, f"must be one of {PACKINGS}")
        self._require("on_bad_record", self.on_bad_record in ON_BAD_RECORD, f"must be one of {ON_BAD_RECORD}")
        for key, choices in CHOICES.items():
            words = ", ".join(YAML_NAMES.get(choice, repr(choice)) for choice in choices)
            self._require(key, getattr(self, key) in choices, f"must be one of {words}")
        self._require(
            "gradient_checkpointing",
            self.gradient_checkpointing != "selective" or self.model_type == "luna",
            "is for luna alone, since others may change in place what is kept: give true",
        )
        self._require("mean_span_length", 1 <= self.mean_span_length <= 5, "must lie between 1 and 5")
        self._require(
            "min_learning_rate",
            self.min_learning_rate <= self.learning_rate,
            f"must not exceed learning_rate ({self.learning_rate})",
        )
        self._validate_length()
        self._require(
            "batch_size_start",
            self.batch_size_start is None or self.batch_size_start <= self.batch_size,
            f"must not exceed batch_size ({self.batch_size})",
        )
        self._validate_length_ramp()
        for tracker in [self.report_to] if isinstance(self.report_to, str) else self.report_to:
            self._require("report_to", tracker in TRACKERS, f"must be one or several of {', '.join(TRACKERS)}")
        self._require("project", bool(self.project), "must not be empty")
        self.max_time_seconds()
        self.hub_wait_seconds()
        if self.push_to_hub is not None:
            self._validate_repository(self.push_to_hub)
        check_weights([source.weight for source in self.sources()])
        if self.init_from is None:
            self.model_configuration(vocab_size=None if self.tokenizer else self.vocab_size)
        else:
            self._require("model_config", self.model_config is None, "must be null where init_from gives the model")
            self._require("model_type", self.model_type == "luna", "must be luna, the only one to be gone on from")

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
                self._require(key, value is None or 0 <= value < math.inf, "must not be negative")
                self._require(
                    key, value is None or unit == units[0], f"must be null, as the run's length is in {units[0]}"
                )
        self._require(
            "averaging_start_step",
            self.max_steps is None or self.averaging_start_step <= self.max_steps,
            f"exceeds max_steps ({self.max_steps})",
        )
        end, warmup, decay = LENGTH_KEYS[units[0]]
        self._require(end, getattr(self, end) > 0, "must be above 0")
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
        doublings = (self.max_length // start).bit_length() - 1 if start > 0 else 0
        self._require(
            "max_length_start",
            start >= 4 and start << doublings == self.max_length,
            f"must be at least 4, and max_length ({self.max_length}) halved several times",
        )
        self._require(
            "max_length_ramp_steps", steps >= doublings, f"must be at least {doublings}, a step for each length"
        )
        self._require(
            "max_length_start", self.packing != "best_fit", "cannot be had: best_fit packs whole documents already"
        )

    def trackers(self) -> list[str]:
        """`report_to` as a list, each tracker once."""
        return [self.report_to] if isinstance(self.report_to, str) else list(dict.fromkeys(self.report_to))

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
            raise ConfigurationError(f"{key} is {getattr(self, key)!r}: it {message}.")


def load_config(arguments: list[str]) -> PretrainConfig:
    """Read `FILE.yaml --key value ...`; values are YAML, keys below `model` are written `--model.KEY`.

    Raises:
        ConfigurationError: for a file that is not there or not YAML, an unknown key (with the nearest known one), or
            a value of the wrong type.
    """
    if not arguments or arguments[0].startswith("--"):
        raise ConfigurationError("usage: run_mlm.py configs/pretrain/NAME.yaml [--key value ...]")
    values = read_values(Path(arguments[0]), arguments[1:], typing.get_type_hints(PretrainConfig), nested=["model"])
    if "output_dir" not in values:
        raise ConfigurationError(f"{arguments[0]} names no output_dir: add it, or give --output_dir FOLDER.")
    config = PretrainConfig(**values)
    config.validate()
    return config


def _seconds(key: str, time: str) -> float:
    """The seconds of HH:MM:SS."""
    match = re.fullmatch(r"(\d+):([0-5]\d):([0-5]\d)", time)
    if match is None:
        raise ConfigurationError(f"{key} is {time!r}: it must have the form HH:MM:SS, such as 11:30:00.")
    hours, minutes, seconds = map(int, match.groups())
    return 3600.0 * hours + 60 * minutes + seconds
