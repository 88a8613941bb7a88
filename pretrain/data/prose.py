"""What is English prose in the documentation of a program: the rules of the corpus `python-docs`.

Code, tables, titles, type lines and markup are removed from reStructuredText, Markdown and plain text. Of the
paragraphs that are left, those count that read as English sentences.
"""

import inspect
import re
from collections.abc import Callable, Iterator
from functools import lru_cache


MINIMUM_WORDS = 5

FENCE = re.compile(r"```|~~~")
CODE_PROMPT = re.compile(r">>>|In \[\d*\]:|\$ ")
TABLE_RULE = re.compile(r"[=\-+]{2,}(?:[ +|][ =\-+|]*)+")
UNDERLINE = re.compile(r"([=\-~^\"'#*+`.:_])\1{2,}")
DIRECTIVE = re.compile(r"\.\.(?:\s+(?P<name>[\w:-]+)::)?(?:\s+(?P<text>.*))?")
PROSE_DIRECTIVES = {"note", "warning", "tip", "hint", "important", "caution", "attention", "seealso"}
DROPPED_LINE = re.compile(r":(?:r?type|vartype|default|noindex)\b.*|\[\[?\w+\]?\].*|</?\w+[^>]*>|@r?type\b.*")

BULLET = r"[-*+•]\s+|\(?(?:\d{1,2}|[a-z])[.)]\s+"
FIELD = r":\w+(?:[ ][^:`]+)?:\s+|@\w+[^:]*:\s+"
PARAMETER = r"[*`]{0,2}[A-Za-z_][\w.]*[*`]{0,2}\s*\(.*?\)\s*(?::|--?)\s+|[*`]{0,2}[a-z_][\w.]*[`*]{0,2}:\s+"
# NumPy style: a line of name and type, with the description below it.
TYPED_NAME = re.compile(r"[\w*`, .]+ : +")
ENTRY = re.compile(f"(?:{BULLET})?(?:{FIELD}|{PARAMETER})|{BULLET}")


def prose_paragraphs(documentation: str) -> Iterator[str]:
    """Yields the paragraphs of English prose in reStructuredText, Markdown or plain text, one a line."""
    lines = inspect.cleandoc(documentation).splitlines()
    for paragraph in _joined_paragraphs(_without_titles(list(_without_code(lines)))):
        if paragraph.count(" ") >= MINIMUM_WORDS - 1 and not paragraph.endswith(":"):
            text = _without_markup(paragraph)
            if _is_prose(text):
                yield text


def _without_code(lines: list[str]) -> Iterator[str]:
    """Drops fenced, indented and interactive code, tables, and directives with a body that is not prose."""
    fenced = False
    until_blank = False
    body_deeper_than: int | None = None
    for line in lines:
        text = line.strip()
        indent = len(line) - len(line.lstrip())
        if FENCE.match(text):
            fenced ^= len(FENCE.findall(text)) == 1
            text = ""
        elif text and body_deeper_than is not None and indent <= body_deeper_than:
            body_deeper_than = None
        if not text or fenced or body_deeper_than is not None:
            until_blank = until_blank and bool(text)
            yield ""
            continue
        until_blank = until_blank or bool(CODE_PROMPT.match(text) or TABLE_RULE.fullmatch(text))
        directive = DIRECTIVE.fullmatch(text)
        if directive and directive["name"] not in PROSE_DIRECTIVES:
            body_deeper_than = indent
        elif directive:
            line = " " * indent + (directive["text"] or "")
        elif text.endswith("::"):
            body_deeper_than = indent
            line = line.rstrip()[:-1] if text != "::" else ""
        hidden = until_blank or (directive and body_deeper_than is not None) or DROPPED_LINE.fullmatch(text)
        yield "" if hidden else line


def _without_titles(lines: list[str]) -> list[str]:
    """Blanks underlines and the section titles over them, and Markdown titles."""
    kept = ["" if line.lstrip().startswith("#") else line for line in lines]
    for index, line in enumerate(lines):
        if UNDERLINE.fullmatch(line.strip()):
            kept[max(index - 1, 0) : index + 1] = [""] * min(index + 1, 2)
    return kept


def _joined_paragraphs(lines: list[str]) -> Iterator[str]:
    """Joins wrapped lines to paragraphs.

    A paragraph ends at a blank line, before a list item or parameter, and where the indent changes. The
    markers of list items and the names and types of parameters are dropped.
    """
    paragraph: list[str] = []
    indent = 0
    hanging = False
    for line in [*lines, ""]:
        text = line.strip()
        line_indent = len(line) - len(line.lstrip())
        typed_name = TYPED_NAME.match(text) if " : " in text else None
        entry = typed_name or ENTRY.match(text)
        continues = text and not entry and (line_indent == indent or (hanging and line_indent > indent))
        if not continues:
            if paragraph:
                yield _join(paragraph)
            paragraph = []
            hanging = entry is not None and typed_name is None
        elif line_indent > indent:
            hanging = False
        indent = line_indent
        text = text[entry.end() :] if entry else text
        if text:
            paragraph.append(text)


def _join(lines: list[str]) -> str:
    """Joins by spaces, but leaves a word whole that was broken at its hyphen."""
    return re.sub(r"(?<=[A-Za-z]-) \n(?=[A-Za-z])", "", " \n".join(lines)).replace(" \n", " ")


def _name_of_target(target: str) -> str:
    """What the reader of `:class:` and the like sees: the text before `<...>`, the last part after `~`."""
    text = target.split("<")[0].strip() or target.strip("<>")
    return text.rsplit(".", 1)[-1].lstrip("~") if text.startswith("~") else text.lstrip("!.")


MARKUP: list[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]] = [
    (re.compile(r"(?::[\w+-]+)+:`([^`]+)`"), lambda match: _name_of_target(match[1])),
    (re.compile(r"\[`+([^`\]]+)`+\](?:\([^)\s]*\))?"), lambda match: _name_of_target(match[1])),
    (re.compile(r"``(.+?)``"), r"\1"),
    (re.compile(r"`([^`]+)`_{0,2}(?!\w)"), lambda match: _name_of_target(match[1])),
    (re.compile(r"!?\[([^\]]+)\]\([^)\s]*\)"), r"\1"),
    (re.compile(r"\s?\[[\w#*]+\]_"), ""),
    (re.compile(r"(?<!\w)\*\*([^\s*](?:[^*]*[^\s*])?)\*\*(?!\w)"), r"\1"),
    (re.compile(r"(?<![\w*])\*(\w(?:[^*]*[\w.])?)\*(?![\w*])"), r"\1"),
    (re.compile(r"(?<!\w)\|(\w[\w .]*)\|_{0,2}(?!\w)"), r"\1"),
    (re.compile(r"</?(?:tip|p|br|b|i|code|em|strong|a|li|ul|sub|sup)\b[^<>]*>", re.IGNORECASE), ""),
    (re.compile(r"\\([*_`|'\"<>~])"), r"\1"),
    (re.compile(r"\s+"), " "),
    (re.compile(r" (?=[,.;:](?: |$))"), ""),
]


@lru_cache(maxsize=100_000)
def _without_markup(text: str) -> str:
    """Keeps the words of the markup. Cached, since much documentation is the same in many places."""
    for pattern, replacement in MARKUP:
        text = pattern.sub(replacement, text)
    return text.strip()


SENTENCE = re.compile(r"[\"'(]?[A-Z0-9].*[.!?][\"')]*")
WORD = re.compile(r"[a-z]+(?:['’-][a-z]+)*")
CODE_LIKE = re.compile(r"[_=<>/\[\]^@&$+*~\d]|\w\.\w|\w\(|[a-z][A-Z]")
NOT_ASCII = re.compile(r"[^\x00-\x7f]")
NOT_LETTERS = re.compile(r"[^a-z ]+")
NOT_PROSE = re.compile(
    r"[{}\\|`\x00-\x1f\ufffd]|==|--|::|\.{4}|\w\(\w*=|\w@\w|https?://|www\.|:math:|sphx_glr"
    r"|copyright|licensed under|\btodo\b|\bfixme\b"
)
COMMON_WORDS = frozenset(
    re.findall(
        r"\w+",
        """
        a an the this that these those it its they their there we you your he his which what who whose
        when where how why is are was were be been being has have had do does did can could may might must
        shall should will would not no of to in on at by for from with without into onto over under
        between through about as than like per via and or but nor so if then else while because since
        until unless whether either both each every any all some such only also more most other another
        same new one two first last use used uses using return returns see
        """,
    )
)


def _is_prose(text: str) -> bool:
    """Whether it reads as English sentences: enough words, enough common ones, few that look like code."""
    lower = text.lower()
    words = WORD.findall(lower)
    if len(words) < MINIMUM_WORDS or not SENTENCE.fullmatch(text) or NOT_PROSE.search(lower):
        return False
    code_words = sum(CODE_LIKE.search(word) is not None for word in text.split())
    return (
        sum(word in COMMON_WORDS for word in words) >= 0.2 * len(words)
        and code_words <= 0.25 * len(words)
        and len("".join(NOT_LETTERS.findall(lower))) <= 0.12 * len(text)
        and len(NOT_ASCII.findall(text)) <= 0.02 * len(text)
    )
