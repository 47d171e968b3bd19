"""`contract.command`: how a command ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest

from contract.command import Failure, UsageError, run_command, stop_on_signals


def raising(error: BaseException) -> Callable[[], None]:
    """A command that ends with `error`."""

    def main() -> None:
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (Failure("the work went wrong"), 1, "failed: the work went wrong\n"),
        (UsageError("--rank is 0"), 2, "error: --rank is 0\n"),
        (
            OSError(28, "No space left on device", "build/plan.json"),
            1,
            "failed: [Errno 28] No space left on device: 'build/plan.json'\n",
        ),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_a_command_ends_with_its_code_and_one_line_on_stderr(
    capsys: pytest.CaptureFixture[str], error: BaseException, code: int, said: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        run_command(raising(error))
    assert stop.value.code == code
    assert capsys.readouterr() == ("", said)


def test_a_command_that_ends_well_returns(capsys: pytest.CaptureFixture[str]) -> None:
    run_command(lambda: print("done"))
    assert capsys.readouterr() == ("done\n", "")


@pytest.mark.parametrize(("kind", "code"), [(UsageError, 2), (Failure, 1)])
def test_notes_are_told_behind_the_reason(kind: type[Exception], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    error = kind("it went wrong")
    error.add_note("and the log is full")
    with pytest.raises(SystemExit) as stop:
        run_command(raising(error))
    assert stop.value.code == code
    assert capsys.readouterr().err.endswith(": it went wrong\nand the log is full\n")


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run_command(raising(ZeroDivisionError("division by zero")))


@pytest.mark.parametrize("main", ["print('x' * 1_000_000)", "print('short')", "(print('short'), sys.exit(0))"])
def test_a_command_whose_reader_has_gone_ends_quietly_with_141(main: str) -> None:
    """Long output breaks the pipe while it is printed, short output only when the buffer is emptied at the end."""
    reader, writer = os.pipe()
    os.close(reader)
    program = f"import sys; from contract.command import run_command; run_command(lambda: {main})"
    with os.fdopen(writer, "wb") as stdout:
        done = subprocess.run(
            [sys.executable, "-c", program],
            stdout=stdout,
            stderr=subprocess.PIPE,
            env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
            timeout=200,
            check=False,
        )
    assert (done.returncode, done.stderr) == (141, b"")


def test_an_exit_of_the_option_parser_passes_through() -> None:
    with pytest.raises(SystemExit) as stop:
        run_command(raising(SystemExit(2)))
    assert stop.value.code == 2


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_interrupts_and_a_second_one_does_not_cut_the_clean_up_short(first: int, second: int) -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    cleaned = False
    try:
        stop_on_signals()
        with pytest.raises(KeyboardInterrupt):
            try:
                os.kill(os.getpid(), first)
            finally:
                os.kill(os.getpid(), second)
                cleaned = True
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert cleaned


def test_a_background_job_of_a_shell_goes_on_ignoring_ctrl_c() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        stop_on_signals()
        os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
