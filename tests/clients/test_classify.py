"""`python -m clients.classify` without a server: exit codes and messages."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.clients.sockets import closed_url, silent_url

ROOT = Path(__file__).resolve().parents[2]


def command(*arguments: str, stdin: bytes = b"", **environment: str) -> subprocess.CompletedProcess[bytes]:
    """The command as a user calls it."""
    words = [sys.executable, "-m", "clients.classify", *arguments]
    variables = os.environ | environment
    return subprocess.run(words, input=stdin, capture_output=True, check=False, cwd=ROOT, timeout=60, env=variables)


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_without_a_server_it_ends_with_1_and_says_where_it_looked(protocol: str) -> None:
    url = closed_url()
    done = command("a text", "--url", url, "--protocol", protocol)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.startswith(b"failed: Unavailable: ")
    assert url.encode() in done.stderr
    assert b"python -m serving starts one" in done.stderr
    assert b"Traceback" not in done.stderr


def test_a_server_that_never_answers_ends_it_with_1() -> None:
    with silent_url() as url:
        done = command("a text", "--url", url, "--timeout-s", "0.5")
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr == f"failed: TimedOut: {url}: no answer within 0.5 s\n".encode()


@pytest.mark.parametrize(
    ("arguments", "stdin", "said"),
    [
        ((), b"", b"error: no texts: give some as arguments, or one a line on standard input\n"),
        ((), b"a line\n\nanother\n", b"error: text 1 is empty: there is nothing to classify\n"),
        (("fine", " "), b"", b"error: text 1 is empty: there is nothing to classify\n"),
        (("a", "--timeout-s", "0"), b"", b"error: --timeout-s is 0.0; it must be above 0\n"),
    ],
)
def test_a_wrong_call_ends_with_2_and_says_what_is_allowed(arguments: tuple[str, ...], stdin: bytes, said: bytes) -> None:
    done = command(*arguments, stdin=stdin)
    assert (done.returncode, done.stdout, done.stderr) == (2, b"", said)


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])  # Python's choice in en_US.UTF-8, and in C.UTF-8
def test_input_that_is_not_utf8_ends_with_2(errors: str) -> None:
    done = command("--url", closed_url(), stdin=b"a\ncaf\xe9\n", PYTHONIOENCODING=f"utf-8:{errors}")
    assert (done.returncode, done.stdout) == (2, b"")
    said = b"standard input is not UTF-8: " if errors == "strict" else b"text 1 is not valid Unicode: "
    assert done.stderr.startswith(b"error: " + said)
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("option", "value", "said"), [("--protocoll", "http", b"--protocoll"), ("--protocol", "rest", b"rest")]
)
def test_unknown_options_and_values_end_with_2(option: str, value: str, said: bytes) -> None:
    done = command("a", option, value)
    assert (done.returncode, done.stdout) == (2, b"")
    assert said in done.stderr
