"""Minimal pairs of one's own text: what is swapped, and that `evaluation/evaluate.py` reads them."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from evaluation.make_minimal_pairs import SWAPPED, Pair, make_pairs, plain_sentences
from evaluation.minimal_pairs import read_minimal_pairs


TEXT = """\
The old whale is swimming near the ship. The old whales are swimming near the ship. It was I, who saw him there.
This long sentence has no number 7 in it. These boats belong to the captain of the port! Short one is. I saw an old
captain near the port."""


@pytest.fixture
def make(script: Callable, tmp_path: Path) -> Callable:
    """Runs the program on a text and gives exit code, output and errors."""

    def make(text: str, *arguments) -> tuple[int, str, str]:
        (tmp_path / "text.txt").write_text(text, encoding="utf-8")
        data = ("--data", tmp_path / "text.txt", "--output", tmp_path / "pairs")
        return script("evaluation/make_minimal_pairs.py", *data, *arguments)

    return make


def test_plain_sentences():
    assert list(plain_sentences(TEXT.replace("\n", " "))) == [
        "The old whale is swimming near the ship.",
        "The old whales are swimming near the ship.",
        "It was I, who saw him there.",
        "These boats belong to the captain of the port!",
        "I saw an old captain near the port.",
    ]


@pytest.mark.parametrize(
    ("phenomenon", "pairs"),
    [
        (
            "subject_verb_agreement",
            {
                Pair("The old whale is swimming near the ship.", "The old whale are swimming near the ship."),
                Pair("The old whales are swimming near the ship.", "The old whales is swimming near the ship."),
            },
        ),
        (
            "determiner_noun_agreement",
            {
                Pair("These boats belong to the captain there.", "This boats belong to the captain there."),
                Pair("Near the port this boat belongs there.", "Near the port these boat belongs there."),
            },
        ),
        (
            "pronoun_case",
            {
                Pair("I saw captain Ahab near the ship.", "Me saw captain Ahab near the ship."),
                Pair("Captain Ahab saw me near the ship.", "Captain Ahab saw I near the ship."),
            },
        ),
    ],
)
def test_one_word_is_swapped(phenomenon: str, pairs: set[Pair]):
    made = make_pairs([pair.good for pair in pairs], 1000, np.random.default_rng(0))
    assert set(made.pop(phenomenon)) == pairs
    assert not any(made[other] for other in SWAPPED if other != phenomenon)


def test_neighbours_change_places():
    good = "Without any warning, storms, sink Ahab or us."
    (pair,) = make_pairs([good], 1000, np.random.default_rng(0))["word_order"]
    assert pair in [
        (good, "Without warning any, storms, sink Ahab or us."),
        (good, "Without any storms, warning, sink Ahab or us."),
        (good, "Without any warning, sink, storms Ahab or us."),
    ]


def test_a_word_that_comes_twice_does_not_change_places_with_itself():
    assert not make_pairs(["It is as he had had, had he of it."], 1000, np.random.default_rng(0))["word_order"]


def test_both_forms_are_swapped_as_often_and_no_more_than_asked_for():
    texts = [f"In {name} the whale is old." for name in ("spring", "summer", "autumn", "winter", "June", "May")]
    texts += [f"In {name} the whales are old." for name in ("spring", "summer", "autumn")] * 2
    made = make_pairs(texts, 100, np.random.default_rng(0))["subject_verb_agreement"]
    assert Counter("is" in pair.good.split() for pair in made) == {True: 3, False: 3}
    assert len(set(made)) == 6
    assert len(make_pairs(texts, 16, np.random.default_rng(0))["subject_verb_agreement"]) == 4  # 2 of each of 8 forms
    assert len(make_pairs(texts, 2, np.random.default_rng(0))["word_order"]) == 2


def test_files_that_the_evaluation_reads(make: Callable, tmp_path: Path):
    code, output, errors = make(TEXT.replace("\n", " ").replace(". ", ".\n"), "--documents", "line")
    assert code == 0, errors
    assert "subject_verb_agreement" in output
    pairs = read_minimal_pairs(str(tmp_path / "pairs"))
    assert {pair.file for pair in pairs} == {"subject_verb_agreement", "word_order"}
    assert {pair.groups["linguistics_term"] for pair in pairs} == {pair.file for pair in pairs}
    line = (tmp_path / "pairs" / "word_order.jsonl").read_text(encoding="utf-8").splitlines()[0]
    assert json.loads(line)["field"] == "syntax"

    files = {path.name: path.read_bytes() for path in (tmp_path / "pairs").iterdir()}
    make(TEXT.replace("\n", " ").replace(". ", ".\n"), "--documents", "line")
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "pairs").iterdir()}


def test_text_without_pairs_is_an_error(make: Callable):
    code, _, errors = make("Nothing.\n")
    assert code == 2 and "--data: no sentence of 6 to 20 plain words makes a pair" in errors
