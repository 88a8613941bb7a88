"""A run put together: its model, rows, checkpoints and records, at the step that it resumes from; and its end."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from accelerate import Accelerator
from transformers import AutoModelForMaskedLM

from pretrain.checkpointing.averaging import WeightAverage
from pretrain.checkpointing.checkpoints import Checkpoints
from pretrain.configuration import PretrainConfig
from pretrain.data.manifest import read_manifest
from pretrain.data.packed_data import PackedRows
from pretrain.data.tokenizer import load_tokenizer
from pretrain.models.model import build_model
from pretrain.steps.batches import BatchPlan, EvaluationBatches, RowLengths, TrainingBatches
from pretrain.steps.masking import Masking
from pretrain.steps.optimizers import build_optimizer
from pretrain.steps.schedules import Schedule
from pretrain.stopping import StopRequest
from pretrain.training import Run
from pretrain.watching.monitoring import Monitor
from pretrain.watching.plan import measure_row, print_plan
from pretrain.watching.progress import Progress
from pretrain.watching.report import report_run


def assemble(
    config: PretrainConfig,
    accelerator: Accelerator,
    plan: BatchPlan,
    prepared: Path,
    stop: StopRequest,
    on_written: Callable[[Path], object] | None = None,
) -> Run:
    """Make the parts of a run, print its plan, and load its last checkpoint, if there is one.

    Args:
        plan: how the rows are shared out.
        prepared: the folder of the data.
        on_written: see `Checkpoints`.

    Raises:
        ResumeError: where the checkpoint is damaged, or of another run.
    """
    schedule = Schedule.from_config(config, plan.sizes)
    manifest = read_manifest(prepared)
    tokenizer = load_tokenizer(str(prepared / "tokenizer"))
    tokenizer.model_max_length = config.max_length  # prepared data serve runs with rows of any length
    masking = Masking.from_config(config, tokenizer, schedule.total_steps)
    rows = PackedRows.open(prepared, "train", config.max_length, config.packing)
    training = TrainingBatches(rows, masking, plan, RowLengths.from_config(config))
    validation_rows = PackedRows.open(prepared, "validation", config.max_length, config.packing)
    validation = EvaluationBatches(validation_rows, masking, plan, config.max_eval_rows)

    model = build_model(config, tokenizer).to(accelerator.device)
    checkpoints = Checkpoints(accelerator, tokenizer, config, model.config, manifest, on_written)
    checkpoint = checkpoints.find()
    expected = None
    if accelerator.is_main_process:
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
    return Run(
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


def finish(run: Run, validation_loss: float):
    """Save the finished model, averaged where the run averages, and print how the run went."""
    with run.average.swapped_in() if run.average else nullcontext():
        folder = run.checkpoints.save_model(run.model, run.progress, averaged=run.average is not None)
    if run.accelerator.is_main_process:
        entropy = run.checkpoints.origin.data["splits"]["validation"]["unigram_entropy"]
        trained = AutoModelForMaskedLM.from_pretrained(folder)  # the wrapped one may be sharded
        rows, tokenizer = run.validation.rows, run.checkpoints.tokenizer
        report_run(run.checkpoints.folder, folder, trained, tokenizer, rows, validation_loss, entropy)
