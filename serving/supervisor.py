"""Keep a tritonserver serving: start it, start it again when it ends, drain it when told to.

While one serves, `serving.watch` looks at it, replaces what died or hangs in it, and says when it must be replaced itself.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from contract.command import Failure, UsageError
from contract.tensors import CLASSIFIER, RELEASE
from serving.events import EventLog
from serving.probe import OK, infer
from serving.process import ServerProcess
from serving.repository import Repository
from serving.state import ServerState
from serving.watch import Watch

STABLE_S = 5.0
"""A server that answered for so long is forgiven its former ends: it was no crash at the start."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 30.0
POLL_S = 0.1


def pause_s(ends: int) -> float:
    """How long to wait before the start after `ends` ends in a row: doubling, and bounded."""
    return float(min(FIRST_PAUSE_S * 2 ** (ends - 1), LONGEST_PAUSE_S))


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How patient the supervisor is."""

    start_timeout_s: float
    """How long loading may take."""
    patience_s: float
    """How long a step may owe an answer although it computes."""
    python_steps: tuple[str, ...]
    """Steps that run in python stubs."""
    restarts: int
    """Ends in a row, none after `STABLE_S` of service, after which it gives up."""


class Supervisor:
    """Serves `repository` until it is interrupted, or the server cannot be kept alive."""

    def __init__(
        self, repository: Repository, state: ServerState, start: Callable[[], ServerProcess], limits: Limits, log: EventLog
    ) -> None:
        """`start` starts a server. The caller holds the repository until the first one answers."""
        self._repository, self._state, self._start, self._limits, self._log = repository, state, start, limits, log
        self._ends, self._answered_at, self._announced = 0, math.inf, False

    def run(self, announce: Callable[[str], None]) -> None:
        """Serve; `announce` is called with the release when the first server answers.

        Raises:
            Failure: the first server did not come up, or too many in a row ended.
            KeyboardInterrupt: it was interrupted; the server has been drained then.
        """
        while True:
            self._answered_at = math.inf
            reason = self._serve(announce)
            self._ends = 1 if time.monotonic() - self._answered_at > STABLE_S else self._ends + 1
            if self._ends > self._limits.restarts:
                raise Failure(f"gave up after {self._limits.restarts} restarts in a row, the last because: {reason}")
            pause = pause_s(self._ends)
            self._log.write("server-restart", after_s=pause, ends_in_a_row=self._ends)
            time.sleep(pause)

    def _serve(self, announce: Callable[[str], None]) -> str:
        """Start one server and watch it; the reason why it is no more."""
        if self._ends:
            self._offer_less()
        started = time.monotonic()
        server = self._start()
        self._log.write("server-started", pid=server.pid)
        drain = True
        try:
            release = wait_for_answer(server, self._state, self._limits.start_timeout_s)
            self._answered_at = time.monotonic()
            self._log.write("server-answers", release=release, after_s=round(time.monotonic() - started, 2))
            if not self._announced:
                self._state.write(self._repository.path)
                announce(release)
                self._announced = True
            with self._watch(server) as watch:
                reason = watch.run()
                drain = watch.may_drain
        except Failure as failure:
            if not self._announced and not self._may_offer_less():
                raise
            reason = str(failure)
        except KeyboardInterrupt:
            self._log.write("draining")
            raise
        finally:
            if drain:
                server.stop()
            else:
                server.kill()
        self._log.write("server-ended", code=server.code, reason=reason)
        return reason

    def _watch(self, server: ServerProcess) -> Watch:
        patience_s, python_steps = self._limits.patience_s, self._limits.python_steps
        return Watch(self._repository, self._state, server, self._log, patience_s=patience_s, python_steps=python_steps)

    def _offer_less(self) -> None:
        """Offer the next server whole versions only; a publisher at work sees to that itself.

        Where one has ended that did not serve for long, offer it the serving version alone: one version that the server cannot
        load, though its files are whole, keeps the others of its step from loading.
        """
        try:
            with self._repository.locked() if self._announced else contextlib.nullcontext():
                broken = self._repository.offer_whole()
                others = self._repository.offer_alone() if self._ends > 1 or not self._announced else []
        except (Failure, UsageError, OSError) as error:
            self._log.write("versions-not-checked", error=str(error))
            return
        for event, versions in (("version-damaged", broken), ("version-left-out", others)):
            for version in versions:
                self._log.write(event, version=version)

    def _may_offer_less(self) -> bool:
        """Whether anything is offered beside the version that serves, as far as that can be read."""
        with contextlib.suppress(UsageError, OSError):
            return bool(self._repository.others())
        return False


def wait_for_answer(server: ServerProcess, state: ServerState, timeout_s: float) -> str:
    """Wait until the classifier answers a text, not only until it says that it is ready; the release that answered.

    Raises:
        Failure: the server ended, or did not answer in time; with the cause out of its log.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        server.check_alive()
        answer = infer(state.http_url, CLASSIFIER, None, max(deadline - time.monotonic(), POLL_S), features=state.features)
        if answer.status == OK:
            (release,) = [output["data"][0] for output in json.loads(answer.body)["outputs"] if output["name"] == RELEASE]
            return str(release)
        if "tub process" in answer.message:
            raise Failure(f"a python stub died while the server started: {answer.message}; its log says:\n{server.cause()}")
        if time.monotonic() > deadline:
            raise Failure(f"no answer within {timeout_s:g} s ({answer.message}); the log says:\n{server.cause()}")
        time.sleep(POLL_S)
