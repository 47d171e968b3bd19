"""Where a request's time goes, stage by stage, and which knob to turn.

    python -m loadtests.stages loadtests/scenarios/steady.toml --repository build/model_repository

Runs the scenario and joins what its generator saw with what Triton's counters gained in the same window: the generator's own
lateness, the wire, queue and compute of tokenizer and engine, the ensemble's own share. The scenario's criteria are not
looked at: `loadtests.run` does that, and prints the same table.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from contract.command import run_command
from contract.files import write_json
from loadtests.breakdown import stage_table
from loadtests.measure import measure
from loadtests.operator import read_operator
from loadtests.scenario import read_scenario


@dataclass(frozen=True, kw_only=True)
class StagesOptions:
    """Show where a request's time goes and which knob to turn."""

    scenario: Annotated[Path, tyro.conf.Positional]
    """Scenario file (loadtests/scenarios/*.toml)."""
    repository: Path
    """Served repository, for its server's addresses and its operator's token."""
    texts: Path | None = None
    """Take these texts and not the scenario's."""
    output: Path | None = None
    """JSON file to write."""


def main(options: StagesOptions) -> None:
    """Run the command; see the module docstring. What would refuse the result as a measurement is printed beside it."""
    operator = read_operator(options.repository)
    scenario = read_scenario(options.scenario, texts=options.texts)
    result = measure(scenario, url=operator.grpc_url, operator=operator, name=options.scenario.stem)
    print(stage_table(result.stages))
    for refusal in result.refusals:
        print(f"note: {refusal}")
    if options.output:
        write_json(options.output, result.stages)


if __name__ == "__main__":
    run_command(lambda: main(tyro.cli(StagesOptions, prog="python -m loadtests.stages", description=__doc__)))
