"""A deployed repository and, when one runs, its server: every change is made on the disk, told to the server, and proved.

Success of a `load` is no proof (Triton answers 200 when it saw nothing to do): versions are asked whether they are ready, and
ensembles have to answer a text under the release's name.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from clients import ClassifierError, RetryPolicy, connect
from contract.command import Failure, UsageError
from contract.tensors import CANDIDATE, CLASSIFIER, ENSEMBLES, STEPS
from serving.control import ModelControl
from serving.probe import OK, PROBE_TEXT, ask
from serving.rehearsal import NICENESS
from serving.repository import Repository
from serving.state import STATE_FILE, ServerState, read_state

PATIENT = RetryPolicy(attempts=200, longest_wait_s=0.2, budget=1000, retry_rejected=True)
"""Of an operator's questions: that the server is overloaded says nothing about the release, and is when one rolls back."""
RESTART_WAIT_S = 60.0
"""How long a command waits for a server that is starting again."""
HEALTH_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Deployment:
    """What a publisher works on."""

    repository: Repository
    state: ServerState | None
    """None without a running server: then only the files change."""

    @classmethod
    def find(cls, repository: Repository, url: str | None = None) -> Deployment:
        """The repository with its running server; `url` is the HTTP host:port to reach it at, when not as it wrote down.

        Raises:
            UsageError: a server is named, and none has written down its token.
        """
        state = read_state(repository.path, elsewhere=url is not None)
        if url is None:
            return cls(repository, state)
        if state is None:
            raise UsageError(
                f"--url is {url}, but {repository.path / STATE_FILE}, which a server writes when it answers, is absent: start "
                "it with this repository, or leave --url out to change only the files"
            )
        return cls(repository, dataclasses.replace(state, http_url=url))

    def is_up(self) -> bool:
        """Whether the server answers at all; without one there is nothing to wait for."""
        return self.state is None or ask(self.state.http_url, "/v2/health/live", None, HEALTH_TIMEOUT_S).status == OK

    def wait_until_up(self) -> None:
        """Wait for a server that is starting again. Raises `Failure` when it does not answer within `RESTART_WAIT_S`."""
        deadline, told = time.monotonic() + RESTART_WAIT_S, False
        while self.state is not None and not self.is_up():
            if time.monotonic() > deadline:
                raise Failure(f"the server at {self.state.http_url} does not answer within {RESTART_WAIT_S:g} s; see its log")
            if not told:
                print(f"the server at {self.state.http_url} does not answer; waiting until it is started again", flush=True)
            told = True
            time.sleep(0.1)

    def niceness(self) -> int:
        """Of a rehearsal: it gives way to the server where there is one."""
        return 0 if self.state is None else NICENESS

    def load(self, *models: str) -> None:
        """Have the server load models as the repository now describes them. Raises `Failure` with its reason."""
        if self.state is not None:
            with ModelControl(self.state) as control:
                for model in models:
                    control.load(model)

    def is_loaded(self, version: int) -> bool:
        """Whether both steps of `version` are; without a server, whether they will be."""
        if self.state is None:
            return version in self.repository.offered()
        with ModelControl(self.state) as control:
            return all(control.is_ready(step, version) for step in STEPS)

    def offer(self, versions: Sequence[int], *, step: str | None = None) -> None:
        """Have the steps, or one of them, hold exactly these versions in memory."""
        self.repository.offer(versions)
        if self.state is None:
            return
        with ModelControl(self.state) as control:
            for name in [step] if step else STEPS:
                control.load(name)
                absent = [version for version in versions if not control.is_ready(name, version)]
                if absent:
                    raise Failure(f"{name} {absent[0]} is not ready after its load; see the server's log")

    def point(self, ensemble: str, version: int) -> None:
        """Flip an ensemble to `version` and have it answer as that release."""
        self.repository.pin(version, ensemble)
        self.load(ensemble)
        self.check_answer(ensemble, self.repository.release(version))

    def check_answer(self, ensemble: str, release: str) -> None:
        """Raise `Failure` unless the ensemble answers as `release`."""
        if self.state is None:
            return
        try:
            with connect(self.state.http_url, "http", model=ensemble, retry=PATIENT) as classifier:
                beside = [[0.0] * self.state.features] if self.state.features else None
                answered = classifier.classify([PROBE_TEXT], features=beside)[0].release
        except ClassifierError as error:
            raise Failure(f"{ensemble} does not answer as {release}: {error}") from error
        if answered != release:
            raise Failure(f"{ensemble} answers as {answered}, not as {release}")

    def serve(self, version: int) -> None:
        """Flip the traffic to `version`; a canary's share that has no candidate of its own goes along."""
        candidate = self.repository.candidate()
        self.point(CLASSIFIER, version)
        if candidate is None or candidate == version:
            self.point(CANDIDATE, version)

    def undo(self, configs: dict[Path, bytes], version: int | None) -> None:
        """Go back to `configs`, on the disk at once, in the server once it is up, and delete `version`, which never served."""
        changed = configs != self.repository.configs()
        try:
            if changed:
                self._restore(configs, version)
                if (serving := self.repository.pinned()) is not None:
                    self._forget_deleted(serving)
                    self.wait_until_up()  # one that is starting may have read what is undone
                    self.load(*ENSEMBLES, *STEPS)
                    self.check_answer(CLASSIFIER, self.repository.release(serving))
        finally:
            if version is not None:
                self.repository.remove_version(version)

    def _restore(self, configs: dict[Path, bytes], version: int | None) -> None:
        """Put configs back; where the disk is too full for that, make room by deleting `version` first."""
        try:
            self.repository.restore(configs)
        except OSError:
            if version is None:
                raise
            self.repository.remove_version(version)
            self.repository.restore(configs)

    def undo_after(self, error: BaseException, configs: dict[Path, bytes], version: int | None) -> None:
        """`undo` because of `error`. A server that cannot be told is said beside the reason, not in its place."""
        try:
            self.undo(configs, version)
        except (Failure, OSError) as undone:
            reason = str(error) or type(error).__name__
            raise Failure(f"{reason}; and the server could not be told to go back: {undone}") from error

    def _forget_deleted(self, serving: int) -> None:
        """Offer no version that a retirement had deleted before it was broken off: no server would start with it."""
        deleted = set(self.repository.offered()) - set(self.repository.versions())
        if deleted:
            self.repository.drop(sorted(deleted), serving)
