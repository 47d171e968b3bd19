"""Is the classifier served? Asked by a real text: Triton says that it is ready when a python model is dead, too.

    python3 docker/healthcheck.py
    python3 docker/healthcheck.py --url http://127.0.0.1:8000 --timeout-s 5 --model bert_classifier

Exit code 0: answered, or refused by a full server. 1: not, with the reason. Standard library only, for it is run every few
seconds: by Docker, by Kubernetes, by anything that asks a command.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
import urllib.error
import urllib.request
from typing import Any

TEXT = "Is anybody there?"
OVERLOADED = "overloaded: the engine is"
"""How the tokenizer refuses a text when too many wait. Ending a server for that would put its load on the others."""
WANTED = re.compile(r"the texts come without numbers; .* FP32 \[texts, (\d+)\] in this order", re.DOTALL)
"""How the tokenizer refuses a text alone when the release reads numbers beside it, and how many."""


class RefusalError(OSError):
    """The server answered with an error."""


def infer(url: str, model: str, features: int, timeout_s: float) -> dict[str, Any]:
    """The outputs for `TEXT` with so many zeros beside it.

    Raises:
        RefusalError: an error was the answer; with its text.
        OSError: nobody answers.
        ValueError: the answer is none.
    """
    inputs: list[dict[str, Any]] = [{"name": "TEXT", "shape": [1, 1], "datatype": "BYTES", "data": [TEXT]}]
    if features:
        inputs.append({"name": "features", "shape": [1, features], "datatype": "FP32", "data": [0.0] * features})
    request = urllib.request.Request(  # noqa: S310 - the operator's own server
        f"{url}/v2/models/{model}/infer", json.dumps({"inputs": inputs}).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as reply:  # noqa: S310
            return {output["name"]: output["data"] for output in json.load(reply)["outputs"]}
    except urllib.error.HTTPError as error:
        raise RefusalError(f"{error} {error.read().decode('utf-8', 'replace')}") from error


def release_that_answers(url: str, model: str, timeout_s: float) -> str:
    """The id of the release that classifies `TEXT`, with zeros beside it where the release reads numbers.

    Raises what `infer` does.
    """
    deadline = time.monotonic() + timeout_s
    try:
        outputs = infer(url, model, 0, timeout_s)
    except RefusalError as refused:
        wanted = WANTED.search(str(refused))
        if wanted is None:
            raise
        outputs = infer(url, model, int(wanted[1]), max(deadline - time.monotonic(), 0.1))
    if not outputs.get("logits") or not outputs.get("release"):
        raise ValueError(f"the answer holds {', '.join(outputs) or 'nothing'}; logits and release are needed")
    return str(outputs["release"][0])


def main() -> int:
    """Ask once; the exit code."""
    parser = argparse.ArgumentParser(prog="docker/healthcheck.py", description=__doc__.partition("\n")[0])
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="the server's HTTP address")
    parser.add_argument("--model", default="bert_classifier", help="whom to ask")
    parser.add_argument("--timeout-s", type=float, default=5.0, help="seconds until the answer must be there")
    options = parser.parse_args()
    try:
        print(release_that_answers(options.url, options.model, options.timeout_s))
    except (OSError, ValueError, KeyError) as error:
        if OVERLOADED in str(error):
            print(f"{options.url} is full and says so: it lives")
            return 0
        print(f"{options.url} does not classify: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
