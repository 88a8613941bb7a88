"""What an evaluation found, as tables: Markdown for people, CSV for programs."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import tables
from common.tables import NONE, markdown_table, shortened


# Key of the results, heading, and how it is written.
WORD_COLUMNS = (
    ("nats_per_word", "nats per word", "{:.4f}"),
    ("bits_per_byte", "bits per byte", "{:.4f}"),
    ("word_accuracy", "word accuracy", "{:.2%}"),
    ("loss", "loss per token", "{:.4f}"),
    ("perplexity", "perplexity", "{:,.1f}"),
    ("accuracy", "token accuracy", "{:.2%}"),
    ("tokens_per_second", "tokens/s", "{:,.0f}"),
)
FAILED = "failed"


def markdown(results: dict[str, Any]) -> str:
    """A table for each text, one for all minimal pairs with the models as columns, and what failed."""
    labels = _labels([model["model"] for model in results["models"]])
    models = [model | {"label": label} for model, label in zip(results["models"], labels, strict=True)]
    parts = [_text_table(text, models, results["max_length"]) for text in results["data"]]
    if results["minimal_pairs"] is not None:
        parts.append(_pairs_table(results["minimal_pairs"], models))
    problems = [f"- {model['label']}: {problem}" for model in models for problem in model["errors"]]
    if problems:
        parts.append("Failed:\n\n" + "\n".join(shortened(problem) for problem in problems))
    return "\n\n".join(parts) + "\n"


def _labels(names: Sequence[str]) -> list[str]:
    """Names of models, those of folders without the parents that they do not need to be told apart."""
    parts = [Path(name).parts if os.path.isdir(name) else (name,) for name in names]
    for length in range(1, max(map(len, parts))):
        labels = ["/".join(part[-length:]) for part in parts]
        if len(set(labels)) == len(labels):
            return labels
    return list(names)


def _text_table(text: dict[str, Any], models: Sequence[dict[str, Any]], max_length: int) -> str:
    rows = []
    for model in models:
        values = model["data"].get(text["source"], {})
        cells = [_written(values.get(key), form) for key, _, form in WORD_COLUMNS]
        if not values:
            cells[0] = FAILED
        rows.append([model["label"], _written(model["parameters"], "{:,}"), *cells])
    title = (
        f"**{text['source']}**: {text['scored_words']:,} hidden words ({text['scored_bytes']:,} bytes), predicted "
        f"{text['prediction'].replace('_', ' ')}, of "
        f"{text['words']:,} words in {text['documents']:,} documents, {text['rows']:,} rows of at most {max_length:,} "
        "tokens"
    )
    if text["documents_cut"]:
        title += f"; {text['documents_cut']:,} documents are longer and were cut"
    notes = [f"{count:,} {what}" for count, what in _left_out(text) if count]
    if notes:
        title += "; not scored: " + ", ".join(notes)
    return title + "\n\n" + markdown_table(["model", "parameters", *(heading for _, heading, _ in WORD_COLUMNS)], rows)


def _left_out(text: dict[str, Any]) -> list[tuple[int, str]]:
    return [
        (text["hidden_words"] - text["scored_words"], "hidden words that not every tokenizer spells by itself"),
        (text["too_long_words"], "words that are longer than a row"),
    ]


def _pairs_table(pairs: dict[str, Any], models: Sequence[dict[str, Any]]) -> str:
    evaluated = [model["minimal_pairs"] for model in models]
    # Of all pairs, of each group and of each file: the heading, and the results of each model.
    parts = [("**all**", [result and result["overall"] for result in evaluated])]
    some: dict[str, Any] = next((result for result in evaluated if result), {"groups": {}, "files": {}})
    for grouping, groups in some["groups"].items():
        for name in groups:
            of_group = [result and result["groups"][grouping][name] for result in evaluated]
            parts.append((f"{grouping}: {name}", of_group))
    parts += [(name, [result and result["files"][name] for result in evaluated]) for name in some["files"]]
    rows = []
    for heading, results in parts:
        count = next((result["pairs"] for result in results if result), pairs["pairs"])
        accuracies = [f"{result['accuracy']:.2%}" if result else FAILED for result in results]
        rows.append([heading, f"{count:,}", *accuracies])

    ties = [result and result["overall"]["ties"] for result in evaluated]
    rows.append(["ties (count as half)", "", *(_written(value, "{:,}") for value in ties)])
    for key in ("unknown_tokens", "tokens_per_second"):
        values = [_written(result and result[key], "{:,.0f}") for result in evaluated]
        rows.append([key.replace("_", " "), "", *values])
    rows.append(["parameters", "", *(_written(model["parameters"], "{:,}") for model in models)])
    title = (
        f"**{pairs['path']}**: share of minimal pairs whose good sentence has the higher pseudo-log-likelihood "
        f"({pairs['pseudo_log_likelihood']})"
    )
    return title + "\n\n" + markdown_table(["pairs of", "pairs", *(model["label"] for model in models)], rows)


def _written(value: float | None, form: str) -> str:
    return NONE if value is None else form.format(value)


def csv_text(results: dict[str, Any]) -> str:
    """One line for each number: model, task ("text" or "minimal_pairs"), part (source, file, group), metric, value."""
    rows: list[list[Any]] = [["model", "task", "part", "metric", "value"]]
    for model in results["models"]:
        lines = [("", "", "parameters", model["parameters"])] if model["parameters"] is not None else []
        for source, values in model["data"].items():
            lines += [("text", source, metric, value) for metric, value in values.items()]
        pairs = model["minimal_pairs"]
        if pairs:
            parts = {"": pairs["overall"], **pairs["files"]}
            for grouping, groups in pairs["groups"].items():
                parts |= {f"{grouping}: {name}": values for name, values in groups.items()}
            lines += [
                ("minimal_pairs", part, key, value) for part, values in parts.items() for key, value in values.items()
            ]
            lines += [("minimal_pairs", "", key, pairs[key]) for key in ("unknown_tokens", "tokens_per_second")]
        lines += [("", "", "error", problem) for problem in model["errors"]]
        rows += [[model["model"], *line] for line in lines]
    return tables.csv_text(rows)
