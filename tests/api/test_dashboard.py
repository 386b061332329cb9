"""deploy/grafana.json asks for what /metrics serves: metrics, and their labels, and all of them."""

import json
import re
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from aiomigrate.api import Service
from aiomigrate.api.metrics import Metrics
from tests.api.conftest import Client

DASHBOARD = json.loads(
    (Path(__file__).resolve().parents[2] / "deploy" / "grafana.json").read_text()
)
QUERIES = [
    (target["expr"], target["legendFormat"])
    for panel in DASHBOARD["panels"]
    for target in panel["targets"]
]
VARIABLES = [one["query"] for one in DASHBOARD["templating"]["list"] if one["type"] == "query"]
OF_PROMETHEUS = {"instance"}
METRIC = re.compile(r"\baiomigrate_\w+")


def labels_in(query: str, legend: str) -> set[str]:
    """All labels that a query selects or groups by, or its legend shows."""
    selected = re.findall(r"(\w+)\s*(?:=~|!=|=)\"", query)
    grouped = [
        name for group in re.findall(r"\bby \(([^)]*)\)", query) for name in group.split(",")
    ]
    shown = re.findall(r"{{(\w+)}}", legend)
    return {name.strip() for name in (*selected, *grouped, *shown)}


async def test_it_shows_what_is_served_and_all_of_it(client: Client, service: Service) -> None:
    answer = await client.get("/metrics")
    served = {
        f"{family.name}_total" if family.type == "counter" else family.name
        for family in text_string_to_metric_families(answer.body.decode())
    }
    assert {METRIC.findall(query)[0] for query, _ in QUERIES} == served
    labels: dict[str, set[str]] = {
        family.name: set(family._labelnames)  # type: ignore[attr-defined]  # its subclasses have it
        for family in Metrics(service).collect()
    }
    for query, legend in [*QUERIES, *((query, "") for query in VARIABLES)]:
        (name,) = METRIC.findall(query)
        assert labels_in(query, legend) <= labels[name.removesuffix("_total")] | OF_PROMETHEUS


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & taken, panel["title"]
        assert all(x < 24 for x, _ in cells), panel["title"]
        taken |= cells
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
