"""What README and docs tell a reader to type and to open: every command exists and knows the options, every path is there."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
# Every help in one process: what is large is imported once, and each command runs in a fork of it.
HELPS = """
import io, json, os, runpy, sys
import aiohttp, sklearn.linear_model, tritonclient.grpc.aio
import builders.build, loadtests.measure, serving.releases, training.finetune
helps = {}
for command in json.loads(sys.argv[1]):
    module, *subcommand = command.split()
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.dup2(writing, 1), os.dup2(writing, 2)
        os.close(reading)
        sys.argv = [module, *subcommand, "--help"]
        code = 1
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as end:
            code = end.code or 0
        finally:
            sys.stdout.flush()
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    helps[command] = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), text]
print(json.dumps(helps))
"""


WITH_SUBCOMMANDS = {"serving.releases"}


def commands() -> dict[str, list[str]]:
    """Module, with its subcommand if it has any -> the lines that call it with `python -m`, continued ones joined."""
    found: dict[str, list[str]] = {}
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for module, rest in re.findall(r"python -m ([a-z_]+(?:\.[a-z_]+)*)([^`|\n]*)", text):
            if (ROOT / module.split(".")[0]).is_dir():
                subcommand = re.match(r" ([a-z]+)\b", rest) if module in WITH_SUBCOMMANDS else None
                found.setdefault(module + (subcommand[0] if subcommand else ""), []).append(rest)
    return found


@pytest.fixture(scope="module")
def helps() -> dict[str, tuple[int, str]]:
    command = [sys.executable, "-c", HELPS, json.dumps(sorted(commands()))]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert run.returncode == 0, run.stderr
    found: dict[str, tuple[int, str]] = json.loads(run.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("command", sorted(commands()))
def test_a_documented_command_answers_help_and_knows_the_documented_options(
    command: str, helps: dict[str, tuple[int, str]]
) -> None:
    code, text = helps[command]
    assert code == 0, text
    options = {option for line in commands()[command] for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+", line)}
    assert {option for option in options if option not in text} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_path_on_a_page_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    linked = {page.parent / target for target in re.findall(r"\]\(([^)#:]+)\)", text)}
    packages = "contract|training|builders|model_repository|serving|demo|clients|loadtests|docker|tests|docs|typings"
    named = {ROOT / path for path in re.findall(rf"`((?:{packages})/[\w./-]*\w)`", text)}
    assert {path for path in linked | named if not path.exists()} == set()


def test_every_make_target_on_a_page_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = {name for page in PAGES for name in re.findall(r"`make ([a-z-]+)", page.read_text(encoding="utf-8"))}
    assert named and named <= targets
