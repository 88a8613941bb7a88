"""Whether the model of a run can be made and trained here: found out before its data are prepared."""

import dataclasses
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator, DistributedType
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from transformers import PreTrainedConfig, PreTrainedModel

from common.config.yaml_config import ConfigurationError
from common.errors import reason_of
from common.hardware import GIB, total_memory
from common.labels import IGNORED
from pretrain.configuration import PretrainConfig
from pretrain.data.tokenizer import SPECIAL_TOKENS, load_tokenizer
from pretrain.models.configuration import model_configuration
from pretrain.models.model import new_model, prepare_for_training, special_ids_of
from pretrain.models.peers import check_positions
from pretrain.models.saved_model import read_saved_config, saved_folder
from pretrain.steps.batches import BatchPlan, RowLengths, cut_rows
from pretrain.steps.optimization import known_counts, to_device
from pretrain.steps.schedules import Schedule
from pretrain.watching.trackers import check_installed


FLOAT32 = 4  # bytes of a weight
ADAM = 4 * FLOAT32  # of a weight, its gradient and its two moments
PLACE = 17  # of a token's id, label and mask
TRAINED_IDS = {  # of a tokenizer that is still to be trained
    name: SPECIAL_TOKENS.index(token)
    for name, token in (("bos_token_id", "<s>"), ("pad_token_id", "<pad>"), ("eos_token_id", "</s>"))
}
MOST_TENSORS = 3 * 10**4  # tensors, as of 1,500 layers; making as many takes seconds
TRIAL_ROWS = 2
PREDICTED = 5  # each so many tokens of a trial one is predicted


def check_run(config: PretrainConfig, accelerator: Accelerator, plan: BatchPlan) -> PretrainConfig:
    """Find out what could end the run after its data are prepared, and name the tokenizer that comes with `init_from`.

    Raises:
        UserError: where the run cannot be: its trackers, its schedule, the saved model or its own model.
    """
    check_installed(config.trackers())
    Schedule.from_config(config, plan.sizes)
    if config.init_from is not None:
        read_saved_config(config)
        config = dataclasses.replace(config, tokenizer=config.tokenizer or str(saved_folder(config.init_from)))
    check_model(config, accelerator, plan)
    return config


def check_model(config: PretrainConfig, accelerator: Accelerator, plan: BatchPlan):
    """Make the model without weights, compare what it needs with the memory, and try a step where it is not Luna.

    Raises:
        ConfigurationError: where the model cannot be made, is too large for this machine, or cannot be trained.
    """
    model_config = expected_config(config)
    sketch = _sketch(config, model_config, total_memory(torch.device("cpu")))
    _check_memory(config, sketch, accelerator, plan)
    if config.model_type != "luna":
        check_positions(sketch, config.max_length, in_pieces=config.max_length_start is not None)
        _try_step(config, model_config, accelerator)


def expected_config(config: PretrainConfig) -> PreTrainedConfig:
    """The model's configuration, with the largest vocabulary that a tokenizer still to be trained may have."""
    if config.init_from is not None:
        return read_saved_config(config)
    if config.tokenizer is None:
        return model_configuration(config, config.vocab_size, TRAINED_IDS)
    tokenizer = load_tokenizer(config.tokenizer)
    return model_configuration(config, len(tokenizer), special_ids_of(tokenizer))


def _sketch(config: PretrainConfig, model_config: PreTrainedConfig, memory: int) -> PreTrainedModel:
    """The model on the meta device."""
    try:
        with torch.device("meta"), _bounded(memory):
            return new_model(model_config, config.attn_implementation)
    except ConfigurationError:
        raise
    except (ImportError, ValueError) as error:
        key = "attn_implementation" if config.attn_implementation else "model"
        raise ConfigurationError(f"{key}: {reason_of(error)}") from error
    except Exception as error:  # architectures do not check their fields: what is wrong ends in errors of any type
        raise ConfigurationError(f"model: {reason_of(error)}") from error


@contextmanager
def _bounded(memory: int) -> Iterator[None]:
    """Stop making a model whose weights alone exceed the memory, or that has more parts than any in use."""
    number = size = 0

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None):
        nonlocal number, size
        number += 1
        size += 0 if parameter is None else FLOAT32 * parameter.numel()
        if size > memory:
            raise ConfigurationError(
                f"The weights of the model need more than the {memory / GIB:,.0f} GiB of memory of this machine: "
                "lower vocab_size or the sizes in model."
            )
        if number > MOST_TENSORS:
            raise ConfigurationError(f"The model has more than {MOST_TENSORS:,} tensors: give it fewer layers.")

    with register_module_parameter_registration_hook(count):
        yield


def _check_memory(config: PretrainConfig, sketch: PreTrainedModel, accelerator: Accelerator, plan: BatchPlan):
    """Refuse what cannot fit, by what is needed at least."""
    device = accelerator.device
    shared = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if device.type == "cpu" else 1  # processes on this memory
    memory = total_memory(device)
    where = "this machine" if device.type == "cpu" else torch.cuda.get_device_name(device)
    has = f"{where} has {memory / GIB:,.0f} GiB" + (f" for {shared} processes" if shared > 1 else "")
    whole = accelerator.distributed_type not in (DistributedType.FSDP, DistributedType.DEEPSPEED)
    weights = sketch.num_parameters() * shared * (ADAM if whole else FLOAT32)
    if weights > memory:
        raise ConfigurationError(
            f"The model has {sketch.num_parameters():,} parameters. Training takes at least {weights / GIB:,.0f} GiB, "
            f"but {has}: lower vocab_size or the sizes in model, or shard it (configs/accelerate/fsdp2.yaml)."
        )
    options = sketch.config
    places = plan.micro_batch_size * config.max_length
    number = 2 if accelerator.mixed_precision == "bf16" else FLOAT32  # bytes
    kept = (getattr(options, "num_hidden_layers", 1) or 1) * (getattr(options, "hidden_size", 1) or 1) * number
    states = places * (kept + PLACE) * shared
    if states > memory:
        raise ConfigurationError(
            f"A process takes {plan.micro_batch_size:,} rows of {config.max_length:,} tokens at once, whose hidden "
            f"states need at least {states / GIB:,.0f} GiB, but {has}: give a smaller per_device_train_batch_size."
        )


def _try_step(config: PretrainConfig, model_config: PreTrainedConfig, accelerator: Accelerator):
    """Make the model, and take it forwards and backwards over two rows, the second of which ends in padding.

    The random state is as before.
    """
    device = accelerator.device
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(model_config.vocab_size, (TRIAL_ROWS, config.max_length), generator=generator)
    mask = torch.ones_like(input_ids, dtype=torch.bool)
    mask[-1, config.max_length // 2 :] = False
    predicted = mask & (torch.arange(config.max_length) % PREDICTED == 1)
    labels = torch.where(predicted, input_ids, IGNORED)
    batch = {"input_ids": input_ids, "labels": labels, "attention_mask": mask}
    batch = cut_rows(batch, RowLengths.from_config(config).at(0))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            model = new_model(model_config, config.attn_implementation)
            prepare_for_training(model, config)
            model.to(device).train()
            with accelerator.autocast():
                loss = model(**to_device(batch | known_counts(batch), device), num_items_in_batch=1).loss
            loss.backward()
        except ConfigurationError:
            raise
        except Exception as error:  # architectures do not check their fields: what is wrong ends in errors of any type
            raise ConfigurationError(
                f"model_type: a step of {config.model_type} with these fields of model fails: {reason_of(error)}"
            ) from error
