"""What a run has to show: the picture of its curves, and what the model fills into masked sentences.

`python pretrain/report.py RUN [RUN ...] --output FILE.png` draws the curves of several runs into one picture.
"""

import argparse
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pretrain.curves import draw_curves
from pretrain.data.packed_data import PackedRows
from pretrain.data.tokenizer import word_starts
from pretrain.errors import UserError, report_user_errors
from pretrain.files import make_folder, write_json
from pretrain.monitoring import METRICS_FILE, read_metrics


SUMMARY_FILE = "summary.json"
CURVES_FILE = "curves.png"


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
    speeds = [record["tokens_per_second"] for record in read_metrics(run / METRICS_FILE) if "loss" in record]
    summary = {
        "validation_loss": validation_loss,
        "unigram_entropy": entropy,
        "tokens_per_second": round(float(np.median(speeds))) if speeds else None,
        "parameters": model.num_parameters(),
    }
    write_json(run / SUMMARY_FILE, summary)
    draw_curves({run.name: read_metrics(run / METRICS_FILE)}, run / CURVES_FILE, [entropy])
    filled = fill_masked_sentences(model, tokenizer, rows)
    _print_report(run, model_folder, summary, filled, tokenizer.mask_token)


def plot_runs(runs: list[Path], output: Path):
    """Draw the curves of finished runs, and the unigram entropy of their validation data as a line."""
    metrics, entropies = {}, []
    for run in runs:
        records = read_metrics(run / METRICS_FILE)
        if not records or not (run / SUMMARY_FILE).exists():
            raise ReportError(f"{run} holds no finished run: {METRICS_FILE} or {SUMMARY_FILE} is missing or empty.")
        metrics[run.name if run.name not in metrics else str(run)] = records
        entropies.append(json.loads((run / SUMMARY_FILE).read_text(encoding="utf-8"))["unigram_entropy"])
    draw_curves(metrics, output, entropies)


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
    """Mask one word in sentences of as many validation documents, the same for each run on the same data."""
    model.eval()
    filled = []
    starts = word_starts(tokenizer)
    generator = np.random.default_rng(0)
    for document in generator.permutation(len(rows.documents) - 1):
        ids = rows.stream[rows.documents[document] : rows.documents[document + 1] - 1]
        sentence = _pick_sentence(_decode(tokenizer, ids[:20_000]), generator)
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


def _pick_sentence(text: str, generator: np.random.Generator) -> str | None:
    """A sentence of 8 to 20 plain words."""
    sentences = [piece.strip() for piece in re.split(r"(?<=[.!?])\s+", text)]
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
    gain = summary["unigram_entropy"] - summary["validation_loss"]
    verdict = f"{gain:.3f} nats below it: the model has learnt" if gain > 0 else f"{-gain:.3f} nats above it: not yet"
    print(f"""
Validation loss   {summary["validation_loss"]:.3f} nats per predicted token
Unigram entropy   {summary["unigram_entropy"]:.3f} nats: what guessing by word frequency alone would reach
That is           {verdict}
Training speed    {summary["tokens_per_second"] or 0:,} tokens/s""")
    if filled:
        print("\nMasked sentences from validation documents, and the model's first guesses:")
    for example in filled:
        guesses = ", ".join(f"{word} ({probability:.0%})" for word, probability in example.guesses)
        print(f"\n  {example.sentence}\n    guesses: {guesses}   [was: {example.answer}]")
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


def main(arguments: list[str]):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="folders of finished runs")
    parser.add_argument("--output", type=Path, required=True, help="the picture to write")
    options = parser.parse_args(arguments)
    make_folder(options.output.parent, "--output")
    plot_runs(options.runs, options.output)
    print(options.output)


if __name__ == "__main__":
    with report_user_errors():
        main(sys.argv[1:])
