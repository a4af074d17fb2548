"""configs/grafana: a dashboard that Grafana 10 and 11 import, and the files that provision it.

Without Grafana here, it is read by the types that Grafana publishes of its schema, and what an import needs is checked
one by one: the schema's version, ids, the grid, types of panels that are built in, fields of targets and variables.
What queries return is tests/observe/test_queries.py.
"""

import itertools
import json
import re

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

import observe

# Panels of both versions without plugins, and what their options need.
PANELS = {"timeseries": {"legend", "tooltip"}, "stat": {"reduceOptions", "colorMode", "textMode"},
          "bargauge": {"reduceOptions", "displayMode", "orientation"}, "heatmap": {"calculate", "yAxis", "color"}}
UNITS = {"none", "short", "s", "bytes", "Bps", "percentunit", "reqps", "ops"}
ROWS = ["Now", "Traffic", "Latency", "Tokens", "KV cache: room", "KV cache by shard", "KV cache by tier",
        "KV cache by method, and compression", "Routing and certificates", "Experts and imbalance", "Ranks", "Process"]
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}


def test_it_is_a_dashboard_for_grafana_10_and_11():
    board = observe.dashboard()
    assert 36 <= board["schemaVersion"] <= 39  # 10.0 has 38, 11 migrates from 39; no newer than 11.0 writes
    assert board["uid"] == "pikv" and board["title"] == "pikv" and board["id"] is None
    assert "__inputs" not in board and "__requires" not in board  # provisioned files have no import form
    assert isinstance(board["version"], int) and board["editable"] is True
    assert board["refresh"] == "10s" and board["time"] == {"from": "now-30m", "to": "now"}


def lost(before, after, path=""):
    """Fields that are not in `after` as they were before."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key, value in before.items():
            yield from lost(value, after.get(key), f"{path}.{key}")
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for i, value in enumerate(before):
            yield from lost(value, after[i], f"{path}[{i}]")
    elif before != after:
        yield re.sub(r"\[\d+\]", "[]", path)


def test_grafana_s_own_schema_knows_every_field():
    """Read and written by the types of the version that docker/compose.yaml starts, nothing gets lost."""
    register_default_plugins()
    board = observe.dashboard()
    again = json.loads(JSONEncoder().encode(Dashboard.from_json(board)))
    assert set(lost(board, again)) <= {".templating.list[].definition"}  # which Grafana writes beside its schema
    board["panels"][1]["options"]["reduceOption"] = {}
    again = json.loads(JSONEncoder().encode(Dashboard.from_json(board)))
    assert ".panels[].options.reduceOption" in set(lost(board, again))


def test_ids_of_panels_are_unique():
    ids = [panel["id"] for panel in observe.dashboard()["panels"]]
    assert all(isinstance(i, int) and i > 0 for i in ids)
    assert len(set(ids)) == len(ids)
    titles = [panel["title"] for panel in observe.dashboard()["panels"]]
    assert len(set(titles)) == len(titles)


def cells(panel):
    grid = panel["gridPos"]
    assert set(grid) == {"x", "y", "w", "h"}
    assert 0 <= grid["x"] and 1 <= grid["w"] and grid["x"] + grid["w"] <= 24, panel["title"]
    assert grid["h"] >= 1 and grid["y"] >= 0
    return set(itertools.product(range(grid["x"], grid["x"] + grid["w"]),
                                 range(grid["y"], grid["y"] + grid["h"])))


def test_no_panel_lies_on_another():
    taken = {}
    for panel in observe.dashboard()["panels"]:
        for cell in cells(panel):
            assert cell not in taken, (panel["title"], taken[cell])
            taken[cell] = panel["title"]


def test_rows_come_in_order_and_none_is_empty():
    contents, row = {}, None
    ordered = sorted(observe.dashboard()["panels"], key=lambda p: (p["gridPos"]["y"], p["gridPos"]["x"]))
    for panel in ordered:
        if panel["type"] == "row":
            row = panel["title"]
            assert panel["panels"] == [] and panel["collapsed"] is False
            assert panel["gridPos"]["w"] == 24 and panel["gridPos"]["h"] == 1
            contents[row] = 0
        else:
            contents[row] += 1
    assert list(contents) == ROWS
    assert min(contents.values()) >= 2


def test_panels_are_built_in_described_and_have_units():
    for panel in observe.panels():
        title = panel["title"]
        assert panel["type"] in PANELS, title
        assert PANELS[panel["type"]] <= set(panel["options"]), title
        assert len(panel["description"]) > 5, title
        unit = panel["fieldConfig"]["defaults"]["unit"]
        assert unit in UNITS or unit.startswith("count:"), (title, unit)
        for override in panel["fieldConfig"]["overrides"]:
            assert override["matcher"]["id"] == "byRegexp"
            pattern = override["matcher"]["options"].strip("/")
            legends = [t["legendFormat"] for t in panel["targets"]]
            assert any(re.search(pattern, legend) for legend in legends), title
            assert not all(re.search(pattern, legend) for legend in legends), title


def test_units_fit_what_is_shown():
    for panel in observe.panels():
        first, unit = panel["targets"][0]["expr"], panel["fieldConfig"]["defaults"]["unit"]
        quantile = re.search(r"histogram_quantile\(.*?(pikv_[a-z0-9_]+)_bucket", first)
        if quantile:
            assert unit == ("s" if quantile.group(1).endswith("_seconds") else "short"), panel["title"]
        elif re.search(r"comm_seconds_total|_bound|/ sum by|\) / sum\(", first):
            assert unit == "percentunit", panel["title"]
        elif re.search(r"rate\(pikv_[a-z_]*bytes_total", first):
            assert unit == "Bps", panel["title"]
        elif re.match(r"(?:(?:sum|max)(?: by \(\w+\))? ?\()?pikv_[a-z_]*_bytes\{[^/]*$", first):
            assert unit == "bytes", panel["title"]
        elif first.startswith("sum by") and "rate(pikv_" in first:
            assert unit in ("reqps", "ops") or unit.startswith("count:"), panel["title"]


def test_every_target_asks_the_chosen_data_source_for_the_chosen_servers():
    for panel in observe.panels():
        assert panel["datasource"] == DATASOURCE, panel["title"]
        refs = [target["refId"] for target in panel["targets"]]
        assert refs == sorted(set(refs)) and refs, panel["title"]
        for target in panel["targets"]:
            assert target["datasource"] == DATASOURCE, panel["title"]
            selectors = re.findall(r"(?:pikv|process)_[a-z0-9_]+(\{[^}]*\})?", target["expr"])
            assert selectors and all('job=~"$job"' in s and 'instance=~"$instance"' in s for s in selectors), \
                panel["title"]
            windows = re.findall(r"\[([^\]]*)\]", target["expr"])
            assert set(windows) <= {"$__rate_interval"}, panel["title"]
            assert len(windows) == len(re.findall(r"\b(?:rate|increase)\(", target["expr"]))


def test_variables_are_defined_before_they_are_used():
    variables = observe.dashboard()["templating"]["list"]
    assert [v["name"] for v in variables] == ["datasource", "job", "model", "instance"]
    assert variables[0]["type"] == "datasource" and variables[0]["query"] == "prometheus"
    seen = set()
    for variable in variables[1:]:
        assert variable["type"] == "query" and variable["datasource"] == DATASOURCE
        query = variable["query"]["query"]
        assert query == variable["definition"] and query.startswith("label_values(pikv_ready")
        assert set(re.findall(r"\$(\w+)", query)) <= seen
        assert variable["multi"] and variable["includeAll"] and variable["allValue"] == ".+"
        seen.add(variable["name"])
    for panel in observe.panels():
        for target in panel["targets"]:
            assert set(re.findall(r"\$(\w+)", target["expr"])) <= seen | {"__rate_interval"}


def test_legends_name_labels_that_the_query_keeps():
    for panel in observe.panels():
        for target in panel["targets"]:
            for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
                by = re.search(r"(?:sum|max|count) by \(([^)]*)\)", target["expr"])
                if by:
                    assert label in re.split(r", *", by.group(1)), (panel["title"], label)


def test_provisioning_finds_the_dashboard_and_prometheus():
    source, = observe.load(observe.GRAFANA / "provisioning/datasources/prometheus.yaml")["datasources"]
    assert source["type"] == "prometheus" and source["isDefault"] is True
    scrape = observe.load(observe.PROMETHEUS / "prometheus.yml")["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == scrape
    provider, = observe.load(observe.GRAFANA / "provisioning/dashboards/pikv.yaml")["providers"]
    assert provider["type"] == "file" and provider["options"]["path"].startswith("/")
