"""`python -m clients.classify` without a server: exit codes and messages."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from clients.classify import Classify, classify
from contract.command import UsageError
from tests.clients.sockets import closed_url, silent_url

ROOT = Path(__file__).resolve().parents[2]


def command(*arguments: str, stdin: bytes = b"", **environment: str) -> subprocess.CompletedProcess[bytes]:
    """The command as a user calls it."""
    words = [sys.executable, "-m", "clients.classify", *arguments]
    variables = os.environ | environment
    return subprocess.run(words, input=stdin, capture_output=True, check=False, cwd=ROOT, timeout=200, env=variables)


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
    assert re.match(rf"failed: TimedOut: {url}: no answer within 0\.\d+ s \(request ", done.stderr.decode())  # left of 0.5 s


@pytest.mark.parametrize(
    ("arguments", "stdin", "said"),
    [
        ((), b"", b"error: no texts: give some as arguments, or one a line on standard input\n"),
        ((), b"\na line\n", b"error: line 1 is empty: there is nothing to classify\n"),
        ((), b"caf\xe9\n", b"error: line 1 of standard input is not UTF-8: "),
        (("fine", " "), b"", b"error: text 1 is empty: there is nothing to classify\n"),
    ],
)
def test_a_wrong_call_ends_with_2_and_says_what_is_allowed(arguments: tuple[str, ...], stdin: bytes, said: bytes) -> None:
    done = command(*arguments, stdin=stdin)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(said)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"timeout_s": 0.0}, r"--timeout-s is 0\.0; it must be above 0"),
        ({"retries": -1}, "--retries is -1; at least 0 is needed"),
        ({"tls_ca": Path("ca.pem")}, "--tls-ca, --tls-certificate and --tls-key need --tls"),
        ({"tls": True, "tls_ca": Path("none.pem")}, r"--tls-ca is none\.pem, which is no file"),
        ({"tls": True, "tls_key": Path("k.pem")}, r"--tls-certificate is None and the key is k\.pem; give both, or neither"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        classify(Classify(texts=("a",), url="127.0.0.1:1", **options))


def test_it_fails_in_order_even_while_standard_input_is_open() -> None:
    """A thread still waits for a line then, which must not turn the end into a crash."""
    words = [sys.executable, "-m", "clients.classify", "--url", closed_url()]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT)
    with process:
        assert process.stdin is not None
        process.stdin.write(b"a line\n")
        process.stdin.flush()
        assert process.wait(200) == 1
        assert process.stderr is not None
        assert process.stderr.read().startswith(b"failed: Unavailable: ")


@pytest.mark.parametrize(
    ("option", "value", "said"), [("--protocoll", "http", b"--protocoll"), ("--protocol", "rest", b"rest")]
)
def test_unknown_options_and_values_end_with_2(option: str, value: str, said: bytes) -> None:
    done = command("a", option, value)
    assert (done.returncode, done.stdout) == (2, b"")
    assert said in done.stderr
