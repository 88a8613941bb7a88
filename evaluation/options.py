"""The options of `evaluation/evaluate.py`, and those by which every program of this folder names texts."""

import argparse
import os
from pathlib import Path


LARGEST = 10**12  # number of an option
SUFFIXES = (".json", ".csv", ".md")

EPILOG = """\
text: A word is a stretch without white space (a Chinese character is one by itself; stretches of more than 40
characters are never hidden). Which words are hidden depends on (--seed, text of the document, number of the word)
alone. All tokens of a hidden word are replaced by the mask token and predicted from the rest of the row, at once or
(--prediction left_to_right) with those before them in place. At once a small vocabulary, with more tokens in a word,
is at a disadvantage.
  nats per word    sum of -log p over all tokens of the hidden words, divided by the number of these words
  bits per byte    the same sum in bits, divided by the length of these words in UTF-8
  word accuracy    share of words of which every token is the likeliest at its place
  loss per token, its exponential (perplexity), token accuracy: the same sum, and the right predictions, divided by
                   the number of these tokens; comparable between models with the same tokenizer only
Documents are cut between words into rows that fit all models, without overlap, so that each word has the same context
in all. Words that one of the tokenizers does not know, or writes into a token with a neighbour, are hidden from all
models but not scored. This is harder than the validation of a training run: whole words are hidden, and always.

minimal pairs: JSON lines with sentence_good and sentence_bad, and field and linguistics_term where the pairs have
groups as in BLiMP. The values are pseudo-log-likelihoods; ties (a relative difference below 1e-6) count as half.

exit codes: 0; 1 where a model failed (the others were evaluated); 2 for wrong input; 130 where it was interrupted.
The files of --output are written after each model, whole or not at all.
"""


def parse_arguments(arguments: list[str], about: str) -> argparse.Namespace:
    """
    Args:
        about: what `--help` prints before the options.
    """
    parser = argparse.ArgumentParser(
        prog="evaluate.py",
        description=about,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("models", nargs="+", metavar="MODEL", help="a folder, or an id of the Hub; ID@REVISION for another revision")
    add_text_options(parser)
    add("--mask_probability", type=share, default=0.15, help="the share of words to hide (%(default)s)")
    add(
        "--prediction",
        choices=("at_once", "left_to_right"),
        default="at_once",
        help="of the tokens of a hidden word: all at once, or one after the other, which is fairer where vocabularies "
        "differ and takes several passes (%(default)s)",
    )
    add("--seed", type=seed, default=0, help="of the choice of hidden words (%(default)s)")
    add(
        "--max_length",
        type=positive_number,
        help="tokens of a row; if not given as many as all models take, 512 at most",
    )
    add("--minimal_pairs", metavar="FOLDER", help="JSON lines files of pairs, or a single file")
    add(
        "--pll",
        choices=("original", "within_word_l2r"),
        default="original",
        help="pseudo-log-likelihood: mask one token at a time (original, Salazar et al. 2020), or also those that "
        "follow it in its word (within_word_l2r, Kauf & Ivanova 2023; %(default)s)",
    )
    add(
        "--batch_size",
        type=positive_number,
        default=32,
        help="rows of max_length at once; more of shorter ones (%(default)s)",
    )
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="of weights and activations (%(default)s)")
    add("--device", default="auto", help="auto: the best there is; or cpu, cuda, mps, xpu (%(default)s)")
    add("--trust_remote_code", action="store_true", help="run the Python code that models bring along")
    add("--output", nargs="+", type=output_file, default=[], metavar="FILE", help="FILE.json, FILE.csv or FILE.md")
    options = parser.parse_args(arguments)
    if not options.data and options.minimal_pairs is None:
        parser.error("give --data, --minimal_pairs or both")
    options.data = list(dict.fromkeys(options.data))
    options.models = list(dict.fromkeys(str(Path(name)) if os.path.isdir(name) else name for name in options.models))
    return options


def add_text_options(parser: argparse.ArgumentParser):
    """Add the options that `evaluation.texts` reads."""
    add = parser.add_argument
    add(
        "--data",
        nargs="+",
        default=[],
        metavar="SOURCE",
        help="texts, named as in the `data` of a pretraining: files, folders, patterns, datasets of the Hub, "
        "python-docs, or mappings such as '{path: wikitext, config: wikitext-103-raw-v1, split: test}'",
    )
    add(
        "--text_column",
        default="text",
        help="column of tables, and key of JSON lines, that holds the text (%(default)s)",
    )
    add(
        "--documents",
        default="auto",
        help="what a document is in text files: auto, line, blank_line or file (%(default)s)",
    )
    add("--split", default="validation", help="split of datasets of the Hub (%(default)s)")
    add(
        "--held_out",
        type=share,
        metavar="SHARE",
        help="read the documents alone that pretraining with validation_share SHARE keeps for validation",
    )
    add("--max_documents", type=positive_number, help="read so many documents of each source at most")


def positive_number(text: str) -> int:
    if not 1 <= int(text) <= LARGEST:
        raise argparse.ArgumentTypeError(f"{text} is not between 1 and {LARGEST:,}")
    return int(text)


def seed(text: str) -> int:
    if not 0 <= int(text) < 2**63:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 2**63")
    return int(text)


def share(text: str) -> float:
    if not 0 < float(text) <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return float(text)


def output_file(text: str) -> Path:
    if Path(text).suffix not in SUFFIXES:
        raise argparse.ArgumentTypeError(f"{text} does not end in {' or '.join(SUFFIXES)}")
    return Path(text)
