"""The documented metrics, the dashboard and the alerts: all use metrics that exist."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import promql_parser
import pytest
import yaml
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from tests.api_stand import ApiStand, api_stand
from tests.processes import ROOT
from worker.metrics.registry import METRICS

DASHBOARD = ROOT / "docs" / "grafana" / "embedq.json"
ALERTS = ROOT / "docs" / "prometheus" / "embedq.rules.yml"
#: Suffixes of a family's samples.
SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
#: Labels that Prometheus and Grafana add themselves.
FOREIGN_LABELS = {"le", "instance", "pod"}


@pytest.fixture(scope="module")
def api(valkey: Any) -> Iterator[ApiStand]:
    with valkey.client() as client:
        client.flushall()
    with api_stand(valkey.url) as stand:
        yield stand


@pytest.fixture(scope="module")
def shown(api: ApiStand) -> dict[str, Metric]:
    """The families of `/metrics`, by name."""
    api.client.get("/healthz")
    families = text_string_to_metric_families(api.client.get("/metrics").text)
    return {family.name: family for family in families if not family.name.endswith("_created")}


def documented() -> dict[str, tuple[str, list[str]]]:
    """Type and labels by the name in the table of docs/operations.md."""
    text = (ROOT / "docs" / "operations.md").read_text()
    rows = re.findall(r"^\| `(embedq_\w+)` \| (\w+) \| ([^|]*)\|", text, re.MULTILINE)
    return {name: (kind, re.findall(r"`(\w+)`", labels)) for name, kind, labels in rows}


def dashboard_queries() -> list[str]:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    queries = [target["expr"] for panel in panels for target in panel.get("targets", ())]
    return [query.replace("$__rate_interval", "5m") for query in queries]


def alerts() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(ALERTS.read_text())["groups"]
    rules: list[dict[str, Any]] = group["rules"]
    return rules


def test_the_table_has_every_metric_and_no_other(shown: dict[str, Metric]) -> None:
    exposed = {
        name + ("_total" if family.type == "counter" else ""): family.type
        for name, family in shown.items()
    }
    assert exposed == {name: kind for name, (kind, _) in documented().items()}


def test_the_table_has_the_labels(shown: dict[str, Metric]) -> None:
    table = documented()
    for figure in METRICS.values():
        name = f"embedq_{figure.name}" + ("_total" if figure.kind == "counter" else "")
        assert table[name][1] == ["worker", *figure.labels], name
    for name, family in shown.items():
        for sample in family.samples:
            described = table.get(name) or table[f"{name}_total"]
            assert set(sample.labels) - {"le"} == set(described[1]), name


def names_and_labels(query: str) -> tuple[set[str], set[str]]:
    """The metrics and labels of a PromQL expression. Raises ValueError if it is invalid."""
    tree = promql_parser.parse(query).prettify()
    names = set(re.findall(r"\bembedq_\w+", tree))
    labels = set(re.findall(r"(\w+)\s*(?:=~|!=|=|!~)\s*\"", tree))
    for group in re.findall(r"\b(?:by|without|on)\s*\(([^)]*)\)", tree):
        labels |= {label.strip() for label in group.split(",") if label.strip()}
    return names, labels


@pytest.mark.parametrize("query", [*dashboard_queries(), *(rule["expr"] for rule in alerts())])
def test_every_query_asks_for_what_is_shown(query: str) -> None:
    table = documented()
    samples: dict[str, set[str]] = {}
    for name, (kind, labels) in table.items():
        base = name.removesuffix("_total") if kind == "counter" else name
        for suffix in SUFFIXES[kind]:
            samples[base + suffix] = set(labels)
    names, labels = names_and_labels(query)
    assert names
    assert names <= samples.keys()
    assert labels <= FOREIGN_LABELS.union(*(samples[name] for name in names))


def test_every_panel_of_figures_of_workers_can_be_narrowed_to_some() -> None:
    workers = {f"embedq_{name}" for name in METRICS}
    for query in dashboard_queries():
        for name in names_and_labels(query)[0]:
            if re.sub("_(total|bucket|sum|count)$", "", name) in workers:
                assert 'worker=~"$worker"' in query


def test_panels_do_not_overlap() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    taken = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells
    assert len({panel["id"] for panel in panels}) == len(panels)


def test_every_alert_says_what_to_do() -> None:
    for rule in alerts():
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"].keys() == {"summary", "action"}
