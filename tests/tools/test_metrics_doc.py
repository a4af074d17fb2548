"""docs/metrics.md says what /metrics shows: tools/metrics_doc.py made it, from this binary."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import metrics_doc  # noqa: E402

BINARY = os.environ.get("PIKV_BIN", str(ROOT / "build/dev/pikv"))
PAGE = """\
# HELP pikv_ready 1 when ready
# TYPE pikv_ready gauge
pikv_ready{model_name="m"} 1
# HELP pikv_requests_total Sequences
# TYPE pikv_requests_total counter
pikv_requests_total{model_name="m",outcome="stop"} 1
pikv_requests_total{model_name="m",outcome="length"} 2
# HELP pikv_requests_by_method_total By method
# TYPE pikv_requests_by_method_total counter
"""


def test_the_file_is_what_a_server_shows():
    done = subprocess.run([ROOT / "tools/metrics_doc.py", BINARY, "--check"], cwd=ROOT, timeout=280,
                          capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_every_family_has_its_row_and_closed_labels_their_values():
    tables = metrics_doc.tables_of(PAGE)
    assert "| `pikv_requests_total` | counter | `outcome`: stop, length | Sequences |\n" in tables
    assert "| `pikv_requests_by_method_total` | counter |  | By method |\n" in tables
    assert tables.count("| `pikv_ready` |") == 1


def test_another_help_type_label_or_family_gives_another_file():
    before = metrics_doc.tables_of(PAGE)
    for old, new in (("1 when ready", "2 when ready"), ("ready gauge", "ready counter"),
                     ('outcome="stop"', 'outcome="halt"'), ("pikv_ready", "pikv_ready_now")):
        assert metrics_doc.tables_of(PAGE.replace(old, new)) != before


def test_a_family_without_a_section_is_not_left_out_silently():
    with pytest.raises(SystemExit, match="pikv_unheard_of"):
        metrics_doc.tables_of(PAGE.replace("pikv_ready", "pikv_unheard_of"))


def test_all_sections_are_in_the_order():
    assert sorted(h for h, _ in metrics_doc.SECTIONS) == sorted(metrics_doc.ORDER)
