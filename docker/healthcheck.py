"""Is the classifier served? Asked by a real text: Triton says that it is ready when a python model is dead, too.

    python3 docker/healthcheck.py
    python3 docker/healthcheck.py --url http://127.0.0.1:8000 --timeout-s 5 --model bert_classifier

Exit code 0: answered, or refused by a full server. 1: not, with the reason. Standard library only, for it is run every few
seconds: by Docker, by Kubernetes, by anything that asks a command.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import urllib.error
import urllib.request
from typing import Any

TEXT = "Is anybody there?"
OVERLOADED = "overloaded: the engine is"
"""How the tokenizer refuses a text when too many wait. Ending a server for that would put its load on the others."""


def numbers_read(url: str, timeout_s: float) -> int:
    """How many numbers the release reads beside a text, by the engine's metadata; 0 where they are closed, as by a proxy.

    Not found out by asking without: each such request would count as a failed one, and alerts watch those.
    """
    try:
        with urllib.request.urlopen(f"{url}/v2/models/bert_engine", timeout=timeout_s) as reply:  # noqa: S310
            shapes = {tensor["name"]: tensor["shape"] for tensor in json.load(reply)["inputs"]}
    except urllib.error.HTTPError:
        return 0
    return int(shapes.get("features", [0])[-1])


def release_that_answers(url: str, model: str, timeout_s: float) -> str:
    """The id of the release that classifies `TEXT`, with zeros beside it where the release reads numbers.

    Raises:
        OSError: nobody answers, or an error does.
        ValueError: the answer is none.
    """
    deadline = time.monotonic() + timeout_s
    inputs: list[dict[str, Any]] = [{"name": "TEXT", "shape": [1, 1], "datatype": "BYTES", "data": [TEXT]}]
    if count := numbers_read(url, timeout_s):
        inputs.append({"name": "features", "shape": [1, count], "datatype": "FP32", "data": [0.0] * count})
    request = urllib.request.Request(  # noqa: S310 - the operator's own server
        f"{url}/v2/models/{model}/infer", json.dumps({"inputs": inputs}).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=max(deadline - time.monotonic(), 0.1)) as reply:  # noqa: S310
        outputs = {output["name"]: output["data"] for output in json.load(reply)["outputs"]}
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
        reason = error.read().decode("utf-8", "replace") if isinstance(error, urllib.error.HTTPError) else ""
        if OVERLOADED in reason:
            print(f"{options.url} is full and says so: it lives")
            return 0
        print(f"{options.url} does not classify: {error} {reason}".rstrip(), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
