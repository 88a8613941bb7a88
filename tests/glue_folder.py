"""Tiny files of all tasks of GLUE in the published layout, for tests.

    write_glue_folder(folder, rows=64)

Labels follow from single words, so that a small model learns them from few rows, and take turns: the label of row r
of three labels is r % 3. The files have what the published ones have: no header (CoLA), a byte-order mark and carriage
returns (MRPC), quotes that nothing closes, letters beyond ASCII, other columns in training, validation and test files,
and test files without labels.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from random import Random


SUBJECTS = ("the cat", "a dog", "my sister", "the old man", 'the "fast car', "a café owner")
VERBS = ("likes", "sees", "paints", "follows", "sells")
OBJECTS = ("the house", "a red ball", "some bread", "the green tree", 'his " book')
INFERENCE = {"entailment": "surely", "neutral": "perhaps", "contradiction": "never"}
ENTAILMENT = {"entailment": "surely", "not_entailment": "never"}
MNLI_COLUMNS = (
    "index", "promptID", "pairID", "genre", "sentence1_binary_parse", "sentence2_binary_parse", "sentence1_parse",
    "sentence2_parse", "sentence1", "sentence2",
)  # fmt: skip
TEST_FILES = ("test", "test_matched", "test_mismatched")
Row = Callable[[int, Random], list]


def sentence(random: Random) -> str:
    return f"{random.choice(SUBJECTS)} {random.choice(VERBS)} {random.choice(OBJECTS)}"


def marked(random: Random, words: dict[str, str], row: int) -> tuple[str, str, str]:
    """Two sentences, the second with the word of a label, and that label; labels take turns."""
    label = list(words)[row % len(words)]
    return sentence(random), f"{words[label]} {sentence(random)}", label


def cola(row: int, random: Random) -> list:
    label = row % 2
    words = sentence(random)
    return ["gj04", label, "" if label else "*", f"{words}." if label else f"of {words} of."]


def sst2(row: int, random: Random) -> list:
    return [f"{sentence(random)} and it is {('bad', 'good')[row % 2]} ", row % 2]


def mrpc(row: int, random: Random) -> list:
    first, second, label = marked(random, {"0": "never", "1": "surely"}, row)
    return [label, 1000 + row, 5000 + row, first, second]


def stsb(row: int, random: Random) -> list:
    score = row % 6
    second = " ".join(["same"] * score + ["other"] * (5 - score))
    return [row, "main-captions", "MSRvid", "2012test", row, "none", "none", sentence(random), second, f"{score:.3f}"]


def qqp(row: int, random: Random) -> list:
    first, second, label = marked(random, {"0": "never", "1": "surely"}, row)
    return [9000 - row, row, row, f"{first}?", f"{second}?", label]


def mnli(row: int, random: Random) -> list:
    first, second, label = marked(random, INFERENCE, row)
    return [row, row, f"{row}n", "fiction", "(", "(", "(ROOT", "(ROOT", first, second, label, label]


def mnli_dev(row: int, random: Random) -> list:
    *columns, label = mnli(row, random)
    return [*columns, *[label] * 5]


def pair(words: dict[str, str]) -> Row:
    return lambda row, random: [row, *marked(random, words, row)]


def ax_labelled(row: int, random: Random) -> list:
    return ["", "", "Negation", "", "Artificial", *marked(random, INFERENCE, row)]


PAIR = ("index", "sentence1", "sentence2", "label")
# For each file: the columns of its header (none: no header), and what makes a row; test files leave the label out.
FILES: dict[str, tuple[tuple[str, ...], Row]] = {
    "CoLA/train": ((), cola),
    "CoLA/dev": ((), cola),
    "CoLA/test": (("index", "sentence"), lambda row, random: [row, cola(row, random)[3]]),
    "SST-2/train": (("sentence", "label"), sst2),
    "SST-2/dev": (("sentence", "label"), sst2),
    "SST-2/test": (("index", "sentence"), lambda row, random: [row, sst2(row, random)[0]]),
    "MRPC/train": (("Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"), mrpc),
    "MRPC/dev": (("Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"), mrpc),
    "MRPC/test": (
        ("index", "#1 ID", "#2 ID", "#1 String", "#2 String"),
        lambda row, random: [row, *mrpc(row, random)[1:]],
    ),
    "STS-B/train": (
        ("index", "genre", "filename", "year", "old_index", "source1", "source2", "sentence1", "sentence2", "score"),
        stsb,
    ),
    "STS-B/dev": (
        ("index", "genre", "filename", "year", "old_index", "source1", "source2", "sentence1", "sentence2", "score"),
        stsb,
    ),
    "STS-B/test": (
        ("index", "genre", "filename", "year", "old_index", "source1", "source2", "sentence1", "sentence2"),
        lambda row, random: stsb(row, random)[:9],
    ),
    "QQP/train": (("id", "qid1", "qid2", "question1", "question2", "is_duplicate"), qqp),
    "QQP/dev": (("id", "qid1", "qid2", "question1", "question2", "is_duplicate"), qqp),
    "QQP/test": (("id", "question1", "question2"), lambda row, random: [row, *qqp(row, random)[3:5]]),
    "MNLI/train": ((*MNLI_COLUMNS, "label1", "gold_label"), mnli),
    "MNLI/dev_matched": ((*MNLI_COLUMNS, *(f"label{rater}" for rater in range(1, 6)), "gold_label"), mnli_dev),
    "MNLI/dev_mismatched": ((*MNLI_COLUMNS, *(f"label{rater}" for rater in range(1, 6)), "gold_label"), mnli_dev),
    "MNLI/test_matched": (MNLI_COLUMNS, lambda row, random: mnli(row, random)[:10]),
    "MNLI/test_mismatched": (MNLI_COLUMNS, lambda row, random: mnli(row, random)[:10]),
    "QNLI/train": (("index", "question", "sentence", "label"), pair(ENTAILMENT)),
    "QNLI/dev": (("index", "question", "sentence", "label"), pair(ENTAILMENT)),
    "QNLI/test": (("index", "question", "sentence"), lambda row, random: pair(ENTAILMENT)(row, random)[:3]),
    "RTE/train": (PAIR, pair(ENTAILMENT)),
    "RTE/dev": (PAIR, pair(ENTAILMENT)),
    "RTE/test": (PAIR[:3], lambda row, random: pair(ENTAILMENT)(row, random)[:3]),
    "WNLI/train": (PAIR, pair({"0": "never", "1": "surely"})),
    "WNLI/dev": (PAIR, pair({"0": "never", "1": "surely"})),
    "WNLI/test": (PAIR[:3], lambda row, random: pair({"0": "never", "1": "surely"})(row, random)[:3]),
    "AX/diagnostic": (PAIR[:3], lambda row, random: pair(INFERENCE)(row, random)[:3]),
    "AX/diagnostic-full": (
        (
            "Lexical Semantics", "Predicate-Argument Structure", "Logic", "Knowledge", "Domain", "Premise",
            "Hypothesis", "Label",
        ),
        ax_labelled,
    ),
}  # fmt: skip


def write_glue_folder(
    folder: Path,
    rows: int = 64,
    validation_rows: int = 24,
    test_rows: int | dict[str, int] = 12,
    only: Iterable[str] = (),
) -> Path:
    """Write the files, which are the same for the same arguments.

    Args:
        rows: of each training file.
        validation_rows: of each file that has labels and is not for training, but for AX.
        test_rows: of each test file and of AX, or the number for the names of files, as `CoLA/test`; others have 12.
        only: folders to write, as `CoLA`; by default all.
    """
    for name, (header, make_row) in FILES.items():
        task, _, split = name.partition("/")
        if only and task not in only:
            continue
        if split in TEST_FILES or task == "AX":
            count = test_rows if isinstance(test_rows, int) else test_rows.get(name, 12)
        else:
            count = rows if split == "train" else validation_rows
        # Both files of AX hold the same sentences.
        random = Random(task if task == "AX" else name)
        end = "\r\n" if task == "MRPC" else "\n"
        lines = [header] * bool(header) + [make_row(row, random) for row in range(count)]
        text = "".join("\t".join(map(str, line)) + end for line in lines)
        path = folder / f"{name}.tsv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((b"\xef\xbb\xbf" if task == "MRPC" else b"") + text.encode())
    return folder
