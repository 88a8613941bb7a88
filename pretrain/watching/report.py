"""What the end of a run prints: curves, losses, and masked sentences with the model's guesses."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from common.checksums import take_checksum, with_checksum
from common.config.yaml_config import read_json
from common.errors import UserError, say
from common.files import write_json
from pretrain.data.packed_data import PackedRows
from pretrain.data.tokenizer import word_starts
from pretrain.watching.curves import CURVES_FILE, draw_curves
from pretrain.watching.metrics import METRICS_FILE, finite, read_metrics


SUMMARY_FILE = "summary.json"
MAX_ROWS = 2000  # that are looked through for sentences


class ReportError(UserError):
    """A folder that holds no run."""


def report_run(
    run: Path,
    model_folder: Path,
    model: PreTrainedModel,
    tokenizer,
    rows: PackedRows,
    validation_loss: float,
    entropy: float,
):
    """Write the summary and the picture of a finished run and print how it went."""
    metrics = read_metrics(run / METRICS_FILE)
    summary = {
        "validation_loss": finite(validation_loss),
        "unigram_entropy": entropy,
        "parameters": model.num_parameters(),
        **summarize(metrics),
    }
    write_json(run / SUMMARY_FILE, with_checksum(summary))
    draw_curves({run.name: metrics}, run / CURVES_FILE, [entropy], axis="tokens")
    filled = fill_masked_sentences(model, tokenizer, rows)
    _print_report(run, model_folder, summary, filled, tokenizer.mask_token)


def summarize(metrics: list[dict]) -> dict[str, float | None]:
    """A run's metrics in a few numbers: medians of speeds, the last of what rises; None for what was not measured."""
    summary: dict[str, float | None] = {}
    for key in ("tokens_per_second", "tokens_per_second_per_device", "mfu", "data_wait_share", "padding_share"):
        values = [record[key] for record in metrics if record.get(key) is not None]
        median = float(np.median(values)) if values else None
        summary[key] = median if median is None else round(median) if median > 10 else round(median, 4)
    for key in ("validation_accuracy", "tokens", "labelled_tokens", "peak_memory_gib", "skipped_steps"):
        summary[key] = next((record[key] for record in reversed(metrics) if record.get(key) is not None), None)
    return summary


def plot_runs(runs: list[Path], output: Path, axis: str = "tokens"):
    """Draw the curves of runs, and the unigram entropy of those that are over as a line."""
    metrics, entropies = {}, []
    for run in runs:
        records = read_metrics(run / METRICS_FILE)
        if not records:
            raise ReportError(f"{run} holds no run: {METRICS_FILE} is missing or empty.")
        name = run.absolute().name
        metrics[name if name not in metrics else str(run)] = records
        if (run / SUMMARY_FILE).exists():
            summary = read_json(run / SUMMARY_FILE)
            if not take_checksum(summary):
                print(f"{run / SUMMARY_FILE} is damaged: its unigram entropy is left out")
            elif isinstance(entropy := summary.get("unigram_entropy"), float):
                entropies.append(entropy)
    draw_curves(metrics, output, entropies, axis)


@dataclass(frozen=True)
class FilledSentence:
    """A sentence with a masked word, that word, and the model's guesses with their probabilities."""

    sentence: str
    answer: str
    guesses: list[tuple[str, float]]


@torch.no_grad()
def fill_masked_sentences(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: PackedRows, count: int = 5, guesses: int = 3
) -> list[FilledSentence]:
    """Mask one word in sentences of as many validation rows, the same for each run on the same data."""
    model.eval()
    filled: list[FilledSentence] = []
    starts = word_starts(tokenizer)
    generator = np.random.default_rng(0)
    for index in generator.choice(len(rows), size=min(len(rows), MAX_ROWS), replace=False):
        sentence = _pick_sentence(_pieces(tokenizer, rows[np.array([index])].ids[0]), generator)
        if sentence is None:
            continue
        encoded = tokenizer(sentence, truncation=True, max_length=rows.max_length, return_tensors="pt")
        place = _pick_word(encoded["input_ids"][0], tokenizer, starts, generator)
        if place is None:
            continue
        answer = int(encoded["input_ids"][0, place])
        encoded["input_ids"][0, place] = tokenizer.mask_token_id
        shown = _decode(tokenizer, encoded["input_ids"][0, 1:-1]).replace(tokenizer.mask_token, " ____").strip()
        inputs = {name: encoded[name].to(model.device) for name in ("input_ids", "attention_mask")}
        best = model(**inputs).logits[0, place].float().softmax(dim=-1).topk(guesses)
        words = [
            (_decode(tokenizer, [token]).strip(), p)
            for token, p in zip(best.indices, best.values.tolist(), strict=True)
        ]
        filled.append(FilledSentence(re.sub(r"\s+", " ", shown), _decode(tokenizer, [answer]).strip(), words))
        if len(filled) == count:
            break
    return filled


def _decode(tokenizer: PreTrainedTokenizerBase, ids) -> str:
    return str(tokenizer.decode(ids))


def _pieces(tokenizer: PreTrainedTokenizerBase, ids: np.ndarray) -> list[str]:
    """The texts of the documents, or of parts of them, that stand in a row between special tokens."""
    places = np.flatnonzero(np.isin(ids, tokenizer.all_special_ids))
    return [_decode(tokenizer, piece) for piece in np.split(ids, np.union1d(places, places + 1)) if len(piece) > 1]


def _pick_sentence(texts: list[str], generator: np.random.Generator) -> str | None:
    """A sentence of 8 to 20 plain words."""
    sentences = [piece.strip() for text in texts for piece in re.split(r"(?<=[.!?])\s+", text)]
    plain = [s for s in sentences if 8 <= len(s.split()) <= 20 and re.fullmatch(r"[A-Z][A-Za-z0-9 ,'-]+\.", s)]
    return str(generator.choice(plain)) if plain else None


def _pick_word(ids: torch.Tensor, tokenizer, starts: list[bool], generator: np.random.Generator) -> int | None:
    """The place of a word of at least four letters that is one token, with its sentence going on after it."""
    tokens = [_decode(tokenizer, [token]).strip() for token in ids]
    places = [
        place
        for place in range(2, len(ids) - 2)
        if starts[ids[place]]
        and len(tokens[place]) >= 4
        and tokens[place].isalpha()
        and (starts[ids[place + 1]] or not tokens[place + 1].isalnum())
    ]
    return int(generator.choice(places)) if places else None


def _print_report(run: Path, model_folder: Path, summary: dict, filled: list[FilledSentence], mask_token: str):
    loss, entropy = summary["validation_loss"], summary["unigram_entropy"]
    if loss is None:
        reached, verdict = "not a finite number", "a model that has diverged: lower the learning_rate"
    else:
        reached = f"{loss:.3f} nats per predicted token"
        verdict = f"{entropy - loss:.3f} nats below it: the model has learnt"
        if loss >= entropy:
            verdict = f"{loss - entropy:.3f} nats above it: not yet"
    speed = f"{summary['tokens_per_second'] or 0:,} tokens/s"
    if summary["mfu"] is not None:
        speed += f", {summary['mfu']:.1%} of the peak of the hardware (MFU)"
    print(f"""
Validation loss   {reached}
Unigram entropy   {entropy:.3f} nats: what guessing by word frequency alone would reach
That is           {verdict}
Training speed    {speed}""")
    if filled:
        print("\nMasked sentences from validation documents, and the model's first guesses:")
    for example in filled:
        guesses = ", ".join(f"{word} ({probability:.0%})" for word, probability in example.guesses)
        say(f"\n  {example.sentence}\n    guesses: {guesses}   [was: {example.answer}]")
    print(f"""
Curves    {run / CURVES_FILE}
Metrics   {run / METRICS_FILE}
Model     {model_folder}

Load it:

    import modeling_luna
    from transformers import AutoModelForMaskedLM, AutoTokenizer, pipeline

    model = AutoModelForMaskedLM.from_pretrained({str(model_folder)!r})
    tokenizer = AutoTokenizer.from_pretrained({str(model_folder)!r})
    pipeline("fill-mask", model=model, tokenizer=tokenizer)("Return the number of{mask_token} in the list.")
""")
