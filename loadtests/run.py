"""Run a scenario against a served classifier over gRPC: its figures, whether they may be believed, and whether they pass.

    python -m loadtests.run loadtests/scenarios/steady.toml --repository build/model_repository --output run.json
    python -m loadtests.run loadtests/scenarios/steady.toml --url 10.0.0.5:8001 --texts mine.jsonl

With --repository the operator's token is at hand: the generator's ceiling is measured against a null model in the same
server, and the time is split into stages. Exit code 1 when the measurement is no good (the generator was the limit, the run
was not steady, too few requests) and when the scenario's criteria are not met; the figures are in the message.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from contract.command import Failure, run_command
from contract.files import write_json
from loadtests.breakdown import stage_table
from loadtests.measure import measure
from loadtests.operator import find_url, read_operator
from loadtests.result import Result
from loadtests.scenario import read_scenario


@dataclass(frozen=True, kw_only=True)
class Run:
    """Run a scenario against a served classifier."""

    scenario: Annotated[Path, tyro.conf.Positional]
    """Scenario file (loadtests/scenarios/*.toml)."""
    url: str | None = None
    """host:port of gRPC; that of the repository's server when left out, or 127.0.0.1:8001."""
    repository: Path | None = None
    """Served repository; its operator's token lets the ceiling and the stages be measured."""
    texts: Path | None = None
    """Take these texts and not the scenario's."""
    output: Path | None = None
    """JSON file to write, also of a run that does not pass."""


def describe(result: Result) -> str:
    """The figures for people."""
    rate, p99 = result.requests_per_s, result.p99_ms
    ceiling = result.ceiling.requests_per_s
    errors = ", ".join(f"{count} {kind} ({result.messages[kind]})" for kind, count in result.errors.items())
    lines = [
        f"{result.name}: {rate.value:.4g} requests/s ({rate.low:.4g} to {rate.high:.4g}), {result.texts_per_s:.4g} texts/s",
        f"  p50 {result.quantiles_ms['50']:.4g} ms   p95 {result.quantiles_ms['95']:.4g} ms   "
        f"p99 {p99.value:.4g} ms ({p99.low:.4g} to {p99.high:.4g}; 95 % intervals)",
        f"  {result.requests} requests, {result.error_rate:.3%} failed{': ' if errors else ''}{errors}",
        f"  answered by {', '.join(result.releases)}",
        f"  generator: {result.generator_cpu_share:.0%} of a core, sent up to {result.lateness_p99_ms:.3g} ms late (p99), "
        + (f"reaches {ceiling:.4g} requests/s against a null model" if ceiling else "its ceiling unknown"),
        f"  {result.note}",
    ]
    return "\n".join(lines)


def main(options: Run) -> None:
    """Run the command; see the module docstring."""
    scenario = read_scenario(options.scenario, texts=options.texts)
    operator = read_operator(options.repository) if options.repository else None
    result = measure(scenario, url=find_url(options.url, operator), operator=operator, name=options.scenario.stem)
    print(describe(result))
    if result.stages:
        print(stage_table(result.stages))
    unmet = result.unmet(scenario.criteria)
    if options.output:
        write_json(options.output, result.to_json() | {"unmet": unmet})
    if result.refusals:
        raise Failure("this measurement says nothing about the server:\n  " + "\n  ".join(result.refusals))
    if unmet:
        raise Failure("the criteria are not met:\n  " + "\n  ".join(unmet))


if __name__ == "__main__":
    run_command(lambda: main(tyro.cli(Run, prog="python -m loadtests.run", description=__doc__)))
