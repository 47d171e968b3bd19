"""Numbers beside the text: `features`, FP32 [B, F], of a release whose checkpoint was trained with --tabular.

They are sent raw, in the order of the manifest's `features`; mean, deviation and the joint head are in the engine. The
tokenizer step checks them and hands them on. It refuses a request without them, or with another number of them, and names them
all, so a client learns names and order from the server alone, through whatever proxy, by asking without.
"""

from __future__ import annotations

import json

from contract.command import UsageError

WANTED = "this release reads the features "
"""In every refusal of the tokenizer step, behind which the names stand as a JSON list."""


def wanted_in(message: str) -> list[str]:
    """The names in a refusal; empty for one that is not about features."""
    _, found, behind = message.partition(WANTED)
    try:
        names = json.JSONDecoder().raw_decode(behind)[0] if found else []
    except ValueError:
        return []
    return [str(name) for name in names] if isinstance(names, list) else []


def check_same_features(new: list[str], serving: list[str], release: str) -> None:
    """Raise `UsageError` unless a release reads what the serving one reads: every client sends that."""
    if new != serving:
        read = [f"the features {', '.join(names)}" if names else "text alone" for names in (new, serving)]
        raise UsageError(
            f"{release} reads {read[0]}, what serves reads {read[1]}, and so do its clients' requests; "
            "publish it into a repository of its own, with a server of its own"
        )
