"""How every command of this project ends: exit code 0 done, 1 failed, 2 called wrongly.

A command raises `UsageError` (the caller can fix the call) or `Failure` (the call was right, the work went wrong);
`run_command` prints the message without a traceback; so it does for what the operating system refuses (a full disk, no
permission). Anything else is a bug and keeps its traceback.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType


class UsageError(Exception):
    """The command was called with something it cannot accept; the message says what is allowed. Exit code 2."""


class Failure(Exception):  # noqa: N818 - reads as the field's word, "a failure"
    """The command was called rightly and its work failed; the message says why and what to do next. Exit code 1."""


def stop_on_signals() -> None:
    """Have SIGTERM end the command as Ctrl-C does, by KeyboardInterrupt; no second signal cuts its clean-up short."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(number) != signal.SIG_IGN:  # a shell's background jobs ignore Ctrl-C
            signal.signal(number, interrupt)


def run_command(main: Callable[[], None]) -> None:
    """Run `main` and leave the process with 0, 1 (`Failure`, OSError) or 2 (`UsageError`).

    Interrupted it is 130, and 141 where the reader of what is printed has gone.
    """
    try:
        try:
            main()
        finally:
            sys.stdout.flush()  # short output meets a broken pipe here, where it is handled, and not at the interpreter's end
    except UsageError as error:
        _tell("error", error)
        sys.exit(2)
    except Failure as error:
        _tell("failed", error)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # as in `--help | head`; what is still buffered goes nowhere, or the exit would raise again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        _tell("failed", error)
        sys.exit(1)


def _tell(kind: str, error: Exception) -> None:
    print("\n".join([f"{kind}: {error}", *getattr(error, "__notes__", [])]), file=sys.stderr)
