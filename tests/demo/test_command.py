"""`python -m demo`: its options and its parts; the whole of it runs in tests/serving."""

from __future__ import annotations

import http.server
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from demo.__main__ import DEFAULTS, engine_counts, new_folder, parse_options
from demo.commands import CommandError, Server, run

ROOT = Path(__file__).resolve().parents[2]

METRICS = """\
# HELP nv_inference_count Number of inferences performed (does not include cached requests)
# TYPE nv_inference_count counter
nv_inference_count{model="bert_classifier",version="1"} 900
nv_inference_count{model="bert_engine",version="1"} 700
nv_inference_count{model="bert_engine",version="2"} 55
nv_inference_exec_count{model="bert_tokenizer",version="1"} 800
nv_inference_exec_count{model="bert_engine",version="1"} 300
nv_inference_exec_count{model="bert_engine",version="2"} 11
nv_inference_request_success{model="bert_engine",version="1"} 1
"""


def demo(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "demo", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=60)


def test_help_names_every_option_and_the_commands_to_type() -> None:
    done = demo("--help")
    assert (done.returncode, done.stderr) == (0, "")
    for option in ("dataset", "data", "text", "label", "base", "train-rows", "max-length", "epochs"):
        assert f"--{option} " in done.stdout
    assert "python -m demo --dataset csv --data reviews.csv --text review --label stars" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--epoch", "1"], "--epoch"),  # an abbreviation is no option
        (["--rows", "5"], "--rows"),
        (["extra"], "extra"),
        (["--dataset", "news"], "news"),
        (["--epochs", "two"], "two"),
    ],
)
def test_an_unknown_option_or_value_ends_with_2_and_writes_nothing(arguments: list[str], said: str) -> None:
    done = demo(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr


@pytest.mark.parametrize("dataset", DEFAULTS)
def test_sizes_that_are_not_given_are_those_of_the_data_set(dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["demo", "--dataset", dataset, "--epochs", "9"])
    options = vars(parse_options())
    assert {name: options[name] for name in DEFAULTS[dataset]} == DEFAULTS[dataset] | {"epochs": 9}


def test_each_run_gets_the_first_free_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert [str(new_folder("csv")) for _ in range(3)] == [f"build/demo/csv-{number}" for number in (1, 2, 3)]
    (tmp_path / "build/demo/csv-2").rmdir()
    assert str(new_folder("csv")) == "build/demo/csv-2"
    assert str(new_folder("docstrings")) == "build/demo/docstrings-1"


@contextmanager
def metrics_server(text: str) -> Iterator[str]:
    """host:port of a server that answers /metrics with `text`."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/metrics" else 404)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_the_engines_counters_are_summed_over_its_versions_and_over_no_other_model() -> None:
    with metrics_server(METRICS) as url:
        assert engine_counts(url) == (755, 311)


def test_a_command_is_shown_before_it_runs_and_runs_in_this_environment(capfd: pytest.CaptureFixture[str]) -> None:
    run("python", "-c", "import sys; print(sys.executable)", Path("a b"))
    assert capfd.readouterr().out == f"\n$ python -c 'import sys; print(sys.executable)' 'a b'\n{sys.executable}\n"


@pytest.mark.parametrize("code", [1, 2, 130])
def test_a_command_that_fails_raises_its_exit_code(code: int) -> None:
    with pytest.raises(CommandError) as raised:
        run("python", "-c", f"raise SystemExit({code})")
    assert raised.value.code == code


def test_a_server_that_ends_before_it_serves_raises_its_exit_code(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CommandError) as raised, Server(tmp_path / "absent"):
        pass
    assert raised.value.code == 2
    assert "is not a deployed repository" in capfd.readouterr().err
