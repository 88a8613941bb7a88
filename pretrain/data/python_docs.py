"""The built-in corpus `python-docs`: the English of the documentation that is already on the disk.

It needs no network: docstrings of the standard library and of every distribution installed in the running
environment, and the topics of `help()`. Nothing is imported, all is read with `ast`. Code, tables, type
lines and markup are removed; what is left are one-line paragraphs of English prose, each of them once. The
same environment gives the same bytes, wherever it lies on the disk and however many processes read it.
"""

import ast
import gc
import hashlib
import logging
import os
import platform
import re
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path, PurePath
from typing import NamedTuple

from pretrain.data.prose import prose_paragraphs
from pretrain.data.workers import process_pool


logger = logging.getLogger(__name__)

# Part of the identity of the corpus: raise it with every change of the rules, here or in prose.py.
FORMAT_VERSION = 1

# The project's own docstrings stay out: each edit of them would make another corpus.
OWN_PACKAGE = "modeling_luna"
TOPICS_MODULE = "stdlib:pydoc_data.topics"

SKIPPED_FOLDERS = {
    "site-packages",
    "dist-packages",
    "__pycache__",
    "test",
    "tests",
    "idle_test",
    "..",
    OWN_PACKAGE,
}
SKIPPED_FILE = re.compile(r"test_.*|.*_test\.py|conftest\.py|__editable__.*")
MODULES_PER_TASK = 16


class Module(NamedTuple):
    """A Python file to read: its name, such as `torch:torch.nn.modules.linear`, and its place."""

    name: str
    file: Path


class Document(NamedTuple):
    """The prose of one module or one `help()` topic."""

    name: str
    paragraphs: list[str]


def read_python_docs(num_proc: int, modules: Iterable[Module] | None = None) -> Iterator[dict[str, str]]:
    """Yields `{"name": ..., "text": ...}` for each module and each `help()` topic that has any prose.

    Paragraphs are joined by a line feed. A paragraph that occurs again anywhere in the corpus is kept at its
    first place only. Files that this Python cannot parse are skipped, and their number is logged.

    Args:
        num_proc: Processes that parse. The result does not depend on it.
        modules: The files to read, in this order; by default `installed_modules()`.
    """
    seen: set[str] = set()
    unreadable = 0
    for documents in _read_modules(installed_modules() if modules is None else list(modules), num_proc):
        if documents is None:
            unreadable += 1
            continue
        for name, paragraphs in documents:
            new_paragraphs = [paragraph for paragraph in dict.fromkeys(paragraphs) if paragraph not in seen]
            if new_paragraphs:
                seen.update(new_paragraphs)
                yield {"name": name, "text": "\n".join(new_paragraphs)}
    if unreadable:
        logger.warning("python-docs: skipped %d files that this Python cannot parse", unreadable)


def python_docs_identity() -> dict:
    """Returns JSON-able values that change whenever the corpus would."""
    standard_library = modules_in_folder("stdlib", Path(sysconfig.get_path("stdlib")))
    listing = "\n".join(f"{module.name} {module.file.stat().st_size}" for module in standard_library)
    return {
        "format_version": FORMAT_VERSION,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "standard_library": hashlib.sha256(listing.encode()).hexdigest(),
        "distributions": {name: found.version for name, found in _by_name(distributions()).items()},
    }


def installed_modules(
    standard_library: Path | None = None, installed: Iterable[Distribution] | None = None
) -> list[Module]:
    """Lists the files of the corpus in its order: the standard library, then the distributions by name.

    Tests and this project are left out.

    Args:
        standard_library: Folder of the standard library; by default that of the running Python.
        installed: Distributions to read; by default all of the running environment.
    """
    modules = modules_in_folder("stdlib", standard_library or Path(sysconfig.get_path("stdlib")))
    for name, distribution in _by_name(distributions() if installed is None else installed).items():
        located = [(PurePath(file), Path(str(file.locate()))) for file in distribution.files or []]
        modules += _modules(name, [(relative, file) for relative, file in located if file.is_file()])
    first_of_file: dict[Path, Module] = {}
    for module in modules:
        first_of_file.setdefault(module.file, module)
    return list(first_of_file.values())


def modules_in_folder(origin: str, folder: Path) -> list[Module]:
    """Lists the Python files below a folder, sorted by name; names begin with `origin` and a colon."""
    files = []
    for parent, subfolders, names in os.walk(folder):
        subfolders[:] = [name for name in subfolders if name not in SKIPPED_FOLDERS]
        files += [Path(parent, name) for name in names]
    return _modules(origin, ((file.relative_to(folder), file) for file in files))


def _modules(origin: str, files: Iterable[tuple[PurePath, Path]]) -> list[Module]:
    """Names the files that belong in the corpus; each as its path from the import root and its place."""
    modules = []
    for relative, file in files:
        *folders, name = relative.parts
        if relative.suffix == ".py" and not SKIPPED_FILE.fullmatch(name) and SKIPPED_FOLDERS.isdisjoint(folders):
            dotted = ".".join([*folders, relative.stem]).removesuffix(".__init__")
            modules.append(Module(f"{origin}:{dotted}", file))
    return sorted(modules)


def _by_name(installed: Iterable[Distribution]) -> dict[str, Distribution]:
    """Sorts distributions by normalized name; of two with one name the first on the import path counts."""
    found: dict[str, Distribution] = {}
    for distribution in installed:
        name = re.sub(r"[-_.]+", "-", distribution.metadata["Name"] or "").lower()
        if name and name != OWN_PACKAGE.replace("_", "-"):
            found.setdefault(name, distribution)
    return dict(sorted(found.items()))


def _read_modules(modules: list[Module], num_proc: int) -> Iterator[list[Document] | None]:
    """Reads the modules in order. Processes are spawned, not forked: the caller may have threads."""
    # Syntax trees have no cycles: without the cyclic collector parsing takes a fifth less time.
    pool = process_pool(num_proc, gc.disable) if num_proc > 1 else None
    if pool is None:
        yield from map(_read_module, modules)
        return
    with pool:
        yield from pool.map(_read_module, modules, chunksize=MODULES_PER_TASK)


def _read_module(module: Module) -> list[Document] | None:
    """Returns the documents of one file, or None if it cannot be parsed."""
    source = module.file.read_bytes()
    if b'"""' not in source and b"'''" not in source and module.name != TOPICS_MODULE:
        return []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return None
    if module.name == TOPICS_MODULE:
        return [Document(f"{module.name}.{topic}", _prose([text])) for topic, text in _topics(tree)]
    return [Document(module.name, _prose(_docstrings(tree)))]


def _prose(docstrings: Iterable[str]) -> list[str]:
    return [paragraph for docstring in docstrings for paragraph in prose_paragraphs(docstring)]


def _topics(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Yields the items of the one dictionary that the `help()` module assigns."""
    for statement in tree.body:
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Dict):
            yield from sorted(ast.literal_eval(statement.value).items())


def _docstrings(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
    """Yields the docstrings of a module or class and of all in it, in the order of the source.

    Extension modules get theirs by calls such as `add_docstr(torch.abs, "...")`, which count as well.
    """
    docstring = ast.get_docstring(node, clean=False)
    if docstring:
        yield docstring
    for statement in node.body:
        if isinstance(statement, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _docstrings(statement)
        elif isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
            yield from _attached_documentation(statement.value)


def _attached_documentation(call: ast.Call) -> Iterator[str]:
    function = call.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    if "doc" in name:
        for argument in call.args:
            for node in ast.walk(argument):
                if isinstance(node, ast.Constant) and isinstance(node.value, str) and "\n" in node.value:
                    yield node.value
