"""The corpus of Python's documentation: what it reads, what it keeps, and that it is always the same."""

import json
import os
import random
import re
import subprocess
import sys
from collections import Counter
from importlib.metadata import distributions
from pathlib import Path

import pytest

from pretrain.data.prose import prose_paragraphs
from pretrain.data.python_docs import installed_modules, modules_in_folder, python_docs_identity, read_python_docs


ALPHA = '''
"""Reads the settings of a program from a file."""

class Settings:
    """Holds all of the settings that were read from the file."""

    def save(self):
        """Writes all of the settings back to the file.

        This sentence is in more than one of the modules.
        """
        def inner():
            """Docstrings of functions inside of functions count as well."""
'''

BETA = '''
def load():
    """This sentence is in more than one of the modules.

    The second paragraph is only in this one of them.
    """

add_docstr(load.__call__, r"""
    Documentation that is attached by a call is read as well.
""")
print("""
    A text that is only printed is not any documentation.
""")
'''


LATIN = '''# coding: latin-1
"""The café on the corner of the street was open all of the day."""
'''


def write(folder: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return write(
        tmp_path / "tree",
        {
            "alpha.py": ALPHA,
            "package/__init__.py": '"""The package that holds all of the other modules."""',
            "package/beta.py": BETA,
            "package/broken.py": 'def f(:\n    """This file is not valid Python at all."""',
            "package/latin.py": LATIN.encode("latin-1"),
            "package/escapes.py": '"""The file has the escape \\d that is not valid in Python."""\nx = "\\d"',
            "package/test/helper.py": '"""This is in a folder of tests and is not read."""',
            "package/test_beta.py": '"""This is a test and it is not read at all."""',
            "package/data.txt": '"""This is not Python and it is not read at all."""',
        },
    )


def documents_of(tree: Path, num_proc: int = 1) -> dict[str, list[str]]:
    documents = read_python_docs(num_proc, modules_in_folder("demo", tree))
    return {document["name"]: document["text"].split("\n") for document in documents}


def test_reads_the_docstrings_of_each_module(tree: Path) -> None:
    assert documents_of(tree) == {
        "demo:alpha": [
            "Reads the settings of a program from a file.",
            "Holds all of the settings that were read from the file.",
            "Writes all of the settings back to the file.",
            "This sentence is in more than one of the modules.",
            "Docstrings of functions inside of functions count as well.",
        ],
        "demo:package": ["The package that holds all of the other modules."],
        "demo:package.beta": [
            "The second paragraph is only in this one of them.",
            "Documentation that is attached by a call is read as well.",
        ],
        "demo:package.latin": ["The café on the corner of the street was open all of the day."],
    }


@pytest.mark.filterwarnings("error")
def test_reports_files_that_are_not_python_and_keeps_warnings_quiet(
    tree: Path, caplog: pytest.LogCaptureFixture
) -> None:
    documents_of(tree)
    assert caplog.messages == ["python-docs: skipped 1 files that this Python cannot parse"]


def test_processes_do_not_change_the_result(tree: Path) -> None:
    more = {
        f"generated/module_{number:02}.py": f'"""This is the module {number} of the folder."""' for number in range(50)
    }
    write(tree, more)
    one, two = (list(read_python_docs(number, modules_in_folder("demo", tree))) for number in (1, 2))
    assert len(one) == 54
    assert json.dumps(one) == json.dumps(two)


def test_hash_seed_place_and_file_times_do_not_change_the_result(tree: Path, tmp_path: Path) -> None:
    script = (
        "import json, sys; from pathlib import Path; from pretrain.data.python_docs import *;"
        "print(json.dumps(list(read_python_docs(1, modules_in_folder('demo', Path(sys.argv[1]))))))"
    )
    moved = tmp_path / "elsewhere"
    outputs = []
    for seed, folder in ("1", tree), ("2", moved):
        environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)}
        outputs.append(
            subprocess.check_output([sys.executable, "-c", script, str(folder)], env=environment, cwd=tmp_path)
        )
        if folder == tree:
            tree.rename(moved)
            for number, file in enumerate(sorted(moved.rglob("*.py"), reverse=True)):
                os.utime(file, (number, number))
    assert outputs[0] == outputs[1]
    assert len(json.loads(outputs[0])) == 4


def install(site: Path, name: str, files: dict[str, str]) -> None:
    """Lays a distribution out as pip does."""
    record = "".join(f"{file},,\n" for file in [*files, "../../../bin/script.py"])
    metadata = f"{name}-1.0.dist-info"
    write(site, {**files, f"{metadata}/METADATA": f"Name: {name}\nVersion: 1.0\n", f"{metadata}/RECORD": record})


def test_lists_the_standard_library_and_then_distributions_without_this_project(tmp_path: Path, tree: Path) -> None:
    site = write(tmp_path / "site", {"stray.py": "'''This belongs to no distribution and is not read.'''"})
    install(site, "Zeta.Tools", {"zeta/__init__.py": "", "zeta/core.py": "", "zeta/tests/helper.py": ""})
    install(site, "apple", {"apple.py": "", "__editable___apple_finder.py": "", "removed/since.py": ""})
    install(site, "modeling-luna", {"modeling_luna/__init__.py": "", "extra.py": ""})
    install(site, "bundle", {"modeling_luna/model.py": "", "bundle.py": ""})
    (site / "removed/since.py").unlink()
    write(tree, {"site-packages/numpy.py": ""})
    names = [module.name for module in installed_modules(tree, distributions(path=[str(site)]))]
    assert names == [
        "stdlib:alpha",
        "stdlib:package",
        "stdlib:package.beta",
        "stdlib:package.broken",
        "stdlib:package.escapes",
        "stdlib:package.latin",
        "apple:apple",
        "bundle:bundle",
        "zeta-tools:zeta",
        "zeta-tools:zeta.core",
    ]


def test_each_help_topic_is_a_document(tmp_path: Path) -> None:
    topics = {
        "while": "The while statement is used for\nrepeated execution.",
        "break": "A break ends the loop that is nearest to it.",
    }
    write(tmp_path, {"pydoc_data/topics.py": f"topics = {topics}"})
    documents = list(read_python_docs(1, modules_in_folder("stdlib", tmp_path)))
    assert documents == [
        {"name": "stdlib:pydoc_data.topics.break", "text": "A break ends the loop that is nearest to it."},
        {
            "name": "stdlib:pydoc_data.topics.while",
            "text": "The while statement is used for repeated execution.",
        },
    ]


@pytest.mark.parametrize(
    ("documentation", "paragraphs"),
    [
        pytest.param(
            "Returns the sum of all\n    the numbers in it.\n\n    It is never\n    negative in that case.",
            ["Returns the sum of all the numbers in it.", "It is never negative in that case."],
            id="wrapped lines",
        ),
        pytest.param(
            "The result is a zero-\ndimensional array of the numbers.",
            ["The result is a zero-dimensional array of the numbers."],
            id="word broken at its hyphen",
        ),
        pytest.param(
            "See :class:`~torch.nn.Linear` and :func:`the sum <math.fsum>` for *all* of the "
            "``details`` of `it`_ [1]_.",
            ["See Linear and the sum for all of the details of it."],
            id="reStructuredText markup",
        ),
        pytest.param(
            "The [`~Model.forward`] of **this** model is in [the guide](../guide) to the `model`, and `__eq__` too.",
            ["The forward of this model is in the guide to the model, and __eq__ too."],
            id="Markdown markup",
        ),
        pytest.param(
            "This is how it is used in a program.\n\n"
            ">>> print('This is not in the text.')\nThis is not in the text.\n\n"
            "That was all there is to it.",
            ["This is how it is used in a program.", "That was all there is to it."],
            id="doctest",
        ),
        pytest.param(
            "It is used like this, as you see::\n\n    This line is an example of the code.\n\n"
            "    So is this line, it is code.\n\n"
            "This text is after the code.\n\n```python\nThis is also one of the examples.\n```",
            ["This text is after the code."],
            id="code blocks",
        ),
        pytest.param(
            "=====  =======\nThis   is the table of the values.\n=====  =======\n\n"
            "| This is a table as well. |\n\n"
            "The table is not in the text.",
            ["The table is not in the text."],
            id="tables",
        ),
        pytest.param(
            "What It Does and How It Does It.\n================================\n\n"
            "# All of the Titles of This.\n\n"
            "The titles are not in the text.",
            ["The titles are not in the text."],
            id="titles",
        ),
        pytest.param(
            ".. note:: The note is a part of the text.\n\n.. math::\n\n"
            "    The sum of the a and the b is c.\n\n"
            ".. versionadded:: 3.1\n   The version is not in the text.\n\n"
            ".. [1] The name of the author of the book.",
            ["The note is a part of the text."],
            id="directives",
        ),
        pytest.param(
            "Parameters\n----------\naxis : {int, tuple of int}, optional\n    The axis "
            "along which the sum is computed.\n"
            "out : ndarray\n    The array that the result is written to.",
            ["The axis along which the sum is computed.", "The array that the result is written to."],
            id="NumPy parameters",
        ),
        pytest.param(
            "Args:\n    axis (`int`, *optional*, defaults to 1):\n        The axis along "
            "which the sum\n        is computed.\n"
            "    out: The array that the result\n        is written to.",
            ["The axis along which the sum is computed.", "The array that the result is written to."],
            id="Google parameters",
        ),
        pytest.param(
            ":param int axis: The axis along which the sum is computed.\n:type axis: This is "
            "the type of the axis.\n"
            ":returns: The array that the result is written to.",
            ["The axis along which the sum is computed.", "The array that the result is written to."],
            id="Sphinx fields",
        ),
        pytest.param(
            "- The first of the two items is\n  on two lines of the text.\n- The second is on one of them.",
            ["The first of the two items is on two lines of the text.", "The second is on one of them."],
            id="list items",
        ),
        pytest.param(
            "Too short.\n\nno capital letter at the start of it.\n\nThere is no end to this sentence\n\n"
            "Diese Funktion gibt die Summe aller Zahlen zurück.\n\nAlpha beta gamma delta epsilon zeta.\n\n"
            "The code is x = a[1] + b[2] ** c(3) / d_4.\n\n"
            "See it all at https://example.org/ for the rest.\n\n"
            "Copyright of the file is with the authors of it.",
            [],
            id="what is not prose",
        ),
    ],
)
def test_keeps_the_prose_only(documentation: str, paragraphs: list[str]) -> None:
    assert list(prose_paragraphs(documentation)) == paragraphs


def test_identity_names_the_interpreter_and_the_distributions_but_not_this_project() -> None:
    identity = python_docs_identity()
    assert identity["python"].endswith(".".join(map(str, sys.version_info[:3])))
    assert identity["distributions"]["pytest"] == pytest.__version__
    assert "modeling-luna" not in identity["distributions"]
    assert json.loads(json.dumps(identity)) == identity == python_docs_identity()


@pytest.mark.slow
def test_the_corpus_is_english_prose_without_repetition() -> None:
    """A third of it, since all of it takes a minute."""
    modules = installed_modules()
    wanted = {"stdlib:json", "stdlib:pydoc_data.topics", "torch:torch.nn.modules.linear"}
    third = [module for place, module in enumerate(modules) if place % 3 == 0 or module.name in wanted]
    documents = list(read_python_docs(2, third))
    paragraphs = [paragraph for document in documents for paragraph in document["text"].split("\n")]
    assert sum(map(len, paragraphs)) > 1_000_000
    assert Counter(paragraphs).most_common(1)[0][1] == 1
    assert Counter(document["name"] for document in documents).most_common(1)[0][1] == 1
    assert {"stdlib:json", "stdlib:pydoc_data.topics.assert", "torch:torch.nn.modules.linear"} <= {
        document["name"] for document in documents
    }
    sample = " ".join(random.Random(0).sample(paragraphs, 2000))
    assert len(re.findall(r"[A-Za-z ]", sample)) > 0.93 * len(sample)
    assert len(re.findall(r"\b(?:the|of|to|a|is|in|and)\b", sample)) > 0.15 * len(sample.split())
