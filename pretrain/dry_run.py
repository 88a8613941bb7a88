"""A dry run: everything is checked and the plan is shown, but nothing is prepared, trained or written."""

from pathlib import Path

import torch
from transformers import PreTrainedModel

from common.labels import IGNORED
from pretrain.checkpointing.folders import newest_whole
from pretrain.checkpointing.run_folder import check_run_places, check_stored_config
from pretrain.configuration import PretrainConfig
from pretrain.data.manifest import read_manifest
from pretrain.data.tokenizer import load_tokenizer
from pretrain.feasibility import check_run, expected_config
from pretrain.launch import batch_plan, end_processes, start_accelerator
from pretrain.models.model import build_model, model_to_train
from pretrain.preparation import find_prepared
from pretrain.steps.schedules import Schedule
from pretrain.watching.plan import measure_row, print_plan


PREDICTED = 7  # one in so many tokens of a row that is timed, about as many as masking takes


def dry_run(config: PretrainConfig):
    """Check the configuration, the run so far, the sources, the tokenizer and the model, and print the plan.

    One micro-batch of random rows is timed. The Hub's repository of `push_to_hub` is not looked at.

    Raises:
        UserError: for what would end the run before its first step.
    """
    accelerator = start_accelerator(config)
    plan = batch_plan(config, accelerator)
    if accelerator.is_main_process:
        check_run_places(config)
        check_stored_config(config)
    config = check_run(config, accelerator, plan)
    checkpoint = newest_whole(Path(config.output_dir), config.on_bad_checkpoint, accelerator.print)
    prepared = find_prepared(config)
    tokenizer = config.tokenizer if prepared is None else str(prepared / "tokenizer")
    if tokenizer is None:
        model = model_to_train(config, expected_config(config))
    else:
        model = build_model(config, load_tokenizer(tokenizer))
    if accelerator.is_main_process:
        model.to(accelerator.device)
        seconds, advice = measure_row(model, random_rows(model, plan.micro_batch_size, config.max_length), accelerator)
        manifest = None if prepared is None else read_manifest(prepared)
        schedule = Schedule.from_config(config, plan.sizes)
        print_plan(config, model, manifest, plan, accelerator, seconds, schedule, advice)
        start = "start at its first step" if checkpoint is None else f"resume from {checkpoint}"
        print(f"Dry run: all checks passed. Without --dry_run the run would {start}.")
    end_processes(accelerator)


def random_rows(model: PreTrainedModel, rows: int, length: int) -> dict[str, torch.Tensor]:
    """A micro-batch of full rows: `input_ids` and `labels`, (rows, length)."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size, (rows, length), generator=generator)
    return {"input_ids": ids, "labels": torch.where(torch.arange(length) % PREDICTED == 1, ids, IGNORED)}
