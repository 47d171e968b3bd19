"""`training.docstrings` on a made-up library, whose every line is known, and once on the real ones."""

from __future__ import annotations

import sys
import textwrap
from collections import Counter
from pathlib import Path

import pytest

import training.docstrings
from contract.command import UsageError
from training.datasets import read_dataset
from training.docstrings import LIBRARIES, docstrings_of, mask_names, read_docstrings

WORDS = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen"


def source(*texts: str) -> str:
    """A module of functions, each documented by one of `texts` and 18 words more."""
    return "\n".join(f'def function_{number}():\n    """{text} {WORDS}"""\n' for number, text in enumerate(texts))


@pytest.fixture
def libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two small packages that stand in for the installed libraries."""
    files = {
        "alpha/__init__.py": source("a b", "c d"),
        "alpha/core/deep.py": source("e f", "g h", "i"),  # the last has 19 words
        "alpha/tests/helpers.py": source("in tests"),
        "alpha/testing/helpers.py": source("in testing"),
        "alpha/test_module.py": source("in test_module"),
        "alpha/_test_private.py": source("in _test_private"),
        "alpha/contest.py": source("in contest"),
        "alpha/template.py": "def {{ name }}():\n    pass\n",
        "alpha/latin.py": '"""caf\xe9"""',
        "beta/__init__.py": source("a b", "numpy arrays"),  # the first is alpha's too
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="latin-1")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(training.docstrings, "LIBRARIES", ("alpha", "beta"))
    return tmp_path


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("import numpy as np; np.array", "import library as library; library.array"),
        ("NumPy's ndarray, or two ndarrays.", "library's library, or two library."),
        ("a pandas.DataFrame (pd)", "a library.DataFrame (library)"),
        ("PyTorch and torch.nn", "library and library.nn"),
        ("Hugging Face, HuggingFace Transformers", "library, library library"),
        ("CPython, Python 3, python3.11", "library, library 3, library"),
        ("a torchbearer transforms npm and pdf", "a torchbearer transforms npm and pdf"),
    ],
)
def test_names_of_libraries_are_masked_and_other_words_are_not(text: str, masked: str) -> None:
    assert mask_names(text) == masked


def test_the_docstrings_of_a_file_are_those_of_its_module_classes_and_functions(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(
        textwrap.dedent('''
        """The module."""
        class Thing:
            """A class.

            Indented.
            """
            def method(self):
                """A method."""
                "no docstring"
            async def wait(self):
                """A coroutine."""
        def bare():
            return """no docstring"""
        ''')
    )
    assert docstrings_of(path) == ["The module.", "A class.\n\nIndented.", "A method.", "A coroutine."]


def test_a_docstring_that_spells_half_a_surrogate_pair_is_none(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text('"""Half of a pair: \\ud800."""\n\ndef whole():\n    """The whole: \\U0001F600."""\n', encoding="utf-8")
    assert docstrings_of(path) == ["The whole: \U0001f600."]


@pytest.mark.parametrize("content", [b"def (:", b'"""caf\xe9"""', b"x = '\0'"], ids=["syntax", "encoding", "null byte"])
def test_a_file_that_is_not_todays_python_has_no_docstrings(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "module.py").write_bytes(content)
    assert docstrings_of(tmp_path / "module.py") == []


@pytest.mark.usefixtures("libraries")
def test_rows_are_the_masked_docstrings_of_20_words_grouped_by_module_without_tests_or_repeats() -> None:
    texts, labels, groups = read_docstrings(cap=100, seed=0)
    found = {(text.removesuffix(WORDS).strip(), label, group) for text, label, group in zip(texts, labels, groups, strict=True)}
    assert found == {
        ("a b", "alpha", "alpha/__init__.py"),
        ("c d", "alpha", "alpha/__init__.py"),
        ("e f", "alpha", "alpha/core/deep.py"),
        ("g h", "alpha", "alpha/core/deep.py"),
        ("in contest", "alpha", "alpha/contest.py"),
        ("library arrays", "beta", "beta/__init__.py"),
    }
    assert len(texts) == 6
    assert not {"alpha", "beta"} & set(sys.modules), "a library was imported"


@pytest.mark.usefixtures("libraries")
def test_the_order_and_the_capped_part_are_drawn_from_the_seed() -> None:
    assert read_docstrings(cap=2, seed=0) == read_docstrings(cap=2, seed=0)
    assert Counter(read_docstrings(cap=2, seed=0)[1]) == {"alpha": 2, "beta": 1}
    assert len({tuple(read_docstrings(cap=2, seed=seed)[2]) for seed in range(10)}) > 1


@pytest.mark.usefixtures("libraries")
def test_a_library_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training.docstrings, "LIBRARIES", ("alpha", "gamma_is_not_here"))
    with pytest.raises(UsageError, match="reads the sources of gamma_is_not_here, which is not installed"):
        read_docstrings(cap=2, seed=0)


def test_the_installed_libraries_give_a_data_set_of_five_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training.datasets, "DOCSTRINGS_PER_LIBRARY", 40)  # the full 1,300 take ten times as long
    dataset = read_dataset("docstrings", data=None, text=None, label=None, drop_empty=False, seed=3)
    assert dataset.names == sorted(LIBRARIES)
    assert Counter(dataset.labels) == dict.fromkeys(range(5), 40)
    assert len(set(dataset.texts)) == 200
    assert all(len(text.split()) >= 20 for text in dataset.texts)
    assert not any(name in text.lower().split() for name in ("numpy", "pandas", "torch", "pytorch") for text in dataset.texts)
    for label, group in zip(dataset.labels, dataset.groups, strict=True):
        library, *path = group.split("/")
        assert library == dataset.names[label]
        assert not {"tests", "test", "testing", "site-packages"} & set(path)
