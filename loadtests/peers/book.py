"""The results file as it grows: what is finished is kept, and used again only for the same release, machine and options."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from contract.command import UsageError
from contract.files import read_json, write_json
from loadtests.peers.goals import OURS, evaluate

SCHEMA = 3
"""Of the file, and of how its figures are taken."""


class Book:
    """Finished (round, server) results on disk."""

    def __init__(self, path: Path, identity: Mapping[str, Any], facts: Mapping[str, Any], *, fresh: bool = False) -> None:
        """Take over what `path` holds if it was measured with the same `identity`; `facts` go beside it.

        Raises:
            UsageError: it was measured otherwise, and is not to be begun `fresh`.
        """
        self._path = path
        self._content: dict[str, Any] = {
            "schema": SCHEMA,
            "identity": dict(identity),
            "servers": {},
            "rounds": {},
            "failed": {},
        }
        if path.exists():
            found = read_json(path)
            other = _differences(found, self._content)
            if not other:
                self._content = found
            elif not fresh:
                raise UsageError(
                    f"{path} holds a measurement with another {', '.join(other)}: name another --output to keep it, "
                    "or give --fresh to replace it"
                )
        self._content |= facts

    def finished(self, number: int) -> dict[str, Any]:
        """The results of a round, by server."""
        rounds: dict[str, Any] = self._content["rounds"]
        found: dict[str, Any] = rounds.get(str(number), {})
        return found

    def describe(self, server: str, facts: Mapping[str, Any]) -> None:
        """Title, settings and versions of a server."""
        self._content["servers"][server] = dict(facts)

    def keep(self, number: int, server: str, result: Mapping[str, Any]) -> None:
        """Write down a finished result."""
        self._content["failed"].pop(server, None)
        self._content["rounds"].setdefault(str(number), {})[server] = dict(result)
        self.write()

    def fail(self, server: str, reason: str) -> None:
        """Write down why a server could not be measured; it is tried again by the next call."""
        self._content["failed"][server] = reason
        self.write()

    def forget_failure(self, server: str) -> None:
        """What once could not be measured of it now was."""
        if self._content["failed"].pop(server, None) is not None:
            self.write()

    @property
    def best(self) -> dict[str, bool]:
        """By peer, whether it is in its best setting, not in its default."""
        return {name: bool(facts["best"]) for name, facts in self._content["servers"].items() if name != OURS}

    def write(self) -> None:
        """Write the file, the goals with it."""
        goals = evaluate(list(self._content["rounds"].values()), self.best)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self._path, self._content | {"date": datetime.now(UTC).date().isoformat(), "goals": goals})

    @property
    def content(self) -> dict[str, Any]:
        """What is in the file."""
        return self._content


def _differences(found: Any, wanted: Mapping[str, Any]) -> list[str]:
    """In what a results file and this call differ, in words; [] where one may go on with it."""
    if not isinstance(found, dict) or found.get("schema") != wanted["schema"]:
        return ["schema"]
    identity = found.get("identity")
    if not isinstance(identity, dict):
        return ["identity"]
    return sorted(name for name in {**identity, **wanted["identity"]} if identity.get(name) != wanted["identity"].get(name))
