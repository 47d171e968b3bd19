"""Every command of docs/tensorrt.md is one that answers --help and has the options that are written there."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
import warnings
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "tensorrt.md"
COMMANDS = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("python -m ")]
MODULES = sorted({line.split()[2] for line in COMMANDS})


def help_of(module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """What `python -m module --help` prints, in this process."""
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    monkeypatch.setenv("COLUMNS", "200")
    with warnings.catch_warnings(), pytest.raises(SystemExit) as raised:
        warnings.filterwarnings("ignore", ".*found in sys.modules.*", RuntimeWarning)  # other tests have imported it
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    assert raised.value.code == 0
    return capsys.readouterr().out


def test_the_page_shows_every_command_of_its_topic() -> None:
    names = ["build", "check", "input_ranges", "plan_lengths", "refit", "tensorrt_config"]
    assert [f"builders.{name}" for name in names] == [module for module in MODULES if module.startswith("builders.")]


@pytest.mark.parametrize("module", MODULES)
def test_a_documented_command_answers_help_and_knows_its_options(
    module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = help_of(module, monkeypatch, capsys)
    given = {word for line in COMMANDS if line.split()[2] == module for word in shlex.split(line) if word.startswith("--")}
    assert sorted(flag for flag in given if not re.search(rf"{re.escape(flag)}(?![\w.-])", text)) == []
    assert f"python -m {module}" in text


def test_options_in_the_text_exist_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    flags = set(re.findall(r"--tensorrt\.[a-z0-9-]+", PAGE.read_text(encoding="utf-8")))
    text = help_of("builders.build", monkeypatch, capsys)
    assert sorted(flag for flag in flags if not re.search(rf"{re.escape(flag)}(?![\w.-])", text)) == []
