"""Where sentences begin in a text.

A line is at least one sentence. Within a line a sentence ends at `.`, `!`, `?` or an ellipsis, with the quotes and
brackets that close after it, where white space follows and then something that is not a small letter; and at the full
stops of Chinese and Japanese. A dot after an abbreviation, an initial or the number of an item ends nothing.
"""

import re


CLOSING = "\"'”’»)\\]"
OPENING = "\"'“‘«(\\[¿¡*_"
# One set of characters first: the search for it is many times faster than one for several alternatives.
BOUNDARY = re.compile(
    r"[\n.!?…。！？](?:(?<=\n)\s*"
    rf"|(?<=[.!?…])(?P<more>[.!?…]*)[{CLOSING}]*[^\S\n]+(?=[{OPENING}]*(?P<first>[^\W_a-z]))"
    r"|(?<=[。！？])[。！？]*[」』”’）]*[^\S\n]*)"
)
WORD = re.compile(r"[^\s\"'“‘«(\[]*\Z")
LONGEST_ABBREVIATION = 12

# Of English, with the dots that they are written with inside; single letters count as initials anyway.
ABBREVIATIONS = frozenset((
    "a.m", "adj", "adm", "adv", "al", "approx", "apr", "art", "assn", "aug", "ave", "bldg", "brig", "capt", "cf",
    "ch", "chap", "co", "col", "comdr", "corp", "cpl", "dec", "dept", "dist", "div", "dr", "e.g", "ed", "eds", "eq",
    "eqs", "esp", "esq", "est", "et", "etc", "ex", "feb", "fig", "figs", "fl", "fr", "ft", "gen", "gov", "hon",
    "i.e", "ibid", "inc", "jan", "jr", "jul", "jun", "lt", "ltd", "maj", "mar", "max", "messrs", "min", "mr", "mrs",
    "ms", "msgr", "mt", "no", "nos", "nov", "oct", "op", "p.m", "ph.d", "pl", "pp", "pres", "prof", "pt", "pvt",
    "rep", "rev", "rs", "sec", "sect", "sen", "sept", "sgt", "sr", "st", "supt", "tab", "tel", "trans", "u.k",
    "u.s", "univ", "usu", "viz", "vol", "vols", "vs",
))  # fmt: skip


def sentence_starts(text: str) -> list[int]:
    """The places of the characters with which the sentences of a text begin, but for the first sentence."""
    starts = []
    for boundary in BOUNDARY.finditer(text):
        if boundary["first"] and not _ends_sentence(text, boundary):
            continue
        if boundary.end() < len(text):
            starts.append(boundary.end())
    return starts


def _ends_sentence(text: str, boundary: re.Match) -> bool:
    if boundary["first"].islower():
        return False
    if boundary["more"] or text[boundary.start()] != ".":
        return True
    start = max(0, boundary.start() - LONGEST_ABBREVIATION)
    word = WORD.search(text, start, boundary.start())[0].lower()  # type: ignore[index]
    if word in ABBREVIATIONS or (len(word) == 1 and word.isalpha()):
        return False
    place = boundary.start() - len(word)
    begins_line = place == 0 or text[place - 1] == "\n"
    return not (word.isdigit() and begins_line)
