"""The model card of a checkpoint: Markdown with the metadata block of the Hub, and the picture of the curves."""

import dataclasses
import importlib.metadata
import platform
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator, DistributedType
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.constants import REPOCARD_NAME
from transformers import PreTrainedModel

import modeling_luna
from common.architectures import describe_shape
from common.cards import luna
from common.cards.card import card_text, facts_table, shown
from common.durations import duration
from common.errors import printable
from common.hardware import describe_hardware
from pretrain.configuration import PretrainConfig
from pretrain.steps.batches import BatchSizes
from pretrain.steps.schedules import Schedule
from pretrain.watching.curves import CURVES_FILE, draw_curves
from pretrain.watching.metrics import METRICS_FILE, perplexity, read_metrics
from pretrain.watching.progress import Progress


LIBRARIES = ("torch", "transformers", "accelerate", "tokenizers", "datasets", "safetensors")
# Keys that say nothing of the model: where things lie, and how a run is watched, kept and uploaded.
NOT_OF_THE_RECIPE = (
    "output_dir", "data", "text_column", "documents", "on_bad_record", "prepared_dir", "num_proc", "model",
    "model_config", "logging_steps", "eval_steps", "save_steps", "save_total_limit", "keep_every", "on_bad_checkpoint",
    "max_time", "dataloader_num_workers", "push_to_hub", "hub_private_repo", "hub_overwrite", "hub_wait",
    "hub_max_waiting", "language", "license", "report_to", "project",
)  # fmt: skip
AVERAGED = "averaged_"


@dataclass(frozen=True)
class Origin:
    """What the cards of all checkpoints of a run share.

    Args:
        config: of the run.
        data: the manifest of the prepared data.
        hardware: in a few words.
        precision: of the computation.
        launch: what shares the work out over the processes.
    """

    config: PretrainConfig
    data: dict
    hardware: str
    precision: str
    launch: str

    @classmethod
    def of_run(cls, config: PretrainConfig, data: dict, accelerator: Accelerator) -> "Origin":
        precision = "float32" if accelerator.mixed_precision == "no" else accelerator.mixed_precision
        return cls(config, data, describe_hardware(accelerator), precision, _launch(accelerator))


def write_card(folder: Path, model: PreTrainedModel, origin: Origin, progress: Progress, averaged: bool = False):
    """Write the card and the picture of a model with so many steps done into its folder.

    The metrics are those of the run's file up to these steps.

    Args:
        averaged: whether its weights are an average, whose evaluations then count.
    """
    metrics = read_metrics(Path(origin.config.output_dir) / METRICS_FILE)
    metrics = [record for record in metrics if record["step"] <= progress.step]
    if averaged:
        metrics = [_of_average(record) for record in metrics]
    axis = "tokens" if _last(metrics, "tokens") else "step"  # somebody may have taken the metrics away
    draw_curves({_name(origin.config): metrics}, folder / CURVES_FILE, [_entropy(origin)], axis)
    ModelCard(printable(model_card(model, origin, progress, metrics))).save(folder / REPOCARD_NAME)


def model_card(model: PreTrainedModel, origin: Origin, progress: Progress, metrics: list[dict]) -> str:
    """The card's text."""
    config = origin.config
    schedule = Schedule.from_config(config, BatchSizes.from_config(config))
    over = schedule.finished(progress.step, progress.seconds)
    is_luna = config.model_type == "luna"
    architecture = luna.LINK if is_luna else f"`{config.model_type}`"
    introduction = (
        f"An encoder of the architecture {architecture} with {model.num_parameters():,} parameters, pretrained by "
        f"masked language modelling.{f' {luna.ATTENTION}' if is_luna else ''}\n\n"
        f"This is {'the finished model, after' if over else 'a checkpoint of a run that was not over, after'} "
        f"{schedule.place(progress.step)} steps."
    )
    sections = {
        "Use": _usage(config, progress),
        "Data": _data(origin),
        "Training": _training(model, origin, progress),
        "Evaluation": _evaluation(origin, metrics),
        "Limits": "The model has learnt from the text above, with whatever is wrong or one-sided in it, and is not "
        "tuned for any task. It fills masks and represents text; it does not write any.",
        "Versions": _versions(origin),
    }
    if is_luna:
        sections["Citation"] = f"```bibtex\n{luna.CITATION}\n```"
    return card_text(_metadata(origin, metrics), introduction, sections)


def _metadata(origin: Origin, metrics: list[dict]) -> ModelCardData:
    config = origin.config
    datasets = list(dict.fromkeys(source["id"] for source in _sources(origin) if source["kind"] == "hub"))
    evaluated = _last(metrics, "validation_loss")
    results = []
    if evaluated is not None:
        loss = evaluated["validation_loss"]
        for metric, value in (("loss", loss), ("perplexity", perplexity(loss))):
            if value is None:
                continue
            results.append(
                EvalResult(
                    task_type="fill-mask",
                    dataset_type=datasets[0] if len(datasets) == 1 else "text",
                    dataset_name="held-out documents",
                    metric_type=metric,
                    metric_name=f"masked {metric}",
                    metric_value=round(value, 4),
                )
            )
    return ModelCardData(
        language=config.language,
        license=config.license,
        library_name="transformers",
        pipeline_tag="fill-mask",
        tags=luna.TAGS if config.model_type == "luna" else [config.model_type],
        datasets=datasets or None,
        model_name=_name(config),
        eval_results=results or None,
    )


def _usage(config: PretrainConfig, progress: Progress) -> str:
    place = config.push_to_hub or "PATH_OR_ID"
    load = _loading(place, "")
    if config.model_type == "luna":
        pipeline = 'fill_mask = pipeline("fill-mask", model=model, tokenizer=tokenizer)'
        with_package = load.replace("AutoTokenizer\n", "AutoTokenizer, pipeline\n", 1)
        text = luna.usage(f"{with_package}\n{pipeline}", _loading(place, ", trust_remote_code=True"))
    else:
        text = f"```python\n{load}\n```"
    if config.push_to_hub:
        text += (
            f'\n\nEvery checkpoint of the run has a tag: `from_pretrained("{place}", '
            f'revision="step-{progress.step}")` loads this one.'
        )
    return text


def _loading(place: str, trust: str) -> str:
    return (
        "from transformers import AutoModelForMaskedLM, AutoTokenizer\n\n"
        f'model = AutoModelForMaskedLM.from_pretrained("{place}"{trust})\n'
        f'tokenizer = AutoTokenizer.from_pretrained("{place}"{trust})'
    )


def _data(origin: Origin) -> str:
    lines = ["| source | what | details |", "|---|---|---|"]
    for source, identity in zip(origin.config.sources(), _sources(origin), strict=True):
        weight = "" if source.weight is None else f", weight {source.weight}"
        if identity["kind"] == "hub":
            link = f"[{identity['id']}](https://huggingface.co/datasets/{identity['id']})"
            details = f"configuration {source.config or 'default'}, split {source.split}, commit {identity['commit']}"
            lines.append(f"| {link} | dataset of the Hub | {details}{weight} |")
        elif identity["kind"] == "files":
            lines.append(f"| `{shown(source.path)}` | local files | {len(identity['files']):,} files{weight} |")
        else:
            lines.append(f"| `{source.path}` | documentation in the Python code of the machine | all of it{weight} |")
    train, validation = origin.data["splits"]["train"], origin.data["splits"]["validation"]
    return "\n".join(lines) + (
        f"\n\nTo learn from there were {train['tokens']:,} tokens in {train['documents']:,} documents; "
        f"{validation['tokens']:,} tokens in {validation['documents']:,} documents were held out for validation. The "
        f"tokenizer has {origin.data['vocab_size']:,} tokens"
        + (" and was trained on this text." if origin.config.tokenizer is None else ".")
    )


def _training(model: PreTrainedModel, origin: Origin, progress: Progress) -> str:
    options = model.config
    tokens, skipped = progress.counted("tokens"), progress.counted("skipped")
    facts = {
        "steps done": f"{progress.step:,}, {skipped:,} of them skipped as a number was not finite",
        "tokens seen": f"{tokens:,} (padding left out)",
        "time": f"{duration(progress.seconds)}, {tokens / max(progress.seconds, 1e-9):,.0f} tokens/s "
        "(evaluations and checkpoints left out)",
        "hardware": origin.hardware,
        "launch": f"{origin.launch}, {origin.precision}",
    }
    shape = {"shape": describe_shape(options)}
    if origin.config.model_type == "luna":
        shape |= {
            "projection length": options.projection_length,
            "key and value": "tied" if options.tie_key_value else "untied",
            "convolution": options.conv_kernel_size or "none",
            "tokens a row at most": options.max_position_embeddings,
            "dropout": f"{options.hidden_dropout_prob}, of the attention {options.attention_probs_dropout_prob}",
            "initializer range": options.initializer_range,
        }
    recipe = {
        key: value
        for key, value in dataclasses.asdict(origin.config).items()
        if key not in NOT_OF_THE_RECIPE and value is not None
    }
    return (
        f"![Training and validation loss]({CURVES_FILE})\n\n{facts_table(facts)}\n\n"
        f"The model:\n\n{facts_table(shape)}\n\n"
        "The recipe, by the keys of the configuration (a step is an update by `batch_size` rows):\n\n"
        f"{facts_table(recipe)}"
    )


def _evaluation(origin: Origin, metrics: list[dict]) -> str:
    evaluated = [record for record in metrics if record.get("validation_loss") is not None]
    if not evaluated:
        return "The model has not been evaluated at this step."
    last, best = evaluated[-1], min(evaluated, key=lambda record: record["validation_loss"])
    of_last = perplexity(last["validation_loss"])
    facts = {
        f"masked loss at step {last['step']:,}": f"{last['validation_loss']:.4f} nats per predicted token",
        f"perplexity at step {last['step']:,}": "too large for a number" if of_last is None else f"{of_last:.3f}",
        f"lowest masked loss so far, at step {best['step']:,}": f"{best['validation_loss']:.4f}",
        "unigram entropy": f"{_entropy(origin):.4f} nats: the loss of a guess by frequency alone",
    }
    if last.get("validation_accuracy") is not None:
        facts[f"masked accuracy at step {last['step']:,}"] = f"{last['validation_accuracy']:.4f}"
    return f"On the documents that were held out, with the same masks each time:\n\n{facts_table(facts)}"


def _versions(origin: Origin) -> str:
    libraries = [*LIBRARIES, *(["deepspeed"] if origin.launch.startswith("DeepSpeed") else [])]
    versions = {"Python": platform.python_version(), "modeling_luna": modeling_luna.__version__}
    return facts_table(versions | {name: importlib.metadata.version(name) for name in libraries})


def _launch(accelerator: Accelerator) -> str:
    """What shares the work out over the processes."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        return f"DeepSpeed ZeRO-{accelerator.state.deepspeed_plugin.zero_stage}"
    if accelerator.distributed_type == DistributedType.FSDP:
        return "FSDP2"
    return "DDP" if accelerator.num_processes > 1 else "one process"


def _name(config: PretrainConfig) -> str:
    return config.push_to_hub.split("/")[-1] if config.push_to_hub else Path(config.output_dir).absolute().name


def _sources(origin: Origin) -> list[dict]:
    return origin.data["identity"]["sources"]


def _entropy(origin: Origin) -> float:
    return origin.data["splits"]["validation"]["unigram_entropy"]


def _of_average(record: dict) -> dict:
    """A record with the metrics of the averaged weights in the place of those of the weights that are trained."""
    averaged = {key.removeprefix(AVERAGED): value for key, value in record.items() if key.startswith(AVERAGED)}
    return record | averaged


def _last(metrics: list[dict], key: str) -> dict | None:
    return next((record for record in reversed(metrics) if record.get(key) is not None), None)
