"""Pretrain Luna, or another encoder in its place, by masked language modelling.

    accelerate launch pretrain/run_mlm.py configs/pretrain/NAME.yaml [--dry_run] [--key value ...]

- The rows and masks of step k are functions of (seed, k): not of the number of processes, the size of the
  micro-batches, or a restart.
- The loss is the sum over all predicted tokens of the global batch divided by their number.
- A checkpoint is whole or not there; the same command resumes from the last one.
- The data are prepared at the first run and found again by a fingerprint at the next.
- `--dry_run` checks everything and shows the plan, but prepares and trains nothing.
"""

import sys
import time
from contextlib import ExitStack, closing
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
    from pretrain.assembly import assemble, finish
    from pretrain.feasibility import check_run
    from pretrain.preparation import prepare
    from pretrain.stopping import StopRequest
    from pretrain.training import train

    config = check_run(config, accelerator, plan)
    prepared = prepare(config, quiet=not accelerator.is_main_process)
    stop = StopRequest(deadline)
    if outbox is not None:
        outbox.add_missing()
    run = assemble(config, accelerator, plan, prepared, stop, on_written=outbox.add if outbox else None)
    with closing(run.monitor):
        validation_loss = train(run)
    finish(run, validation_loss)


if __name__ == "__main__":
    end_with_launcher()
    with report_user_errors():
        dry = "--dry_run" in sys.argv
        config = load_config([argument for argument in sys.argv[1:] if argument != "--dry_run"], __doc__)
        if dry:
            from pretrain.dry_run import dry_run

            dry_run(config)
        else:
            main(config)
