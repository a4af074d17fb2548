"""What configs/ says of Prometheus and Grafana, in a form that tests can ask."""

import json
import pathlib
import re

import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROMETHEUS = ROOT / "configs/prometheus"
GRAFANA = ROOT / "configs/grafana"
TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|\{[^{}]*\}|\[[^\[\]]*\]|==|!=|>=|<=|>|<|[^"{\[=!<>]+|.', re.S)
COMPARISONS = ("==", "!=", ">=", "<=", ">", "<")


def load(path):
    return yaml.safe_load(pathlib.Path(path).read_text())


def rules_of(name):
    """All rules of a file of configs/prometheus, in order."""
    return [rule for group in load(PROMETHEUS / name)["groups"] for rule in group["rules"]]


def recordings():
    return rules_of("rules.yml")


def alerts():
    return rules_of("alerts.yml")


def dashboard():
    return json.loads((GRAFANA / "pikv.json").read_text())


def panels():
    return [p for p in dashboard()["panels"] if p["type"] != "row"]


def without_comparison(expr):
    """The expression with comparisons that give 0 or 1 instead of dropping what is not so: it has data whenever
    both sides have."""
    words = TOKEN.findall(expr)
    assert "".join(words) == expr, expr
    return "".join(word + " bool" if word in COMPARISONS else word for word in words)


def with_windows(expr, window):
    """Every range and window of Grafana's is `window`."""
    expr = expr.replace("$__rate_interval", window).replace("$__interval", window)
    return re.sub(r"\[[0-9]+[smhd]\]", f"[{window}]", expr)


def with_variables(expr):
    """The dashboard's variables at All."""
    for variable in dashboard()["templating"]["list"]:
        if variable["type"] == "query":
            expr = expr.replace("$" + variable["name"], variable["allValue"])
    assert "$" not in expr, expr
    return expr


def names_in(expr):
    """Series of pikv, of the process or of recording rules that an expression reads."""
    bare = re.sub(r'"(?:[^"\\]|\\.)*"', '""', expr)
    return set(re.findall(r"\b((?:pikv|process|instance(?:_[a-z]+)?:)[a-z0-9_:]*)", bare)) - {"instance"}
