"""Watch one server process while it serves: replace stubs that died or hang in it, say when it must be replaced as a whole.

One thread looks five times a second; what could make it wait is asked through `serving.probe`. The rule of what counts as
dead is `serving.watchdog`. Replacing a stub means to touch its version's model.py and to have the server load the step: the
version's new process takes over while everything else serves on.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

from contract.command import UsageError
from contract.tensors import CLASSIFIER, STEPS
from serving.events import EventLog
from serving.probe import OK, Outcome, Prober, ask, infer, load
from serving.process import SHARED_MEMORY, ServerProcess
from serving.repository import Repository
from serving.state import ServerState
from serving.stubs import ZOMBIE, find_children, is_awake, read_status
from serving.watchdog import SERVER, Name, Sight, Verdict, Watchdog

LOOK_S = 0.2
ASK_S = 1.0
"""The classifier is asked at least so often; at every look while no other request shows that its steps answer. Asked at all
looks, it made a lone request wait 0.7 ms longer."""
SUSPICIOUS_S = 0.2
"""When the classifier owes an answer for so long, its steps are asked directly, to know which of them it is."""
MAX_DEAD = 8
"""Ended stubs that a server may hold on to: of one that died owing answers it never gives up instance, threads and a
descriptor, so that it is replaced as a whole when there are so many."""
SETTLED_S = 5.0


class Watch:
    """Watches one server process: asks, looks, judges, replaces."""

    def __init__(
        self,
        repository: Repository,
        state: ServerState,
        server: ServerProcess,
        log: EventLog,
        *,
        patience_s: float,
        python_steps: tuple[str, ...],
    ) -> None:
        """`server` answers. `patience_s` and `python_steps` as in `serving.supervisor.Limits`."""
        self._repository, self._state, self._server, self._log = repository, state, server, log
        # Of a stub that dies owing an answer, the request may never end: loads must not wait behind `MAX_DEAD` of those.
        self._pool = ThreadPoolExecutor(max_workers=2 * MAX_DEAD, thread_name_prefix="probe")
        self._wait_s = 2 * patience_s
        self._infer = partial(infer, state.http_url, timeout_s=self._wait_s, features=state.features)
        self._classifier = Prober(self._pool, partial(self._infer, CLASSIFIER, None))
        self._direct: dict[Name, Prober] = {}
        self._pinned = pinned = repository.pinned()
        self._offered: frozenset[Name] = frozenset()
        self._instances: dict[str, int] = {}
        self._watchdog = Watchdog(patience_s, frozenset((step, pinned) for step in python_steps if pinned))
        self._replacing: dict[Name, tuple[Future[Outcome], Verdict, float]] = {}
        self._unused: dict[str, float] = {}
        self._failed_loads = 0
        self._now = self._settled = 0.0
        self._asked_at, self._tokens = -ASK_S, 0.0
        self._well = True
        self.may_drain = True

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def run(self) -> str:
        """Watch until the server has to be replaced; the reason."""
        before = time.monotonic()
        while not self._server.wait(LOOK_S):
            # Watched time: when nobody looked, as while the machine slept, no answer grew late and no process was idle.
            now = time.monotonic()
            self._now += min(now - before, 2 * LOOK_S)
            before = now
            if reason := self._look():
                return reason
        code = self._server.code or 0
        return f"signal {-code} ended it" if code < 0 else f"it ended with code {code}: {self._server.cause().strip()}"

    def _look(self) -> str:
        """Look once; the reason to replace the server, or nothing."""
        self._finish_replacements()
        self._read_repository()
        unwell = self._ask()
        children = find_children(self._server.pid)
        self._sweep({stub.region for stub in children.stubs})
        status = read_status(self._server.pid)
        owed = {name: prober.owed_s(self._now) for name, prober in self._direct.items()}
        state = status[0] if status else ZOMBIE
        sight = Sight(
            server_state=state,
            stubs=children.stubs,
            offered=self._offered,
            owed_s=owed,
            awake=frozenset(stub.pid for stub in children.stubs if any(owed.values()) and is_awake(stub.pid)),
            unwell=unwell,
            instances=self._instances,
        )
        for verdict in self._watchdog.look(self._now, sight):
            if verdict.server:
                self.may_drain = False
                return f"the server is {verdict.reason}"
            self._replace(verdict)
        if self._failed_loads >= 3:
            return "a step could not be loaded again"
        if children.dead >= MAX_DEAD and not self._replacing and self._now - self._settled > SETTLED_S:
            return f"it holds on to {children.dead} ended stubs"
        return ""

    def _read_repository(self) -> None:
        """What is pinned and offered; as it was, while a config is half written by hand or has a mistake."""
        with contextlib.suppress(UsageError, OSError):
            self._pinned = self._repository.pinned() or self._pinned
            self._offered = frozenset((step, version) for version in self._repository.offered() for step in STEPS)
            self._instances = {step: self._repository.instances(step) for step in STEPS}

    def _sweep(self, used: set[str]) -> None:
        """Remove shared memory that no stub has used for a while: what dead ones leave behind, and nobody else removes."""
        unused = self._server.regions() - used
        self._unused = {name: self._unused.get(name, self._now) for name in unused}
        for name in [name for name, since in self._unused.items() if self._now - since > SETTLED_S]:
            (SHARED_MEMORY / name).unlink(missing_ok=True)
            self._log.write("leftover-removed", name=name)

    def _ask(self) -> frozenset[Name]:
        """Take the answers that came, ask again; the pinned versions that an answer called not healthy."""
        answers = [self._classifier.take()]
        self._note_service(answers[0])
        answering = self._is_answering()
        if not answering or self._now - self._asked_at >= ASK_S:
            self._classifier.ask(self._now)
            self._asked_at = self._now
        if self._classifier.owed_s(self._now) >= SUSPICIOUS_S:
            for name in self._suspects():
                self._direct[name].ask(self._now)
        answers += [prober.take() for prober in self._direct.values()]
        messages = [answer.message for answer in answers if answer and "not healthy" in answer.message]
        version = self._pinned
        return frozenset((step, version) for step in STEPS if version and any(step in message for message in messages))

    def _is_answering(self) -> bool:
        """Whether the pinned engine has computed something since the last look."""
        before, self._tokens = self._tokens, self._server.tokens_answered(self._pinned) if self._pinned else 0.0
        return self._tokens != before

    def _suspects(self) -> list[Name]:
        """The pinned version of each step, and the server itself, each with a prober."""
        names = [*((step, self._pinned) for step in STEPS if self._pinned), SERVER]
        for name in names:
            if name not in self._direct:
                self._direct[name] = Prober(self._pool, partial(self._ask_directly, name))
        return names

    def _ask_directly(self, name: Name) -> Outcome:
        if name == SERVER:
            return ask(self._state.http_url, "/v2/health/live", None, self._wait_s)
        return self._infer(*name)

    def _note_service(self, answer: Outcome | None) -> None:
        """Log when the classifier stops answering, and when it answers again. A refusal for being overloaded is an answer."""
        if answer is None:
            return
        well = answer.status == OK or "overloaded" in answer.message
        if well != self._well:
            self._log.write("service-back" if well else "service-fails", **({} if well else {"error": answer.message}))
        self._well = well

    def _replace(self, verdict: Verdict) -> None:
        """Have the server start a new process for a version, unless that is under way."""
        name = (verdict.model, verdict.version)
        if name in self._replacing:
            return
        facts = {"model": verdict.model, "version": verdict.version, "pids": [stub.pid for stub in verdict.stubs]}
        self._log.write(f"stub-{verdict.reason}", **facts)
        for stub in verdict.stubs:
            with contextlib.suppress(ProcessLookupError):
                os.kill(stub.pid, signal.SIGKILL)
        model_file = self._repository.path / verdict.model / str(verdict.version) / "model.py"
        try:
            stamp = max(time.time_ns(), model_file.stat().st_mtime_ns + 1_000_000)  # the file system's clock ticks in ms
            os.utime(model_file, ns=(stamp, stamp))
        except FileNotFoundError:
            return  # retired just now: it is to end
        self._replacing[name] = (self._pool.submit(load, self._state, verdict.model), verdict, time.monotonic())

    def _finish_replacements(self) -> None:
        for name, (loading, verdict, started) in list(self._replacing.items()):
            if not loading.done():
                continue
            del self._replacing[name]
            self._direct.pop(name, None)
            self._settled = self._now
            facts = {"model": verdict.model, "version": verdict.version, "after_s": round(time.monotonic() - started, 2)}
            if loading.result().status != OK:
                self._failed_loads += 1
                self._log.write("stub-not-replaced", **facts, error=loading.result().message)
            else:
                self._failed_loads = 0
                self._log.write("stub-replaced", **facts)
