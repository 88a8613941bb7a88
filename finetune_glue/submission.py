"""The zip that the server of GLUE takes: `python finetune_glue/submission.py RUN [--model NAME]`.

Of each task it holds the test-set predictions of the best seed of the best setting, chosen on the validation split.
The server wants eleven files at once, AX among them, which an MNLI model predicts. `--fill_missing` gives tasks that
were not run predictions that are the same whatever the text. Where RUN is a .zip, it is checked.
"""

import argparse
import hashlib
import sys
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.errors import UserError, report_user_errors
from common.files import written_whole
from experiments.cell_folder import PREDICTIONS
from experiments.results import Results, Run, read_results
from finetune_glue.data.tasks import GLUE, SUITE, TASKS


HEADER = "index\tprediction"
LOWEST, HIGHEST = 0.0, 5.0  # of STS-B's scores; the server refuses others


@dataclass(frozen=True)
class WantedFile:
    """A file that the server wants.

    Args:
        task: that it belongs to.
        run_on: the task whose models predict it.
        split: name of the predictions in a cell's folder.
        rows: of the official test set.
    """

    task: str
    run_on: str
    split: str
    rows: int

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the labels; none of a regression."""
        return TASKS[self.task].labels


FILES = {
    "CoLA.tsv": WantedFile("cola", "cola", "test", 1063),
    "SST-2.tsv": WantedFile("sst2", "sst2", "test", 1821),
    "MRPC.tsv": WantedFile("mrpc", "mrpc", "test", 1725),
    "STS-B.tsv": WantedFile("stsb", "stsb", "test", 1379),
    "QQP.tsv": WantedFile("qqp", "qqp", "test", 390965),
    "MNLI-m.tsv": WantedFile("mnli", "mnli", "test_matched", 9796),
    "MNLI-mm.tsv": WantedFile("mnli", "mnli", "test_mismatched", 9847),
    "QNLI.tsv": WantedFile("qnli", "qnli", "test", 5463),
    "RTE.tsv": WantedFile("rte", "rte", "test", 3000),
    "WNLI.tsv": WantedFile("wnli", "wnli", "test", 146),
    "AX.tsv": WantedFile("ax", "mnli", "ax", 1104),
}


class SubmissionError(UserError):
    """Predictions that make no submission."""


def write_submissions(results: Results, output_dir: Path) -> list[str]:
    """Write `submission.zip`, or `submission-MODEL.zip` of several models, and say what was written or is missing.

    Nothing ends in an error, since a run that has trained for days is not to: what is wrong is said. A model that was
    tuned on no task of GLUE has nothing for its server.
    """
    messages = []
    for model in dict.fromkeys(group.model for group in results.best_groups() if group.task.name in GLUE):
        name = _zip_name(results, model)
        try:
            messages += write_submission(results, model, output_dir / name)
        except SubmissionError as error:
            first, *details = str(error).splitlines()
            if details:
                first += f" some: `python finetune_glue/submission.py {output_dir} --model {model}` says what to do."
            messages.append(f"no {name}: {first}")
    return messages


def write_submission(results: Results, model: str, output: Path, fill_missing: bool = False) -> list[str]:
    """Write the zip of one model, whole or not at all.

    Args:
        fill_missing: whether tasks without predictions get such as do not look at the text.

    Returns:
        What is to be said of it.

    Raises:
        SubmissionError: where predictions are missing or wrong; a zip that was there before stays.
    """
    contents, problems = _predicted(results, model)
    if problems and not fill_missing:
        raise SubmissionError(
            f"the server wants {len(FILES)} files, and there are no predictions for\n"
            + "".join(f"  {', '.join(names)}: {what_to_do}\n" for what_to_do, names in problems.items())
            + f"`python finetune_glue/submission.py {output.parent} --fill_missing` stands in for these."
        )
    differing = [name for name, content in contents.items() if content.count(b"\n") - 1 != FILES[name].rows]
    filled = [name for name in FILES if name not in contents]
    contents |= {name: _filled(FILES[name]) for name in filled}
    wrong = _problems(contents, official=not differing)
    if wrong:
        raise SubmissionError("; ".join(wrong))
    try:
        with written_whole(output) as whole, zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in FILES:
                archive.writestr(name, contents[name])
    except OSError as error:
        raise SubmissionError(f"{output} cannot be written: {error.strerror}.") from error
    messages = [f"{output}: {len(contents) - len(filled)} files of predictions of {model}"]
    if filled:
        messages.append(f"  filled in without a model, so that their scores mean nothing: {', '.join(filled)}")
    if differing:
        messages.append(
            "  not a valid submission, since the data are not the official ones: the numbers of rows differ in "
            + ", ".join(differing)
        )
    return messages


def _predicted(results: Results, model: str) -> tuple[dict[str, bytes], dict[str, list[str]]]:
    """The files that a model has predictions for, and what to do for the others, with their names."""
    contents: dict[str, bytes] = {}
    not_run: dict[str, list[str]] = {}
    problems: dict[str, list[str]] = {}
    for name, file in FILES.items():
        group = results.best(model, TASKS[file.run_on])
        run = group.best if group else None
        if run is None:
            not_run.setdefault(file.run_on, []).append(name)
            continue
        path = run.folder / PREDICTIONS / f"{file.split}.tsv"
        if path.exists():
            contents[name] = _converted(path, file, run)
        else:
            what_to_do = f"put the test file of {TASKS[file.task].title} with the data"
            problems[f"there is no {path}: {what_to_do}, and run --tasks {file.run_on} again"] = [name]
    if not_run:
        problems[f"run --tasks {','.join(not_run)}"] = [name for names in not_run.values() for name in names]
    return contents, problems


def check_submission(path: Path) -> list[str]:
    """What keeps the server from taking a zip: file names, headers, indices, labels, and numbers of rows.

    Raises:
        SubmissionError: where it is no zip.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _problems({name: archive.read(name) for name in archive.namelist()}, official=True)
    except (OSError, zipfile.BadZipFile, RuntimeError, zlib.error) as error:  # RuntimeError: encrypted
        raise SubmissionError(f"{path} cannot be read as a zip: {error}.") from error


def _problems(contents: dict[str, bytes], official: bool) -> list[str]:
    """What is wrong with the files of a submission.

    Args:
        official: whether the numbers of rows must be those of the official test sets.
    """
    problems = [f"{name} is missing" for name in FILES if name not in contents]
    problems += [f"{name} is none of the server's files" for name in contents if name not in FILES]
    for name, file in FILES.items():
        try:
            predictions = _read(contents[name], name, file) if name in contents else None
        except SubmissionError as error:
            problems.append(str(error))
            continue
        if predictions is None:
            continue
        if official and len(predictions) != file.rows:
            problems.append(f"{name} has {len(predictions):,} rows, not {file.rows:,}")
        if not file.labels and not all(LOWEST <= float(value) <= HIGHEST for value in predictions):
            problems.append(f"{name} has predictions that are not between {LOWEST:g} and {HIGHEST:g}")
    return problems


def _converted(path: Path, file: WantedFile, run: Run) -> bytes:
    """A file for the server from a cell's predictions."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SubmissionError(f"{path} cannot be read: {error.strerror}.") from error
    rows = _read(content, str(path), file)
    assert run.result is not None
    expected = run.result.get("rows", {}).get(file.split, len(rows))
    if len(rows) != expected:
        raise SubmissionError(f"{path} has {len(rows):,} rows, but {expected:,} were predicted: it was cut short.")
    written = run.result.get("predictions", {}).get(file.split)
    if written is not None and written != hashlib.sha256(content).hexdigest():
        raise SubmissionError(f"{path} has been changed since it was written: delete {run.folder} to run it again.")
    if not file.labels:
        rows = [f"{min(max(float(value), LOWEST), HIGHEST):.3f}" for value in rows]
    return _written(rows)


def _read(content: bytes, name: str, file: WantedFile) -> list[str]:
    """The predictions of a file, once its header, indices and labels are known to be right."""
    lines = content.decode(errors="replace").removesuffix("\n").split("\n")
    if lines[0] != HEADER:
        raise SubmissionError(f"{name}, line 1: the header is {lines[0]!r}, not {HEADER!r}.")
    predictions = []
    for number, line in enumerate(lines[1:], start=2):
        index, tab, prediction = line.partition("\t")
        if not tab or index != str(number - 2):
            raise SubmissionError(
                f"{name}, line {number}: {line!r}: it must be index {number - 2}, a tab, and a prediction."
            )
        if not (prediction in file.labels if file.labels else _is_number(prediction)):
            wanted = ", ".join(file.labels) or "a number"
            raise SubmissionError(f"{name}, line {number}: the prediction is {prediction!r}, not {wanted}.")
        predictions.append(prediction)
    return predictions


def _is_number(text: str) -> bool:
    try:
        return abs(float(text)) < float("inf")
    except ValueError:
        return False


def _filled(file: WantedFile) -> bytes:
    """Predictions that do not look at the text: the first label, which most rows of WNLI have, or 0 and 5 in turn.

    Numbers that are all the same have no correlation with anything.
    """
    values: Sequence[str] = file.labels[:1] or (f"{LOWEST:.3f}", f"{HIGHEST:.3f}")
    return _written([values[index % len(values)] for index in range(file.rows)])


def _written(predictions: list[str]) -> bytes:
    lines = [f"{index}\t{prediction}\n" for index, prediction in enumerate(predictions)]
    return (HEADER + "\n" + "".join(lines)).encode()


def _zip_name(results: Results, model: str) -> str:
    return "submission.zip" if len(results.models) == 1 else f"submission-{model}.zip"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n\n")[2], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="output_dir of a run, or a zip to check")
    parser.add_argument("--model", help="name of one of several models in the tables; else all")
    parser.add_argument("--fill_missing", action="store_true", help="stand in for tasks that were not run")
    options = parser.parse_args(arguments)
    if options.run.suffix == ".zip":
        problems = check_submission(options.run)
        print("\n".join(problems) if problems else f"{options.run} is what the server of GLUE takes")
        return int(bool(problems))
    results = read_results(options.run, SUITE)
    if not results.models:
        raise SubmissionError(f"{options.run} holds no cells of a run: name the output_dir of run_glue.py.")
    if options.model is not None and options.model not in results.models:
        raise SubmissionError(f"--model {options.model}: the run has {', '.join(results.models)}.")
    models = results.models if options.model is None else [options.model]
    for model in models:
        output = options.run / _zip_name(results, model)
        print("\n".join(write_submission(results, model, output, options.fill_missing)))
    return 0


if __name__ == "__main__":
    with report_user_errors(kept="No zip was written."):
        sys.exit(main(sys.argv[1:]))
