# Copyright 2026 The Luna for Transformers authors.
# SPDX-License-Identifier: Apache-2.0
"""The tokenizer of a converted model gives the ids that fairseq gives: GPT-2's BPE, then the dictionary."""

import argparse
import json
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from official_luna import FIXTURES
from tokenizers import ByteLevelBPETokenizer
from transformers import AutoModelForMaskedLM, AutoTokenizer

from modeling_luna.convert_luna_fairseq_to_hf import ConversionError, build_tokenizer, main, read_dictionary
from modeling_luna.tokenization_luna import LunaTokenizer


TRAINED_ON = [
    "Luna packs the tokens of a sentence into a few slots, and unpacks the slots into the tokens.",
    "The moon goes round the earth, and the earth goes round the sun: isn't that 1 of 365 days?",
    "A short row uses fewer slots than a long row; they're padded, I'll say.",
]
TEXTS = [
    *TRAINED_ON,
    "The tokens' slots unpacked: padding rows, earthlings and moonlight!",
    "  two  blanks\n\na line\tand a tab ",
    "Ünïcödé, 月 and 🌙; snake_case __init__ 3.14",
    "",
]
UNKNOWN, BEGIN, END = 3, 0, 2
MAX_LENGTH = 40


class Bpe:
    """GPT-2's byte-level BPE, written from its definition and not from a library."""

    WORDS = re.compile(r"'(?:s|t|re|ve|m|ll|d)| ?[^\W\d_]+| ?\d+| ?(?:[^\s\w]|_)+|\s+(?!\S)|\s+")

    def __init__(self, encoder: Path, merges: Path):
        self.encoder = json.loads(encoder.read_text(encoding="utf-8"))
        lines = merges.read_text(encoding="utf-8").split("\n")
        pairs = [tuple(line.split()) for line in lines if line and not line.startswith("#version")]
        self.ranks = {pair: rank for rank, pair in enumerate(pairs)}
        printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
        others = [byte for byte in range(256) if byte not in printable]
        self.characters = {byte: chr(byte) for byte in printable}
        self.characters |= {byte: chr(256 + place) for place, byte in enumerate(others)}

    def encode(self, text: str) -> list[int]:
        tokens = []
        for word in self.WORDS.findall(text):
            parts = [self.characters[byte] for byte in word.encode()]
            while pairs := [pair for pair in zip(parts, parts[1:], strict=False) if pair in self.ranks]:
                best = min(pairs, key=self.ranks.__getitem__)
                merged, i = [], 0
                while i < len(parts):
                    if tuple(parts[i : i + 2]) == best:
                        merged.append(parts[i] + parts[i + 1])
                        i += 2
                    else:
                        merged.append(parts[i])
                        i += 1
                parts = merged
            tokens += [self.encoder[part] for part in parts]
        return tokens


def fairseq_ids(bpe: Bpe, symbols: list[str], text: str) -> list[int]:
    rows = {symbol: row for row, symbol in enumerate(symbols)}
    return [BEGIN, *(rows.get(str(index), UNKNOWN) for index in bpe.encode(text)), END]


@pytest.fixture(scope="module")
def bpe_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """encoder.json and vocab.bpe; a token's id says nothing about when it was made."""
    folder = tmp_path_factory.mktemp("bpe")
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(TRAINED_ON, vocab_size=420, min_frequency=1, show_progress=False)
    trained.save_model(str(folder))
    return folder / "vocab.json", folder / "merges.txt"


@pytest.fixture
def dictionary(bpe_files: tuple[Path, Path], tmp_path: Path) -> Callable[..., Path]:
    """A dict.txt in scrambled order, from which every `leave_out`th token of the BPE is missing."""

    def write(leave_out: int | None = None, extra: tuple[str, ...] = ("madeupword0000",)) -> Path:
        ids = sorted(json.loads(bpe_files[0].read_text(encoding="utf-8")).values())
        random.Random(0).shuffle(ids)
        kept = [i for place, i in enumerate(ids) if leave_out is None or place % leave_out]
        path = tmp_path / "dict.txt"
        path.write_text("".join(f"{symbol} 1\n" for symbol in (*map(str, kept), *extra)))
        return path

    return write


def check_ids(tokenizer: LunaTokenizer, bpe: Bpe, symbols: list[str]):
    for text in TEXTS:
        assert tokenizer(text)["input_ids"] == fairseq_ids(bpe, symbols, text), text
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    for text, ids, mask in zip(TEXTS, batch["input_ids"], batch["attention_mask"], strict=True):
        assert ids[mask.bool()].tolist() == fairseq_ids(bpe, symbols, text)
        assert ids[~mask.bool()].eq(1).all()
    first, second = (fairseq_ids(bpe, symbols, text) for text in TEXTS[:2])
    assert tokenizer(*TEXTS[:2])["input_ids"] == [*first, END, *second[1:]]
    assert tokenizer(TEXTS[0], truncation=True, max_length=9)["input_ids"] == [*first[:8], END]


def check_masks(tokenizer: LunaTokenizer, bpe: Bpe, symbols: list[str]):
    before, after = fairseq_ids(bpe, symbols, "The moon")[:-1], fairseq_ids(bpe, symbols, " the earth")[1:]
    assert tokenizer("The moon <mask> the earth")["input_ids"] == [*before, len(symbols) - 1, *after]
    assert tokenizer.mask_token_id == len(symbols) - 1


def test_dictionary_with_every_token(bpe_files: tuple[Path, Path], dictionary: Callable, tmp_path: Path):
    symbols = read_dictionary(dictionary())
    built = build_tokenizer(symbols, *bpe_files, MAX_LENGTH)
    built.save_pretrained(tmp_path / "saved")
    for tokenizer in (built, AutoTokenizer.from_pretrained(tmp_path / "saved")):
        assert type(tokenizer) is LunaTokenizer
        check_ids(tokenizer, Bpe(*bpe_files), symbols)
        check_masks(tokenizer, Bpe(*bpe_files), symbols)
        assert len(tokenizer) == len(symbols)
        assert tokenizer.model_max_length == MAX_LENGTH
        assert tokenizer.convert_tokens_to_ids("madeupword0000") == len(symbols) - 2
        assert tokenizer.decode(tokenizer(TEXTS[4])["input_ids"], skip_special_tokens=True) == TEXTS[4]


@pytest.mark.parametrize("leave_out", [2, 7])
def test_tokens_missing_in_the_dictionary(
    leave_out: int, bpe_files: tuple[Path, Path], dictionary: Callable, tmp_path: Path
):
    symbols = read_dictionary(dictionary(leave_out))
    bpe = Bpe(*bpe_files)
    assert UNKNOWN in fairseq_ids(bpe, symbols, TEXTS[0])
    built = build_tokenizer(symbols, *bpe_files, MAX_LENGTH)
    built.save_pretrained(tmp_path / "saved")
    for tokenizer in (built, AutoTokenizer.from_pretrained(tmp_path / "saved")):
        assert type(tokenizer) is LunaTokenizer
        check_ids(tokenizer, bpe, symbols)
        check_masks(tokenizer, bpe, symbols)
        assert len(tokenizer) == tokenizer.vocab_size == len(symbols)
        assert sorted(tokenizer.get_vocab().values()) == list(range(len(symbols)))
        assert tokenizer.model_max_length == MAX_LENGTH
        missing = next(token for token, i in bpe.encoder.items() if str(i) not in symbols)
        assert tokenizer.convert_tokens_to_ids(missing) == UNKNOWN
        assert tokenizer.convert_tokens_to_ids(tokenizer.tokenize(TEXTS[0])) == tokenizer(TEXTS[0])["input_ids"][1:-1]
        with pytest.raises(ValueError, match=f"Cannot add {missing!r}"):
            tokenizer.add_tokens([missing])


def test_symbols_that_no_text_leads_to(bpe_files: tuple[Path, Path], dictionary: Callable):
    """Ids beyond the BPE's, words, a symbol that is overwritten: all have rows, none takes another's place."""
    path = dictionary(leave_out=5, extra=("the", "0123", "99999", "a", "Ġthe"))
    first = path.read_text().splitlines()[0]
    path.write_text(path.read_text() + f"{first} #fairseq:overwrite\n<unk> 1 #fairseq:overwrite\n")
    symbols = read_dictionary(path)
    tokenizer = build_tokenizer(symbols, *bpe_files, MAX_LENGTH)
    check_ids(tokenizer, Bpe(*bpe_files), [*symbols[:-2], "<none>", symbols[-1]])
    check_masks(tokenizer, Bpe(*bpe_files), symbols)
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(symbols)))
    assert tokenizer.unk_token_id == UNKNOWN


def test_files_that_do_not_fit(bpe_files: tuple[Path, Path], dictionary: Callable, tmp_path: Path):
    encoder, merges = bpe_files
    symbols = read_dictionary(dictionary())
    other = tmp_path / "other"

    def refuse(message: str, *files: Path, symbols: list[str] = symbols):
        with pytest.raises(ConversionError, match=message):
            build_tokenizer(symbols, *files, MAX_LENGTH)

    refuse("No symbol of the dictionary is an id", *bpe_files, symbols=[*symbols[:4], "words", "alone", "<mask>"])
    refuse("Cannot read", tmp_path / "nowhere", merges)
    refuse("is not the encoder.json", merges, merges)
    other.write_text('["a"]')
    refuse("does not give each token an id", other, merges)
    other.write_text(json.dumps({"<s>": 0, "<pad>": 1} | json.loads(encoder.read_text(encoding="utf-8"))))
    refuse("has <s>, <pad>: it is the vocabulary of another tokenizer", other, merges)
    other.write_text("#version: 0.2\nt h\nt\n")
    refuse("line 3: expected two tokens", encoder, other)
    other.write_text("月 月\n", encoding="utf-8")
    refuse("do not fit together", encoder, other)


@pytest.fixture
def checkpoint(dictionary: Callable, tmp_path: Path) -> Callable[..., dict[str, Path]]:
    """The options of the command for a checkpoint with the rows of a dictionary."""

    def write(leave_out: int | None) -> dict[str, Path]:
        path = dictionary(leave_out)
        rows = len(read_dictionary(path))
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(FIXTURES / "bert_tied" / "checkpoint.pt", weights_only=True)
        embedding = torch.randn(rows, 32, generator=torch.Generator().manual_seed(0))
        for name in ("encoder.sentence_encoder.embed_tokens.weight", "encoder.lm_head.weight"):
            content["model"][name] = embedding
        content["model"]["encoder.lm_head.bias"] = torch.zeros(rows)
        torch.save(content, tmp_path / "model.pt")
        return {"checkpoint_path": tmp_path / "model.pt", "dict_path": path, "output_dir": tmp_path / "out"}

    return write


@pytest.mark.parametrize("leave_out", [None, 4])
def test_converted_folder(
    leave_out: int | None,
    bpe_files: tuple[Path, Path],
    checkpoint: Callable,
    capsys: pytest.CaptureFixture[str],
):
    options = checkpoint(leave_out) | dict(zip(("vocab_file", "merges_file"), bpe_files, strict=True))
    assert main([word for name, value in options.items() for word in (f"--{name}", str(value))]) == 0
    out = capsys.readouterr().out
    assert "Tokenizer: LunaTokenizer" in out
    assert ("of the BPE are not in the dictionary" in out) == (leave_out is not None)

    folder = options["output_dir"]
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForMaskedLM.from_pretrained(folder)
    assert type(tokenizer) is LunaTokenizer
    assert len(tokenizer) == model.config.vocab_size
    assert tokenizer.model_max_length == model.config.max_position_embeddings == MAX_LENGTH
    check_ids(tokenizer, Bpe(*bpe_files), read_dictionary(options["dict_path"]))
    model(**tokenizer(TEXTS, padding=True, truncation=True, return_tensors="pt"))
    assert "AutoTokenizer" in (folder / "README.md").read_text()


def test_one_file_alone_is_refused(bpe_files: tuple[Path, Path], checkpoint: Callable, capsys):
    options = checkpoint(None) | {"vocab_file": bpe_files[0]}
    assert main([word for name, value in options.items() for word in (f"--{name}", str(value))]) == 2
    assert "give both or neither" in capsys.readouterr().err
    assert not options["output_dir"].exists()


WITHOUT_THE_PACKAGE = """
import sys
from transformers import AutoTokenizer
assert not any("modeling_luna" in name for name in sys.modules)
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True)
print(type(tokenizer).__module__, tokenizer(sys.argv[2])["input_ids"])
"""


@pytest.mark.slow
def test_tokenizer_without_the_package(
    bpe_files: tuple[Path, Path], dictionary: Callable, subprocess_environment: dict[str, str], tmp_path: Path
):
    symbols = read_dictionary(dictionary(3))
    build_tokenizer(symbols, *bpe_files, MAX_LENGTH).save_pretrained(tmp_path / "saved")
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_THE_PACKAGE, tmp_path / "saved", TEXTS[0]],
        env=subprocess_environment | {"HF_HOME": str(tmp_path / "home")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    module, ids = done.stdout.strip().splitlines()[-1].split(" ", 1)
    assert module.startswith("transformers_modules.")
    assert json.loads(ids) == fairseq_ids(Bpe(*bpe_files), symbols, TEXTS[0])
