"""The configuration of a pretraining run: a YAML file, with `--key value` overrides."""

import dataclasses
import difflib
import json
import types
import typing
from pathlib import Path

import yaml

from modeling_luna import LunaConfig

from pretrain.errors import UserError
from pretrain.sources import Source


class ConfigurationError(UserError):
    """A key or value that cannot be used."""


@dataclasses.dataclass
class PretrainConfig:
    """Every key of `configs/pretrain/*.yaml`, with its default.

    Names are those of `transformers.TrainingArguments` where it has them. Unlike there, `batch_size` is the number of
    rows of one optimiser step over all processes and accumulation steps together: a run keeps its curve when it moves
    to another number of processes.
    """

    output_dir: str

    # Data: `python-docs`, a dataset id of the Hub, local files, folders or globs; or mappings with the fields of
    # `pretrain.sources.Source`.
    data: str | list = "python-docs"
    text_column: str = "text"
    documents: str = "auto"
    validation_share: float = 0.02
    prepared_dir: str = "data/prepared"
    num_proc: int | None = None

    # Tokenizer: a folder or Hub id, or none to train one of `vocab_size` tokens on the data.
    tokenizer: str | None = None
    vocab_size: int = 16384
    max_length: int = 512

    # Model: fields of `LunaConfig`, on top of a JSON file of them where one is named.
    model_config: str | None = None
    model: dict = dataclasses.field(default_factory=dict)
    attn_implementation: str | None = None

    # Objective.
    mask_probability: float = 0.15
    whole_word_masking: bool = False

    # Optimisation: the paper's appendix.
    seed: int = 0
    max_steps: int = 1000
    batch_size: int = 256
    gradient_accumulation_steps: int = 1
    learning_rate: float = 6e-4
    warmup_steps: int = 100
    adam_beta1: float = 0.9
    adam_beta2: float = 0.98
    adam_epsilon: float = 1e-6
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    mixed_precision: str | None = None
    gradient_checkpointing: bool = False
    max_skipped_steps: int = 10

    # What is written, in steps.
    logging_steps: int = 10
    eval_steps: int = 100
    max_eval_rows: int | None = None
    save_steps: int = 500
    save_total_limit: int | None = 3
    dataloader_num_workers: int = 1

    def sources(self) -> list[Source]:
        """The entries of `data`, each with its own fields or those of the run."""
        entries = self.data if isinstance(self.data, list) else [self.data]
        if not entries:
            raise ConfigurationError("data: name at least one source.")
        defaults = {"text_column": self.text_column, "documents": self.documents}
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

    def luna_config(self, vocab_size: int) -> LunaConfig:
        """The model's configuration; `vocab_size` is the tokenizer's and counts where none is given.

        Raises:
            ConfigurationError: where the tokenizer or the rows do not fit into the model.
        """
        fields = {"vocab_size": vocab_size, **self._model_fields()}
        try:
            config = LunaConfig(**fields)
        except (ValueError, TypeError) as error:
            raise ConfigurationError(f"model: {error}") from error
        if config.vocab_size < vocab_size:
            raise ConfigurationError(
                f"model.vocab_size is {config.vocab_size}, but the tokenizer has {vocab_size} tokens: raise it to at "
                f"least {vocab_size}, or leave it out to take the tokenizer's."
            )
        if config.position_embedding_type == "learned" and config.max_position_embeddings < self.max_length:
            raise ConfigurationError(
                f"max_length is {self.max_length}, but model.max_position_embeddings is "
                f"{config.max_position_embeddings}: rows must not be longer than the model's positions."
            )
        return config

    def _model_fields(self) -> dict:
        fields = {}
        if self.model_config is not None:
            fields = read_json(Path(self.model_config))
        fields = {**fields, **self.model}
        known = [field.name for field in dataclasses.fields(LunaConfig)]
        for key in fields:
            if key not in known and key not in ("model_type", "architectures"):
                raise ConfigurationError(f"model: unknown key {key!r}.{suggest(key, known)}")
        return fields

    def validate(self):
        """Raise a `ConfigurationError` that names the key where a value makes no sense."""
        for key in ("vocab_size", "max_steps", "batch_size", "gradient_accumulation_steps", "logging_steps"):
            self._require(key, getattr(self, key) >= 1, "must be at least 1")
        for key in ("warmup_steps", "eval_steps", "save_steps", "dataloader_num_workers", "weight_decay"):
            self._require(key, getattr(self, key) >= 0, "must not be negative")
        for key in ("num_proc", "max_eval_rows", "save_total_limit"):
            self._require(key, getattr(self, key) is None or getattr(self, key) >= 1, "must be at least 1, or null")
        for key in ("learning_rate", "max_grad_norm", "adam_epsilon"):
            self._require(key, getattr(self, key) > 0, "must be above 0")
        for key in ("mask_probability", "validation_share"):
            self._require(key, 0 < getattr(self, key) < 1, "must lie between 0 and 1")
        for key in ("adam_beta1", "adam_beta2"):
            self._require(key, 0 <= getattr(self, key) < 1, "must be at least 0 and below 1")
        self._require("max_length", self.max_length >= 8, "must be at least 8")
        self._require("seed", 0 <= self.seed < 2**63, "must be at least 0 and below 2**63")
        self._require("warmup_steps", self.warmup_steps <= self.max_steps, f"exceeds max_steps ({self.max_steps})")
        choices = (None, "no", "bf16", "fp16")
        self._require("mixed_precision", self.mixed_precision in choices, f"must be one of {choices[1:]}")
        self.sources()
        self.luna_config(vocab_size=1 if self.tokenizer else self.vocab_size)

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
    path, overrides = Path(arguments[0]), _parse_overrides(arguments[1:])
    values = _read_yaml(path)
    for key, value in overrides.items():
        if key.startswith("model."):
            values["model"] = {**values.get("model", {}), key.removeprefix("model."): value}
        else:
            values[key] = value

    known = typing.get_type_hints(PretrainConfig)
    for key in values:
        if key not in known:
            where = f"--{key}" if key in overrides else f"{path}: {key}"
            raise ConfigurationError(f"{where} is not a key of the configuration.{suggest(key, list(known))}")
    if "output_dir" not in values:
        raise ConfigurationError(f"{path} names no output_dir: add it, or give --output_dir FOLDER.")
    config = PretrainConfig(**{key: _convert(key, value, known[key]) for key, value in values.items()})
    config.validate()
    return config


def suggest(key: str, known: list[str]) -> str:
    """' Did you mean X?' for the known key nearest to a wrong one, or nothing."""
    nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f" Did you mean {nearest[0]!r}?" if nearest else f" Known are: {', '.join(known)}."


def read_json(path: Path) -> dict:
    """A JSON file that holds one object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise ConfigurationError(f"{path} is not JSON: {error}.") from error
    if not isinstance(value, dict):
        raise ConfigurationError(f"{path} must hold one JSON object.")
    return value


def _read_yaml(path: Path) -> dict:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigurationError(f"{path} must hold `key: value` lines.")
    return values


def _parse_overrides(arguments: list[str]) -> dict[str, object]:
    """`--key value`, `--key=value`, or `--key value value ...` for a list."""
    overrides: dict[str, list[str]] = {}
    key = None
    for argument in arguments:
        if argument.startswith("--"):
            key, equals, value = argument[2:].partition("=")
            if key in overrides:
                raise ConfigurationError(f"--{key} is given twice.")
            overrides[key] = [value] if equals else []
        elif key is None:
            raise ConfigurationError(f"{argument!r} does not follow a --key.")
        else:
            overrides[key].append(argument)
    for key, values in overrides.items():
        if not values:
            raise ConfigurationError(f"--{key} needs a value.")
    return {
        key: _parse_value(values[0]) if len(values) == 1 else [_parse_value(value) for value in values]
        for key, values in overrides.items()
    }


def _parse_value(text: str) -> object:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _convert(key: str, value: object, hint) -> object:
    """The value as the field's type; YAML reads 2e-5 as a string, for one."""
    choices = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None and type(None) in choices:
        return None
    if value is None and dict in choices:
        return {}
    for choice in choices:
        if isinstance(value, choice) and not (isinstance(value, bool) and choice is not bool):
            return value
    if float in choices and isinstance(value, int | str) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            pass
    if str in choices and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    names = " or ".join("null" if choice is type(None) else choice.__name__ for choice in choices)
    raise ConfigurationError(f"{key} is {value!r}: it must be of the type {names}.")
