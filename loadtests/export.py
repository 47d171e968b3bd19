"""A scenario for NVIDIA's perf_analyzer: its texts as an input-data file, its load as a command line.

    python -m loadtests.export loadtests/scenarios/steady.toml --repository build/model_repository --output data.json

perf_analyzer needs the input data and the shape said for a string input of variable size; the printed command says both. It
also reads the model's configuration and statistics, for which a server of ours wants its operator's token: with --repository
the command reads it out of that folder when it runs.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from contract.command import UsageError, run_command
from contract.files import write_json
from contract.tensors import CLASSIFIER, TEXT
from loadtests.measure import read_requests
from loadtests.operator import CONTROL_HEADER, STATE_FILE, find_url, read_operator
from loadtests.scenario import Scenario, read_scenario

READ_OUT = 'import json, sys; print(json.load(open(sys.argv[1]))["control_token"])'


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write a scenario's texts for perf_analyzer and print its command."""

    scenario: Annotated[Path, tyro.conf.Positional]
    """Scenario file (loadtests/scenarios/*.toml) of constant load."""
    output: Path
    """Input-data JSON to write."""
    url: str | None = None
    """host:port of gRPC; that of the repository's server when left out, or 127.0.0.1:8001."""
    repository: Path | None = None
    """Served repository, whose operator's token perf_analyzer is to bring along."""
    texts: Path | None = None
    """Take these texts and not the scenario's."""


def input_data(requests: Iterable[Iterable[str]]) -> dict[str, Any]:
    """perf_analyzer's input data: one text an entry; with -b it takes so many entries a request."""
    return {"data": [{TEXT: {"content": [text], "shape": [1]}} for texts in requests for text in texts]}


def command_of(scenario: Scenario, *, data: Path, url: str) -> list[str]:
    """The perf_analyzer call that puts the scenario's load on `url`."""
    load = scenario.load
    if load.kind == "open":
        asked = ["--request-rate-range", f"{load.rate:g}", "--request-distribution", load.arrivals]
    else:
        asked = ["--concurrency-range", str(load.users)]
    return [
        *("perf_analyzer", "-m", CLASSIFIER, "-i", "grpc", "-u", url, "-b", str(scenario.texts_per_request)),
        *("--input-data", str(data), "--shape", f"{TEXT}:1", "--percentile", "99"),
        *("--measurement-interval", str(round(scenario.duration_s * 1000)), *asked),
    ]


def main(options: Export) -> None:
    """Run the command; see the module docstring."""
    scenario = read_scenario(options.scenario, texts=options.texts)
    if scenario.load.shape != "constant":
        raise UsageError(f"load.shape is {scenario.load.shape}; perf_analyzer knows constant load alone")
    write_json(options.output, input_data(read_requests(scenario)))
    operator = None if options.repository is None else read_operator(options.repository)
    command = shlex.join(command_of(scenario, data=options.output, url=find_url(options.url, operator)))
    if options.repository is not None:
        print(f"TOKEN=$(python -c '{READ_OUT}' {shlex.quote(str(options.repository / STATE_FILE))})")
        command += f' -H "triton-grpc-protocol-{CONTROL_HEADER}:$TOKEN"'
    print(command)


if __name__ == "__main__":
    run_command(lambda: main(tyro.cli(Export, prog="python -m loadtests.export", description=__doc__)))
