"""Minimal pairs as in BLiMP (Warstadt et al., 2020): does a model find the good sentence likelier than the bad one?

A masked language model has no probability of a sentence; its pseudo-log-likelihood takes that place (Salazar et al.,
2020): each token is masked in turn and predicted from all others, and the log probabilities are added up.
"""

import json
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from common.errors import UserError
from common.files import is_file, is_folder
from evaluation.models import MaskedModel, MaskedRow, ModelError, Scorer


# "original" masks one token alone (Salazar et al., 2020). "within_word_l2r" also masks those that follow it in its
# word (Kauf & Ivanova, 2023), since the end of a rare word gives its beginning away.
PSEUDO_LOG_LIKELIHOODS = ("original", "within_word_l2r")
SENTENCES = ("sentence_good", "sentence_bad")
GROUPINGS = ("field", "linguistics_term")
SUFFIXES = (".jsonl", ".ndjson")
TIE = 1e-6  # relative difference of two pseudo-log-likelihoods that is rounding
CHUNK_TOKENS = 2**18  # of masked copies that are made at once


@dataclass(frozen=True)
class MinimalPair:
    """A good and a bad sentence.

    Args:
        place: file and line.
        file: the name of the file within its folder, without its suffix.
        sentences: the good one and the bad one.
        groups: the value of each of `GROUPINGS` that the line has.
    """

    place: str
    file: str
    sentences: tuple[str, str]
    groups: dict[str, str]


class Sentence(NamedTuple):
    """Tokens of a sentence, those around it included.

    Args:
        ids: (tokens,).
        places: those of the sentence itself.
        word_ids: (tokens,), the words as the tokenizer splits them; -1 for the tokens around the sentence.
    """

    ids: np.ndarray
    places: np.ndarray
    word_ids: np.ndarray


def read_minimal_pairs(path: str) -> list[MinimalPair]:
    """Read all JSON lines files of a folder, at all depths, or a single one.

    Raises:
        UserError: for what is not there or not as it must be, with file and line.
    """
    root = Path(path).expanduser()
    if is_folder(root):
        files = sorted(
            file
            for file in root.rglob("*")
            if file.suffix in SUFFIXES and file.is_file() and not _is_hidden(file.relative_to(root))
        )
        if not files:
            raise UserError(f"--minimal_pairs: the folder {path} holds no file that ends in {', '.join(SUFFIXES)}.")
    elif is_file(root):
        root, files = root.parent, [root]
    else:
        raise UserError(f"--minimal_pairs: there is no folder {path} (from {os.getcwd()}).")
    return [pair for file in files for pair in _read_file(file, str(file.relative_to(root).with_suffix("")))]


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _read_file(path: Path, file: str) -> Iterator[MinimalPair]:
    empty = True
    for number, line in enumerate(path.read_bytes().removeprefix(b"\xef\xbb\xbf").splitlines(), start=1):
        if line.strip():
            empty = False
            yield _parse(line, f"{path}:{number}", file)
    if empty:
        raise UserError(f"{path}: the file holds no pair. Remove it, or put pairs into it.")


def _parse(line: bytes, place: str, file: str) -> MinimalPair:
    try:
        value = json.loads(line.decode())  # of bytes it would take UTF-16, too
    except UnicodeDecodeError as error:
        raise UserError(f"{place}: the line is not UTF-8.") from error
    except json.JSONDecodeError as error:
        raise UserError(
            f"{place}: not JSON: {error.msg} at column {error.colno}. Each line must be one object with "
            f"{' and '.join(SENTENCES)}."
        ) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets without end
        raise UserError(f"{place}: the JSON cannot be read: {error}.") from error
    if not isinstance(value, dict):
        raise UserError(f"{place}: the line must be a JSON object with {' and '.join(SENTENCES)}.")
    for key in SENTENCES:
        if key not in value:
            raise UserError(f"{place}: there is no {key!r}, only {', '.join(map(repr, value)) or 'an empty object'}.")
    for key in (*SENTENCES, *(grouping for grouping in GROUPINGS if grouping in value)):
        if not isinstance(value[key], str) or not value[key].strip():
            raise UserError(f"{place}: {key!r} must hold text, but here it is {json.dumps(value[key])[:80]}.")
        try:
            value[key].encode()
        except UnicodeEncodeError as error:
            raise UserError(f"{place}: {key!r} has half a surrogate pair: {json.dumps(value[key])[:80]}.") from error
    good, bad = (value[key] for key in SENTENCES)
    if good == bad:
        raise UserError(f"{place}: the good and the bad sentence are the same: {good[:80]!r}.")
    groups = {grouping: value[grouping] for grouping in GROUPINGS if grouping in value}
    return MinimalPair(place, file, (good, bad), groups)


def evaluate_minimal_pairs(scorer: Scorer, pairs: Sequence[MinimalPair], pseudo_log_likelihood: str) -> dict[str, Any]:
    """The share of pairs whose good sentence is the likelier one; ties count as half.

    A tie is a pair of values that differ by less than `TIE` of the larger one, as of sentences with the same tokens.

    Returns:
        accuracy, pairs, ties: of all pairs, under "overall", of each file and of each group.
        unknown_tokens: tokens of the sentences that the tokenizer does not know.
        tokens_per_second: that went through the model.

    Raises:
        ModelError: where a sentence has more tokens than the model takes. None is cut: its end may be what matters.
    """
    sentences = encode_sentences(scorer.opened, pairs)
    # Equal tokens get equal values: a sentence that several pairs share is scored once.
    unique = {sentence.ids.tobytes(): sentence for sentence in sentences}
    likelihoods, tokens, seconds = score_sentences(scorer, list(unique.values()), pseudo_log_likelihood)
    of_sentence = dict(zip(unique, likelihoods, strict=True))
    good, bad = np.array([of_sentence[sentence.ids.tobytes()] for sentence in sentences]).reshape(-1, 2).T

    ties = np.isclose(good, bad, rtol=TIE, atol=0)
    points = np.where(ties, 0.5, good > bad)
    files: defaultdict[str, list[int]] = defaultdict(list)
    groups: dict[str, defaultdict[str, list[int]]] = {grouping: defaultdict(list) for grouping in GROUPINGS}
    for number, pair in enumerate(pairs):
        files[pair.file].append(number)
        for grouping, value in pair.groups.items():
            groups[grouping][value].append(number)
    unk_token_id = scorer.opened.encoder.unk_token_id
    return {
        "overall": _result(points, ties),
        "groups": {grouping: _results(members, points, ties) for grouping, members in groups.items() if members},
        "files": _results(files, points, ties),
        "unknown_tokens": sum(int((sentence.ids == unk_token_id).sum()) for sentence in sentences),
        "tokens_per_second": round(tokens / seconds, 1),
    }


def encode_sentences(model: MaskedModel, pairs: Sequence[MinimalPair]) -> list[Sentence]:
    """Encode the good and the bad sentence of each pair.

    Raises:
        ModelError: for a sentence without tokens, or with more than the model takes.
    """
    encoder = model.encoder
    sentences = []
    texts = [text for pair in pairs for text in pair.sentences]
    for number, encoded in enumerate(encoder.encode(texts)):
        ids = encoder.row(encoded.ids)
        place = f"{pairs[number // 2].place}: {SENTENCES[number % 2]}"
        if not len(encoded.ids):
            raise ModelError(f"{place} has no token of its tokenizer")
        if not model.takes(len(ids)):
            raise ModelError(f"{place} has {len(ids)} tokens, but it takes {model.max_length} at most")
        word_ids = np.full(len(ids), -1)
        places = np.arange(len(encoder.before), len(encoder.before) + len(encoded.ids))
        word_ids[places] = encoded.word_ids
        sentences.append(Sentence(ids, places, word_ids))
    return sentences


def score_sentences(
    scorer: Scorer, sentences: Sequence[Sentence], pseudo_log_likelihood: str
) -> tuple[np.ndarray, int, float]:
    """The pseudo-log-likelihood of each sentence in nats, the tokens that went through the model, and the seconds."""
    likelihoods = np.zeros(len(sentences))
    order = np.argsort([-len(sentence.ids) for sentence in sentences], kind="stable")
    tokens, seconds = 0, 0.0
    for chunk in _chunks(order, sentences):
        rows, owners = [], []
        for number in chunk:
            copies = masked_copies(sentences[number], scorer.opened.encoder.mask_token_id, pseudo_log_likelihood)
            rows += copies
            owners += [number] * len(copies)
        scores = scorer.score(rows, "minimal pairs")
        np.add.at(likelihoods, owners, scores.log_probabilities)
        tokens += scores.tokens
        seconds += scores.seconds
    return likelihoods, tokens, seconds


def masked_copies(sentence: Sentence, mask_token_id: int, pseudo_log_likelihood: str) -> list[MaskedRow]:
    """A copy of a sentence for each of its tokens, with that token masked and to be predicted."""
    copies = []
    for place in sentence.places:
        masked = np.arange(len(sentence.ids)) == place
        if pseudo_log_likelihood == "within_word_l2r":
            masked |= (sentence.word_ids == sentence.word_ids[place]) & (np.arange(len(sentence.ids)) > place)
        input_ids = np.where(masked, mask_token_id, sentence.ids)
        copies.append(MaskedRow(input_ids, np.array([place]), sentence.ids[[place]]))
    return copies


def _chunks(order: np.ndarray, sentences: Sequence[Sentence]) -> Iterator[np.ndarray]:
    """Sentences whose masked copies together have about `CHUNK_TOKENS` tokens."""
    sizes = np.array([len(sentences[number].ids) * len(sentences[number].places) for number in order])
    chunk = (np.cumsum(sizes) - sizes) // CHUNK_TOKENS
    yield from np.split(order, np.flatnonzero(np.diff(chunk)) + 1)


def _results(groups: dict[str, list[int]], points: np.ndarray, ties: np.ndarray) -> dict[str, dict]:
    return {name: _result(points[members], ties[members]) for name, members in sorted(groups.items())}


def _result(points: np.ndarray, ties: np.ndarray) -> dict[str, float | int]:
    return {"accuracy": float(points.mean()), "pairs": len(points), "ties": int(ties.sum())}
