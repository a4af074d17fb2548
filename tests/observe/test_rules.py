"""configs/prometheus: what promtool says of it, and that alerts say what somebody needs who is woken by them."""

import re
import subprocess

import pytest

import observe

SEVERITIES = {"critical", "warning", "info"}


def promtool(*words):
    done = subprocess.run(["promtool", *words], cwd=observe.PROMETHEUS, capture_output=True, text=True,
                          timeout=120, check=False)
    return done.returncode, done.stdout + done.stderr


def test_promtool_accepts_configuration_and_rules():
    code, text = promtool("check", "config", "prometheus.yml")
    assert code == 0 and "FAILED" not in text, text
    code, text = promtool("check", "rules", "rules.yml", "alerts.yml")
    assert code == 0, text
    assert f"{len(observe.recordings())} rules found" in text
    assert f"{len(observe.alerts())} rules found" in text


def test_alerts_fire_when_they_should_and_no_other_does():
    code, text = promtool("test", "rules", "alerts_test.yml")
    assert code == 0, text


def expected_alerts():
    tests = observe.load(observe.PROMETHEUS / "alerts_test.yml")["tests"]
    for test in tests:
        for query in test["promql_expr_test"] if "promql_expr_test" in test else []:
            if "ALERTS" in query["expr"]:
                samples = query["exp_samples"]
                yield {re.search(r'alertname="(\w+)"', s["labels"]).group(1) for s in samples}


def test_every_alert_has_a_test_in_which_it_fires():
    """And in every such test it fires alone: each query lists all that fire."""
    fired = set().union(*expected_alerts())
    assert fired == {rule["alert"] for rule in observe.alerts()}
    assert set() in list(expected_alerts())


def test_every_alert_says_what_to_do_and_where_more_is_written():
    names = [rule["alert"] for rule in observe.alerts()]
    assert len(set(names)) == len(names)
    for rule in observe.alerts():
        name = rule["alert"]
        assert re.fullmatch(r"Pikv[A-Z][A-Za-z]+", name)
        assert rule["labels"]["severity"] in SEVERITIES, name
        notes = rule["annotations"]
        assert set(notes) == {"summary", "description", "runbook_url"}, name
        assert "$labels.instance" in notes["summary"], name
        assert len(notes["description"]) > 80, name
        assert notes["runbook_url"] == f"docs/operations.md#{name.lower()}"


def test_every_alert_has_its_place_in_the_runbook():
    file = observe.ROOT / "docs/operations.md"
    headings = re.findall(r"^### (Pikv\w+)$", file.read_text(), re.M)
    assert sorted(headings) == sorted(rule["alert"] for rule in observe.alerts())


def flags_in(text):
    return set(re.findall(r"--[a-z][a-z-]+", text))


def test_flags_that_alerts_name_exist():
    from server import run_command
    code, text, _ = run_command("serve", "--help")
    assert code == 0
    named = set().union(*(flags_in(rule["annotations"]["description"]) for rule in observe.alerts()))
    assert len(named) > 10
    assert named <= flags_in(text)


def test_recordings_are_named_by_level_metric_and_operation():
    names = [rule["record"] for rule in observe.recordings()]
    assert len(set(names)) == len(names)
    for rule in observe.recordings():
        level, metric, operation = rule["record"].split(":")
        assert level in ("instance", "instance_layer", "instance_reason")
        assert metric.startswith("pikv_")
        assert ("5m" in operation) == ("[5m]" in rule["expr"] or "5m" in "".join(
            observe.names_in(rule["expr"]))), rule["record"]


def test_groups_have_names_of_their_own():
    names = [group["name"] for file in ("rules.yml", "alerts.yml")
             for group in observe.load(observe.PROMETHEUS / file)["groups"]]
    assert len(set(names)) == len(names)


def family_of(name):
    return re.sub(r"_bucket$", "", name)


def test_all_series_that_rules_and_panels_read_exist():
    """docs/metrics.md is what a server shows; tests/tools/test_metrics_doc.py sees to that."""
    known = set(re.findall(r"^\| `([a-z0-9_:]+)` \|", (observe.ROOT / "docs/metrics.md").read_text(), re.M))
    known |= {rule["record"] for rule in observe.recordings()}
    read = set()
    for rule in observe.recordings() + observe.alerts():
        read |= observe.names_in(rule["expr"])
    for panel in observe.panels():
        for target in panel["targets"]:
            read |= observe.names_in(target["expr"])
    assert len(read) > 70
    assert {family_of(name) for name in read} <= known
