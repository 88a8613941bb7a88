"""Make minimal pairs of one's own text, for `evaluation/evaluate.py --minimal_pairs`.

    python evaluation/make_minimal_pairs.py --data TEXT [--held_out 0.02] --output FOLDER

The good sentences are those of the text. In the bad one a word has been swapped for another form of it ("the whale
is", "the whale are"), or two neighbouring words have changed places. Each phenomenon is a file of JSON lines in the
layout of BLiMP. "is" is swapped for "are" as often as "are" for "is", so that knowing which word is the more frequent
one does not help. Some bad sentences are grammatical all the same: the pairs compare models, and their ceiling is
below 100 %.
"""

import argparse
import itertools
import json
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.errors import UserError, report_user_errors
from common.files import make_folder, write_text
from evaluation.options import add_text_options, positive_number, seed


# By phenomenon, words that are swapped for each other.
SWAPPED = {
    "subject_verb_agreement": (("is", "are"), ("was", "were"), ("has", "have"), ("does", "do")),
    "determiner_noun_agreement": (("this", "these"), ("much", "many")),
    "article": (("a", "an"),),
    "pronoun_case": (("he", "him"), ("they", "them"), ("we", "us"), ("I", "me")),
}
OTHER = {word: other for couples in SWAPPED.values() for a, b in couples for word, other in ((a, b), (b, a))}
WORD_ORDER = "word_order"
FIELDS = {"article": "phonology", WORD_ORDER: "syntax"}  # of the others: morphology
LENGTHS = range(6, 21)  # words of a sentence
PLAIN = re.compile(r"[A-Z][A-Za-z ,;'-]*[A-Za-z][.!?]")
WORD = re.compile(r"[A-Za-z'-]+")


class Pair(NamedTuple):
    good: str
    bad: str


def main(arguments: list[str]):
    parser = argparse.ArgumentParser(
        prog="make_minimal_pairs.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_text_options(parser)
    parser.add_argument("--pairs", type=positive_number, default=1000, help="of a phenomenon at most (%(default)s)")
    parser.add_argument("--seed", type=seed, default=0, help="of the choice of sentences (%(default)s)")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="gets a file for each phenomenon")
    options = parser.parse_args(arguments)
    if not options.data:
        parser.error("give --data")
    make_folder(options.output, "--output")
    # Processes that read the built-in corpus import this file again: without what takes seconds to import.
    from evaluation.texts import read_sources, read_texts

    texts = itertools.chain.from_iterable(read_texts(source, options) for _, source in read_sources(options))
    made = make_pairs(texts, options.pairs, np.random.default_rng(options.seed))
    if not any(made.values()):
        raise UserError(
            f"--data: no sentence of {LENGTHS[0]} to {LENGTHS[-1]} plain words makes a pair: give more text."
        )
    for phenomenon, pairs in made.items():
        if pairs:
            write_text(options.output / f"{phenomenon}.jsonl", json_lines(phenomenon, pairs))
        print(f"{phenomenon:28}{len(pairs):6,} pairs")


def make_pairs(texts: Iterable[str], limit: int, generator: np.random.Generator) -> dict[str, list[Pair]]:
    """The pairs of each phenomenon, at most `limit` of each. A sentence is in one pair of swapped words and in one of
    word order at most."""
    swapped: dict[str, list[Pair]] = defaultdict(list)  # by the word of the good sentence
    ordered: list[Pair] = []
    for sentence in dict.fromkeys(sentence for text in texts for sentence in plain_sentences(text)):
        words = list(WORD.finditer(sentence))
        swappable = [word for word in words if _spelling(word) in OTHER]
        if swappable:
            word = swappable[generator.integers(len(swappable))]
            swapped[_spelling(word)].append(swap_word(sentence, word))
        # Longer words and none with a capital letter: "a b" and "b a" may both be right.
        neighbours = [
            (first, second)
            for first, second in itertools.pairwise(words)
            if first[0] != second[0] and all(re.fullmatch("[a-z]{3,}", word[0]) for word in (first, second))
        ]
        if neighbours:
            ordered.append(swap_neighbours(sentence, *neighbours[generator.integers(len(neighbours))]))
    made: dict[str, list[Pair]] = {phenomenon: [] for phenomenon in SWAPPED}
    for phenomenon, couples in SWAPPED.items():
        for couple in couples:
            count = min(limit // (2 * len(couples)), *(len(swapped[form]) for form in couple))
            for form in couple:
                made[phenomenon] += _choose(swapped[form], count, generator)
    made[WORD_ORDER] = _choose(ordered, limit, generator)
    return made


def plain_sentences(text: str) -> Iterator[str]:
    """The sentences of a text that are made of words alone and of a middling length."""
    for sentence in re.split(r"(?<=[.!?])\s+", text):
        if PLAIN.fullmatch(sentence) and len(sentence.split()) in LENGTHS:
            yield sentence


def swap_word(sentence: str, word: re.Match) -> Pair:
    """The sentence, and the one with the other form of a word."""
    other = OTHER[_spelling(word)]
    if word.start() == 0:
        other = other[0].upper() + other[1:]
    return Pair(sentence, sentence[: word.start()] + other + sentence[word.end() :])


def swap_neighbours(sentence: str, first: re.Match, second: re.Match) -> Pair:
    """The sentence, and the one in which two words have changed places."""
    between = sentence[first.end() : second.start()]
    return Pair(sentence, sentence[: first.start()] + second[0] + between + first[0] + sentence[second.end() :])


def _spelling(word: re.Match) -> str:
    return word[0] if word[0] == "I" else word[0].lower()


def _choose(pairs: list[Pair], count: int, generator: np.random.Generator) -> list[Pair]:
    return [pairs[index] for index in generator.permutation(len(pairs))[:count]]


def json_lines(phenomenon: str, pairs: Iterable[Pair]) -> str:
    fields = {"field": FIELDS.get(phenomenon, "morphology"), "linguistics_term": phenomenon}
    lines = (
        {"sentence_good": good, "sentence_bad": bad, **fields, "UID": phenomenon, "pairID": str(number)}
        for number, (good, bad) in enumerate(pairs)
    )
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


if __name__ == "__main__":
    with report_user_errors():
        main(sys.argv[1:])
