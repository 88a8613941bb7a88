"""Text that is not UTF-8: its encoding, how to convert it, and what no encoding can write."""

import codecs
import os
import shlex


# Encodings of two or four bytes a letter, and what a file of them may begin with; those of four are to be tried first.
WIDE_ENCODINGS = {
    "UTF-32LE": codecs.BOM_UTF32_LE,
    "UTF-32BE": codecs.BOM_UTF32_BE,
    "UTF-16LE": codecs.BOM_UTF16_LE,
    "UTF-16BE": codecs.BOM_UTF16_BE,
}
DECOMPRESSING_COMMANDS = {".gz": "gzip -dc", ".bz2": "bzip2 -dc", ".xz": "xz -dc", ".zst": "zstd -dc"}
SAMPLE_BYTES = 2**12  # by which an encoding is told
FEWEST_SPACES = 0.01  # share of the letters of such text


def wide_encoding(start: bytes) -> str | None:
    """The encoding of text of two or four bytes a letter, by its byte order mark, or by the zero bytes of ASCII."""
    for encoding, mark in WIDE_ENCODINGS.items():
        if start.startswith(mark):
            return encoding
    if b"\0" not in start:
        return None
    shares = {encoding: _share_of_spaces(start, encoding) for encoding in WIDE_ENCODINGS}
    likeliest = max(shares, key=shares.__getitem__)
    return likeliest if shares[likeliest] >= FEWEST_SPACES else None


def _share_of_spaces(start: bytes, encoding: str) -> float:
    """The share of the letters that are spaces or line ends, if text is read in an encoding of several bytes a letter;
    0 where that makes no sense: there are zeros, or most letters are two of ASCII taken together."""
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(start)
    except UnicodeDecodeError:
        return 0
    taken_together = sum(all(0x20 <= byte < 0x7F for byte in letter.encode(encoding)) for letter in text)
    if "\0" in text or taken_together >= len(text) / 2:
        return 0
    return sum(letter in " \t\r\n" for letter in text) / len(text)


def conversion(file: str, encoding: str) -> str:
    """How to make UTF-8 of a file."""
    decompress = DECOMPRESSING_COMMANDS.get(os.path.splitext(file.lower())[1])
    source = f"{decompress} {shlex.quote(file)} |" if decompress else f"< {shlex.quote(file)}"
    return f"Convert it: {source} iconv -f {encoding} -t UTF-8 > NEW_FILE"


def without_half_characters(text: str) -> str:
    """Text with U+FFFD in place of half surrogate pairs, which JSON can hold and no encoding can write."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
