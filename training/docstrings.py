"""A real data set that is on every machine: the docstrings of the installed libraries, labelled by library.

Sources are parsed, never imported. The names of the libraries are masked in the texts, since they would give the label
away. Each row is grouped by its module, so that a split can keep every module in one part.
"""

from __future__ import annotations

import ast
import importlib.util
import random
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from contract.command import UsageError
from training.readers import is_unicode

LIBRARIES = ("numpy", "pandas", "stdlib", "torch", "transformers")
MIN_WORDS = 20
MASK = "library"

_SKIPPED_FOLDERS = frozenset({"test", "tests", "testing", "idlelib", "lib2to3", "site-packages", "dist-packages"})
_NAMES = re.compile(
    r"\b(numpy|np|ndarrays?|pandas|pd|pytorch|torch|transformers|hugging\s?face|c?python(?:\d(?:\.\d+)?)?|stdlib)\b",
    re.I,
)


def read_docstrings(*, cap: int, seed: int) -> tuple[list[str], list[str], list[str]]:
    """(texts, labels, groups): up to `cap` docstrings of at least 20 words from each library, no text twice.

    Modules are visited in an order drawn from `seed`, so the cap takes a random part of each library.
    """
    texts, labels, groups, seen = [], [], [], set()
    with tqdm(total=cap * len(LIBRARIES), desc="reading docstrings", unit="texts", mininterval=0.5) as bar:
        for library in LIBRARIES:
            taken = 0
            for module, text in _documented(library, seed):
                if text in seen:
                    continue
                seen.add(text)
                texts.append(text)
                labels.append(library)
                groups.append(module)
                bar.update()
                taken += 1
                if taken == cap:
                    break
    return texts, labels, groups


def _documented(library: str, seed: int) -> Iterator[tuple[str, str]]:
    """(module, masked docstring) of one library, module by module in random order."""
    root = _root(library)
    paths = sorted(path for path in root.rglob("*.py") if not _is_test(path.relative_to(root)))
    random.Random(f"{seed} {library}").shuffle(paths)
    for path in paths:
        module = f"{library}/{path.relative_to(root).as_posix()}"
        for docstring in docstrings_of(path):
            text = mask_names(docstring)
            if len(text.split()) >= MIN_WORDS:
                yield module, text


def _root(library: str) -> Path:
    if library == "stdlib":
        return Path(sysconfig.get_path("stdlib"))
    spec = importlib.util.find_spec(library)
    if spec is None or spec.origin is None:
        raise UsageError(f"the docstrings data set reads the sources of {library}, which is not installed")
    return Path(spec.origin).parent


def _is_test(relative: Path) -> bool:
    return any(part in _SKIPPED_FOLDERS or part.startswith(("test_", "_test")) for part in relative.parts)


def docstrings_of(path: Path) -> list[str]:
    """The docstrings of a source file's module, classes and functions; none where it is not today's Python, or no Unicode."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError, ValueError):  # templates and deliberately broken samples
        return []
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, documented)]
    return [docstring for docstring in found if docstring and is_unicode(docstring)]


def mask_names(text: str) -> str:
    """Replace the names of the libraries by the word `library`."""
    return _NAMES.sub(MASK, text)
