"""When a python stub, or the server, counts as dead or hung: the rule alone, without a clock, a process or a socket of its own.

An overloaded server answers late too, so lateness alone proves nothing. What proves it:

* dead      the kernel has fewer living processes for a version than it had and its config asks for, and it is still offered
* stopped   the kernel says that the process is stopped
* hung      asked directly, the version owes an answer, though the server itself answers, and for `QUIET_S` no process of it
            used CPU or had a thread that wanted a core or waited for a disk: an overloaded one computes, a starved one wants
            to, and one that waits for its turn is not owed to us, as every request before ours is being computed
* endless   asked directly, the stub owes an answer for `patience_s`, computing or not
* unwell    the server says for `UNWELL_S` on end that the stub is not healthy, though its process lives

The server itself is judged by the same marks: stopped, or its health endpoint silent for `patience_s`.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

from serving.stubs import STOPPED, Stub

CONFIRM_S = 0.2
"""The kernel's word must hold this long: a version that is being replaced has for an instant no process."""
QUIET_S = 0.8
QUIET_CPU_S = 0.02
OWED_S = 0.4
"""A version that was asked directly is expected to answer by then, or to be seen at work."""
UNWELL_S = 2.5

SERVER = ("tritonserver", 0)

Name = tuple[str, int]
"""(model, version)."""


@dataclass(frozen=True, kw_only=True)
class Sight:
    """What one look found."""

    server_state: str
    """The kernel's letter for the server's process."""
    stubs: tuple[Stub, ...]
    offered: frozenset[Name]
    """What the repository tells the server to have loaded."""
    owed_s: dict[Name, float] = field(default_factory=dict)
    """How long a step, asked directly, or the server's health endpoint, has owed an answer."""
    awake: frozenset[int] = frozenset()
    """Stubs of which a thread runs, wants to, or waits for a disk; looked for while a step owes an answer."""
    unwell: frozenset[Name] = frozenset()
    """What the last answers called not healthy."""
    instances: dict[str, int] = field(default_factory=dict)
    """How many processes a version of each model has by its config; 1 of one that is not named."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What has to be replaced, and why."""

    reason: str
    model: str
    version: int
    stubs: tuple[Stub, ...] = ()
    """The processes that are to blame. Others of the version work on until their successors take over."""

    @property
    def server(self) -> bool:
        """Whether it is the server itself."""
        return (self.model, self.version) == SERVER


class Watchdog:
    """Remembers the looks at one server process and judges."""

    def __init__(self, patience_s: float, known: frozenset[Name]) -> None:
        """`known` has all its processes already, as it has answered, even if one dies before the first look."""
        self._patience_s = patience_s
        self._known: dict[Name, tuple[Stub, ...]] = dict.fromkeys(known, ())
        self._had: dict[Name, float] = dict.fromkeys(known, math.inf)
        self._since: dict[tuple[str, Name], float] = {}
        self._cpu: dict[int, deque[tuple[float, float]]] = {}

    def look(self, now: float, sight: Sight) -> list[Verdict]:
        """The verdicts at time `now` (any clock that rises, in seconds). Looks should be at most 0.3 s apart."""
        living: dict[Name, tuple[Stub, ...]] = {}
        for stub in sight.stubs:
            name = (stub.model, stub.version)
            living[name] = (*living.get(name, ()), stub)
        self._known = {name: stubs for name, stubs in self._known.items() if name in sight.offered or name in living}
        short = {name for name in (*self._known, *living) if self._is_short(name, living.get(name, ()), sight)}
        self._known |= {name: stubs for name, stubs in living.items() if name not in short}
        self._had = {name: self._had.get(name, 1) if name in short else len(stubs) for name, stubs in self._known.items()}
        self._note_cpu(now, sight)
        reasons = {name: self._judge(now, name, living.get(name, ()), name in short, sight) for name in (*self._known, SERVER)}
        return [
            Verdict(reason=reason, model=name[0], version=name[1], stubs=self._blamed(reason, name, living.get(name, ())))
            for name, reason in reasons.items()
            if reason
        ]

    def _is_short(self, name: Name, stubs: tuple[Stub, ...], sight: Sight) -> bool:
        """Whether a version lacks processes that it had. One that is being loaded gets them one by one."""
        return name in sight.offered and len(stubs) < min(self._had.get(name, 1), sight.instances.get(name[0], 1))

    def _blamed(self, reason: str, name: Name, living: tuple[Stub, ...]) -> tuple[Stub, ...]:
        if reason == "dead":
            pids = {stub.pid for stub in living}
            return tuple(stub for stub in self._known[name] if stub.pid not in pids)
        return tuple(stub for stub in living if stub.state == STOPPED) if reason == "stopped" else living

    def _judge(self, now: float, name: Name, stubs: tuple[Stub, ...], short: bool, sight: Sight) -> str:
        """Why `name` has to be replaced; empty when it has not."""
        states = [sight.server_state] if name == SERVER else [stub.state for stub in stubs]
        owed_s = sight.owed_s.get(name, 0.0)
        owing = owed_s >= OWED_S > sight.owed_s.get(SERVER, 0.0)
        held = {
            "dead": self._held(now, "dead", name, short) >= CONFIRM_S,
            "stopped": self._held(now, "stopped", name, STOPPED in states) >= CONFIRM_S,
            "hung": owing and bool(stubs) and all(self._is_quiet(now, stub.pid) for stub in stubs),
            "endless": owed_s >= self._patience_s,
            "unwell": self._held(now, "unwell", name, name in sight.unwell) >= UNWELL_S,
        }
        return next((reason for reason, true in held.items() if true), "")

    def _held(self, now: float, mark: str, name: Name, present: bool) -> float:
        """For how long the mark has been present at every look; -1 when it is not."""
        if not present:
            self._since.pop((mark, name), None)
            return -1.0
        return now - self._since.setdefault((mark, name), now)

    def _note_cpu(self, now: float, sight: Sight) -> None:
        self._cpu = {stub.pid: deque() if stub.pid in sight.awake else self._cpu.get(stub.pid, deque()) for stub in sight.stubs}
        for stub in sight.stubs:
            used = self._cpu[stub.pid]
            used.append((now, stub.cpu_s))
            while len(used) > 1 and used[1][0] <= now - QUIET_S:
                used.popleft()

    def _is_quiet(self, now: float, pid: int) -> bool:
        """Whether a process was watched for `QUIET_S`, never seen awake, and used no CPU in that time."""
        used = self._cpu[pid]
        return used[0][0] <= now - QUIET_S and used[-1][1] - used[0][1] < QUIET_CPU_S
