"""The model that a cell starts from: its tokenizer, its weights, and a new head for the task."""

import inspect
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMultipleChoice,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

import modeling_luna  # noqa: F401 - makes the Auto classes know Luna
from common.architectures import NO_LIMIT, describe_mismatch, fixed_length, located, position_limits, why_not_loaded
from common.contents import commit_of, digest_of_files
from common.errors import UserError
from common.files import is_folder
from common.finite import is_finite
from finetune_glue.data.tasks import Task
from finetune_glue.training.batches import Collator
from finetune_glue.training.model_names import UNTRAINED


WEIGHTS = (".safetensors", ".bin")  # suffixes
NOT_LOADED = (".md", ".png", ".pt", ".pth")  # suffixes of what may lie beside a model
POOLER = "pooler"  # part of an encoder that a masked language model leaves out


@dataclass(frozen=True)
class StartingModel:
    """A model with a head for a task that has learnt nothing yet.

    Args:
        model: float32, on the CPU.
        max_length: the number of tokens that its positions allow; None where there is no limit.
        fixed_length: what every row must be padded to, for architectures that take rows of one length only.
        notes: what was asked for and left out.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    max_length: int | None
    fixed_length: int | None
    notes: tuple[str, ...]

    @property
    def vocab_size(self) -> int:
        """The number of tokens that it embeds."""
        return len(self.model.get_input_embeddings().weight)  # type: ignore[arg-type]

    def collator(self) -> Collator:
        """Makes its batches."""
        padding = {"input_ids": self.tokenizer.pad_token_id, "token_type_ids": self.tokenizer.pad_token_type_id}
        return Collator(padding, inspect.signature(self.model.forward).parameters, self.fixed_length)


def load_starting_model(
    name: str,
    task: Task,
    fields: dict,
    seed: int,
    init_from: Path | None = None,
    trust_remote_code: bool = False,
) -> StartingModel:
    """Load a pretrained model with a new head; one that was fine-tuned to as many labels keeps its own.

    Args:
        name: a folder, or an id of the Hub, with `@REVISION` for one that is not the newest; after `untrained:` its
            architecture and its tokenizer count alone.
        fields: values of the model's configuration; what the architecture does not have is left out.
        seed: of the head's weights.
        init_from: folder of a fine-tuned model of the same architecture that gives the weights of the encoder.
        trust_remote_code: whether the model may run Python code that it brings along.

    Raises:
        UserError: where it cannot be loaded, lacks weights or its tokenizer, or has no head for the task.
    """
    with _explained(name):
        config, tokenizer, unknown = _opened(name, task, fields, trust_remote_code)
        path, arguments = located(name.removeprefix(UNTRAINED), trust_remote_code)
        transformers.set_seed(seed)
        if name.startswith(UNTRAINED):
            model = _auto_class(task).from_config(config, trust_remote_code=trust_remote_code)
        else:
            model = _pretrained(path, config, task, **arguments)
        limits = position_limits(model)
    if init_from is not None:
        with _explained(str(init_from)):
            _take_encoder(model, init_from, trust_remote_code)
    length = fixed_length(config)
    limit = min([*limits, length or NO_LIMIT])
    return StartingModel(
        model=model,
        tokenizer=tokenizer,
        max_length=limit if limit < NO_LIMIT else None,
        fixed_length=length,
        notes=tuple(f"model.{field} is left out: {config.model_type} has no such field" for field in unknown),
    )


def model_content(name: str, trust_remote_code: bool) -> dict[str, str]:
    """What a model is now: the digest of each file of its folder that is loaded, or its commit on the Hub.

    Args:
        name, trust_remote_code: see `load_starting_model`. Without weights where these are not taken, and without
            code where it may not run.

    Raises:
        UserError: where it cannot be loaded.
    """
    untrained, source = name.startswith(UNTRAINED), name.removeprefix(UNTRAINED)
    left_out = NOT_LOADED + (WEIGHTS if untrained else ()) + (() if trust_remote_code else (".py",))
    with _explained(name):
        path, arguments = located(source, trust_remote_code)
        if is_folder(Path(path)):
            files = sorted(file for file in Path(path).iterdir() if file.is_file() and not file.name.startswith("."))
            return {file.name: digest_of_files([file]) for file in files if file.suffix not in left_out}
        commit = commit_of(path, arguments["revision"], "config.json")
        if not commit:
            raise UserError("its commit is not known, since the Hub cannot be reached")
        return {"commit": commit}


def loaded_content(start: StartingModel, name: str, trust_remote_code: bool) -> dict[str, str]:
    """What a model that has just been loaded was, as `model_content` has it."""
    commit = getattr(start.model.config, "_commit_hash", None)
    return {"commit": commit} if commit else model_content(name, trust_remote_code)


def check_starting_model(name: str, task: Task, fields: dict, trust_remote_code: bool):
    """Look at a model before anything takes time: configuration, tokenizer, its head for a task, and weights.

    The weights of a folder are looked at one by one; those of the Hub wait for their first cell, which downloads them.

    Raises:
        UserError: where `load_starting_model` would find one of them missing or damaged.
    """
    with _explained(name):
        config, *_ = _opened(name, task, fields, trust_remote_code)
        if is_folder(name):
            model = _pretrained(name, config, task, device_map="meta", trust_remote_code=trust_remote_code)
            _check_numbers(_stored_weights(Path(name), model))


def _pretrained(path: str, config: PreTrainedConfig, task: Task, **arguments) -> PreTrainedModel:
    model, report = _auto_class(task).from_pretrained(
        path,
        config=config,
        dtype=torch.float32,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # of a head, which gives way; those of the encoder are errors
        **arguments,
    )
    _check_weights(model, report["missing_keys"], report["mismatched_keys"])
    if model.device.type != "meta":
        _check_numbers(model.named_parameters())
    return model


def _opened(
    name: str, task: Task, fields: dict, trust_remote_code: bool
) -> tuple[PreTrainedConfig, PreTrainedTokenizerBase, list[str]]:
    """The configuration and the tokenizer of a model, and the fields that it does not have."""
    path, arguments = located(name.removeprefix(UNTRAINED), trust_remote_code)
    config = AutoConfig.from_pretrained(path, return_dict=True, **arguments)
    unknown = [field for field in fields if not hasattr(config, field)]
    for field in fields.keys() - unknown:
        setattr(config, field, fields[field])
    _check_head(_auto_class(task), config, trust_remote_code)
    tokenizer = AutoTokenizer.from_pretrained(path, **arguments)
    _check_tokenizer(tokenizer)
    _name_labels(config, task)
    return config, tokenizer, unknown


def _auto_class(task: Task) -> Any:
    return AutoModelForMultipleChoice if task.problem == "multiple_choice" else AutoModelForSequenceClassification


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Say of which model it is that something goes wrong in."""
    try:
        yield
    except Exception as error:
        reason = why_not_loaded(error).removesuffix(".")
        raise UserError(f"The model {name} cannot be fine-tuned: {reason}.") from error


def _check_head(auto_class: type, config: PreTrainedConfig, trust_remote_code: bool):
    brought = trust_remote_code and auto_class.__name__ in (getattr(config, "auto_map", None) or {})
    if type(config) not in auto_class._model_mapping and not brought:  # type: ignore[attr-defined]
        raise UserError(f"{auto_class.__name__} has no class for the architecture {config.model_type}.")


def _check_tokenizer(tokenizer: PreTrainedTokenizerBase):
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        # What Transformers makes of a folder without the files of the vocabulary.
        raise UserError(
            "the files of its tokenizer are not there (tokenizer.json and tokenizer_config.json): save it into the "
            "folder with tokenizer.save_pretrained."
        )
    if tokenizer.pad_token_id is None:
        raise UserError("its tokenizer has no padding token: set pad_token in tokenizer_config.json.")


def _name_labels(config: PreTrainedConfig, task: Task):
    """Let the saved model say what its labels are."""
    names = task.label_names or task.labels
    config.num_labels = len(names) or 1
    if names:
        config.id2label = dict(enumerate(names))
        config.label2id = {name: id for id, name in enumerate(names)}
    if task.problem != "multiple_choice":
        config.problem_type = "regression" if task.problem == "regression" else "single_label_classification"


def _check_weights(model: PreTrainedModel, missing: list[str], mismatched: list[tuple[str, Any, Any]]):
    """Raise a `UserError` where a part of the encoder is not there or of another shape, so that it would be random.

    Args:
        mismatched: name, shape in the file and shape in the model of each.
    """
    prefix = f"{model.base_model_prefix}."
    encoder_mismatched = [entry for entry in mismatched if entry[0].startswith(prefix)]
    if encoder_mismatched:
        raise UserError(describe_mismatch(encoder_mismatched))
    names = sorted(name for name in missing if name.startswith(prefix) and POOLER not in name)
    if names:
        listed = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        raise UserError(
            f"{len(names)} weights of its encoder are not there ({listed}): config.json and the weights do not belong "
            "together, or the file is not whole."
        )


def _check_numbers(weights: Iterable[tuple[str, torch.Tensor]]):
    """Raise a `UserError` where a weight, each with its name, holds a number that is not finite."""
    for name, tensor in weights:
        if not is_finite(tensor.detach()):
            raise UserError(f"it holds numbers that are not finite, in {name}.")


def _stored_weights(folder: Path, model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights in a folder that `model` takes under their own names or below its prefix, one after the other."""
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - it is no mapping
                shape = shapes.get(name, shapes.get(f"{model.base_model_prefix}.{name}"))
                if shape is not None and shape == torch.Size(file.get_slice(name).get_shape()):
                    yield name, file.get_tensor(name)


def _take_encoder(model: PreTrainedModel, folder: Path, trust_remote_code: bool):
    """Give the encoder of `model` the weights of a fine-tuned one; the head stays new."""
    path, arguments = located(str(folder), trust_remote_code)
    encoder = AutoModel.from_pretrained(path, dtype=torch.float32, **arguments)
    if encoder.config.model_type != model.config.model_type:
        raise UserError(f"it is a {encoder.config.model_type}, but {model.config.model_type} is to start from it.")
    _check_numbers(encoder.named_parameters())
    missing, _ = model.base_model.load_state_dict(encoder.state_dict(), strict=False)
    if missing:
        raise UserError(f"it lacks {len(missing)} weights of the encoder, such as {missing[0]}.")
