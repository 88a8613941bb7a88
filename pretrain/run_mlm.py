"""Pretrain Luna, or another encoder in its place, by masked language modelling.

    accelerate launch pretrain/run_mlm.py configs/pretrain/NAME.yaml [--key value ...]

- The rows and masks of step k are functions of (seed, k): not of the number of processes, the size of the
  micro-batches, or a restart.
- The loss is the sum over all predicted tokens of the global batch divided by their number.
- A checkpoint is whole or not there; the same command resumes from the last one.
- The data are prepared at the first run and found again by a fingerprint at the next.
"""

import dataclasses
import sys
import time
from contextlib import ExitStack, closing, nullcontext
from typing import TYPE_CHECKING

from common.errors import Stopped, UserError, report_user_errors
from common.launcher import end_with_launcher
from pretrain.command_line import load_config
from pretrain.configuration import PretrainConfig


if TYPE_CHECKING:
    from accelerate import Accelerator

    from pretrain.hub.outbox import HubOutbox
    from pretrain.steps.batches import BatchPlan


def main(config: PretrainConfig):
    # These imports take seconds; processes that read the built-in corpus import this file again without them.
    from accelerate.utils import broadcast_object_list

    from pretrain.checkpointing.run_folder import run_folder
    from pretrain.hub.outbox import HubOutbox
    from pretrain.launch import batch_plan, end_processes, start_accelerator
    from pretrain.stopping import StopRequest

    deadline = time.monotonic() + config.max_time_seconds()
    accelerator = start_accelerator(config)
    plan = batch_plan(config, accelerator)
    stopped = None
    try:
        with ExitStack() as stack:
            problem = outbox = None
            if accelerator.is_main_process:
                try:
                    stack.enter_context(run_folder(config))
                    if config.push_to_hub:
                        outbox = HubOutbox(config)
                        stack.callback(outbox.close)
                        outbox.open()
                except UserError as error:
                    problem = error
            (problem,) = broadcast_object_list([problem])  # all processes end, none waits for another
            if problem is not None:
                raise problem
            pretrain(config, accelerator, plan, deadline, outbox)
            end_processes(accelerator)  # they need not wait for uploads
            if outbox is not None:
                outbox.finish(StopRequest(min(deadline, time.monotonic() + config.hub_wait_seconds())))
    except Stopped as error:  # in all processes at the same step
        stopped = str(error)
    end_processes(accelerator)
    if stopped:
        accelerator.print(f"\n{stopped}", flush=True)
        raise Stopped(stopped)


def pretrain(
    config: PretrainConfig,
    accelerator: "Accelerator",
    plan: "BatchPlan",
    deadline: float,
    outbox: "HubOutbox | None",
):
    """Prepare the data, train, save the model and report.

    Args:
        deadline: on the clock of `time.monotonic`, when the run is to end with a checkpoint.
        outbox: of the main process, where checkpoints go to the Hub.
    """
    from transformers import AutoModelForMaskedLM

    from pretrain.checkpointing.averaging import WeightAverage
    from pretrain.checkpointing.checkpoints import Checkpoints
    from pretrain.data.manifest import read_manifest
    from pretrain.data.packed_data import PackedRows
    from pretrain.data.tokenizer import load_tokenizer
    from pretrain.feasibility import check_model
    from pretrain.models.model import build_model
    from pretrain.models.saved_model import read_saved_config, saved_folder
    from pretrain.preparation import prepare
    from pretrain.steps.batches import EvaluationBatches, RowLengths, TrainingBatches
    from pretrain.steps.masking import Masking
    from pretrain.steps.optimizers import build_optimizer
    from pretrain.steps.schedules import Schedule
    from pretrain.stopping import StopRequest
    from pretrain.training import Run, train
    from pretrain.watching.monitoring import Monitor
    from pretrain.watching.plan import measure_row, print_plan
    from pretrain.watching.progress import Progress
    from pretrain.watching.report import report_run
    from pretrain.watching.trackers import check_installed

    check_installed(config.trackers())
    main_process = accelerator.is_main_process
    schedule = Schedule.from_config(config, plan.sizes)
    if config.init_from is not None:
        read_saved_config(config)  # what is wrong with it is said before the data are prepared
        config = dataclasses.replace(config, tokenizer=config.tokenizer or str(saved_folder(config.init_from)))
    check_model(config, accelerator, plan)
    prepared = prepare(config, quiet=not main_process)
    stop = StopRequest(deadline)
    manifest = read_manifest(prepared)
    tokenizer = load_tokenizer(str(prepared / "tokenizer"))
    tokenizer.model_max_length = config.max_length  # prepared data serve runs with rows of any length
    masking = Masking.from_config(config, tokenizer, schedule.total_steps)
    rows = PackedRows.open(prepared, "train", config.max_length, config.packing)
    training = TrainingBatches(rows, masking, plan, RowLengths.from_config(config))
    validation_rows = PackedRows.open(prepared, "validation", config.max_length, config.packing)
    validation = EvaluationBatches(validation_rows, masking, plan, config.max_eval_rows)

    model = build_model(config, tokenizer).to(accelerator.device)
    checkpoints = Checkpoints(accelerator, tokenizer, config, model.config, manifest, outbox.add if outbox else None)
    if outbox is not None:
        outbox.add_missing()
    checkpoint = checkpoints.find()
    expected = None
    if main_process:
        seconds, advice = measure_row(model, TrainingBatches(rows, masking, plan)[0][0], accelerator)
        expected = config.max_length / seconds
        print_plan(config, model, manifest, plan, accelerator, seconds, schedule, advice)
    if checkpoint is not None:
        checkpoints.load_model(checkpoint, model)
    wrapped_model, optimizer = accelerator.prepare(model, build_optimizer(model, config))
    average = WeightAverage.from_config(config, wrapped_model)
    progress = Progress()
    if checkpoint is not None:
        progress = checkpoints.load_state(checkpoint, wrapped_model, optimizer, average)
    monitor = Monitor(config, accelerator, wrapped_model, progress, manifest, schedule, expected)
    run = Run(
        accelerator=accelerator,
        config=config,
        model=wrapped_model,
        optimizer=optimizer,
        training=training,
        validation=validation,
        checkpoints=checkpoints,
        monitor=monitor,
        progress=progress,
        stop=stop,
        schedule=schedule,
        average=average,
    )
    with closing(monitor):
        validation_loss = train(run)

    with average.swapped_in() if average else nullcontext():
        model_folder = checkpoints.save_model(wrapped_model, progress, averaged=average is not None)
    if main_process:
        entropy = manifest["splits"]["validation"]["unigram_entropy"]
        trained = AutoModelForMaskedLM.from_pretrained(model_folder)  # the wrapped one may be sharded
        report_run(checkpoints.folder, model_folder, trained, tokenizer, validation_rows, validation_loss, entropy)


if __name__ == "__main__":
    end_with_launcher()
    with report_user_errors():
        main(load_config(sys.argv[1:], __doc__))
