"""The real Prometheus over the real server: every rule and every query of a panel is read, and returns data under load."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import pytest
import yaml

from clients import BadRequest, connect
from clients.transport import GrpcTransport
from serving.state import ServerState
from tests.docker.files import ADAPTER_RULE
from tests.served import wait_until

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "docker" / "prometheus"
DASHBOARD = json.loads((ROOT / "docker" / "grafana" / "dashboards" / "bert.json").read_text(encoding="utf-8"))
ALERT_TESTS = Path(__file__).with_name("alerts.test.yml")
MODELS = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "model_repository").glob("*/1/model.py"))
METRIC = re.compile(r"\b(?:nv|bert)_[a-z0-9_]+\b(?!\"|\|)")
NO_PROMETHEUS = shutil.which("prometheus") is None or shutil.which("promtool") is None
needs_prometheus = pytest.mark.skipif(NO_PROMETHEUS, reason="prometheus is not installed: apt-get install prometheus")
QUERIES = [(panel["title"], target["expr"]) for panel in DASHBOARD["panels"] for target in panel["targets"]]
# As prometheus-adapter fills it in for the pods of one namespace; here a server is an instance.
AUTOSCALING = ADAPTER_RULE["metricsQuery"].replace("<<.LabelMatchers>>", 'instance=~".+"').replace("<<.GroupBy>>", "instance")
QUERIES.append((ADAPTER_RULE["name"]["as"], AUTOSCALING))


def absent(expression: str) -> str:
    """Why this machine's server cannot have the query's metrics; "" when it must."""
    if "nv_gpu" in expression:
        return "a GPU's metrics"
    own = {name for name in METRIC.findall(expression) if name.startswith("bert_") and not name.startswith("bert_classifier")}
    missing = sorted(name for name in own if name not in MODELS)
    return f"the models do not publish {', '.join(missing)}" if missing else ""


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True, check=False, timeout=240)


@needs_prometheus
def test_promtool_accepts_the_configuration_and_the_rules() -> None:
    assert promtool("check", "config", PROMETHEUS / "prometheus.yml").returncode == 0
    done = promtool("check", "rules", "--lint-fatal", PROMETHEUS / "alerts.yml")
    assert (done.returncode, "12 rules found" in done.stdout) == (0, True), done.stdout + done.stderr


@needs_prometheus
def test_each_alert_fires_on_what_it_is_for_and_on_nothing_else() -> None:
    done = promtool("test", "rules", ALERT_TESTS)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_prometheus
def test_an_alert_that_never_fires_is_found(tmp_path: Path) -> None:
    rules = (PROMETHEUS / "alerts.yml").read_text(encoding="utf-8").replace("/ 1000 > 250", "/ 1000 > 1e9")
    (tmp_path / "alerts.yml").write_text(rules, encoding="utf-8")
    tests = ALERT_TESTS.read_text(encoding="utf-8").replace("../../docker/prometheus/alerts.yml", "alerts.yml")
    (tmp_path / "tests.yml").write_text(tests, encoding="utf-8")
    done = promtool("test", "rules", tmp_path / "tests.yml")
    assert (done.returncode, "SlowAnswers" in done.stdout + done.stderr) == (1, True)


def test_every_alert_has_its_test_and_tells_what_to_do() -> None:
    (group,) = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text(encoding="utf-8"))["groups"]
    alerts = {rule["alert"] for rule in group["rules"] if "alert" in rule}
    tried = yaml.safe_load(ALERT_TESTS.read_text(encoding="utf-8"))["tests"]
    for case in tried:
        assert {test["alertname"] for test in case["alert_rule_test"]} == alerts
    assert all(rule["annotations"]["summary"] and rule["labels"]["severity"] for rule in group["rules"] if "alert" in rule)


def test_the_dashboard_is_whole_and_its_source_is_the_provisioned_one() -> None:
    (source,) = yaml.safe_load((ROOT / "docker/grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"]
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) == len(panels)
    assert {panel["datasource"]["uid"] for panel in panels} == {source["uid"]}
    assert all(panel["description"] and panel["fieldConfig"]["defaults"]["unit"] for panel in panels)
    places = [tuple(panel["gridPos"].values()) for panel in panels]
    assert len(set(places)) == len(places)


def get(url: str, path: str, **parameters: str) -> Any:
    query = f"http://{url}{path}?{urllib.parse.urlencode(parameters)}"
    with urllib.request.urlopen(query, timeout=60) as reply:
        return json.load(reply)["data"]


def is_ready(url: str) -> bool:
    """Whether Prometheus answers queries; it listens before it does."""
    try:
        with urllib.request.urlopen(f"http://{url}/-/ready", timeout=60) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


@contextmanager
def prometheus(folder: Path, target: str) -> Iterator[str]:
    """The real Prometheus with the committed configuration, its target exchanged; where it listens."""
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text(encoding="utf-8"))
    config["global"] = {"scrape_interval": "2s", "evaluation_interval": "2s"}
    config["scrape_configs"][0]["static_configs"][0]["targets"] = [target]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    shutil.copy(PROMETHEUS / "alerts.yml", folder)
    log = folder / "prometheus.log"
    flags = [f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data", "--web.listen-address=127.0.0.1:0"]
    with log.open("w") as file:
        process = subprocess.Popen(["prometheus", *flags], stdout=file, stderr=file)
    try:
        listening = re.compile(r"Listening on\"? address=(127\.0\.0\.1:[1-9]\d*)")
        assert wait_until(lambda: bool(listening.search(log.read_text())) or process.poll() is not None, seconds=120)
        found = listening.search(log.read_text())
        assert found is not None, log.read_text()
        assert wait_until(lambda: is_ready(found[1]), seconds=120), log.read_text()
        yield found[1]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(120)


@contextmanager
def load(url: str) -> Iterator[None]:
    """Requests of all kinds, one after another: good ones, long ones, refused ones."""
    enough = Event()

    def work() -> None:
        transport = GrpcTransport(url, 60.0)
        with connect(url, timeout_s=60) as classifier:
            while not enough.wait(0.01):
                classifier.classify(["the cat runs", "a rose grows " * 40])
                with pytest.raises(BadRequest):
                    transport.infer(np.array([[b" "]], dtype=np.object_), classes=False)
        transport.close()

    thread = Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        enough.set()
        thread.join(120)


@pytest.fixture(scope="module")
def scraped(watched: ServerState, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with prometheus(tmp_path_factory.mktemp("prometheus"), watched.metrics_url) as url, load(watched.grpc_url):
        yield url


@needs_prometheus
@pytest.mark.server
@pytest.mark.parametrize(
    ("title", "expression"), QUERIES, ids=[f"{title} {number}" for number, (title, _) in enumerate(QUERIES)]
)
def test_every_query_of_a_panel_and_of_the_adapter_returns_data_under_load(scraped: str, title: str, expression: str) -> None:
    query = expression.replace("$__rate_interval", "1m")
    if reason := absent(expression):
        assert get(scraped, "/api/v1/query", query=query)["resultType"] == "vector"  # it is read all the same
        pytest.skip(reason)

    def finite() -> bool:
        values = [float(sample["value"][1]) for sample in get(scraped, "/api/v1/query", query=query)["result"]]
        return bool(values) and bool(np.isfinite(values).all())

    assert wait_until(finite, seconds=120), f"{title}: no data for {query}"


@needs_prometheus
@pytest.mark.server
def test_every_rule_is_evaluated_over_real_data(scraped: str) -> None:
    def evaluated() -> bool:
        (group,) = get(scraped, "/api/v1/rules")["groups"]
        return all(rule["health"] == "ok" for rule in group["rules"])

    assert wait_until(evaluated, seconds=120)
    assert wait_until(lambda: bool(get(scraped, "/api/v1/query", query="bert:queue_ms:mean1m")["result"]), seconds=120)
