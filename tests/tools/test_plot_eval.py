"""tools/plot_eval.py: the picture holds what the file says, and says what it leaves out."""

import itertools
import json
import pathlib
import re
import subprocess
import sys
import xml.etree.ElementTree as ET

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import plot_eval  # noqa: E402

SVG = "{http://www.w3.org/2000/svg}"


def row(config, resident, difference=None, **more):
    return {"config": config, "resident_bytes_per_token": resident, "read_bytes_per_step": (resident or 0) * 100,
            "nll": 2.5, "nll_difference": difference, "nll_difference_ci95": None if difference is None else 0.01,
            "accuracy": 0.5, "n_samples": 100, **more}


ROWS = [row("default", 2000), row("kv-compression=int4", 700.5, 0.02), row("kv-compression=<int2> & more", 400, 0.3)]


def plot(folder, rows, *words):
    """(exit code, the SVG's root or None, stderr)"""
    file, out = folder / "rows.json", folder / "plot.svg"
    file.write_text(rows if isinstance(rows, str) else json.dumps(rows))
    done = subprocess.run([sys.executable, str(ROOT / "tools/plot_eval.py"), str(file), "-o", str(out), *words],
                          capture_output=True, text=True, check=False)
    return done.returncode, ET.parse(out).getroot() if out.exists() else None, done.stderr


def points_of(root):
    return [(float(c.get("cx")), float(c.get("cy"))) for c in root.iter(SVG + "circle")]


def labels_of(root):
    return [t.text for t in root.iter(SVG + "text") if t.get("class") == "label"]


def test_every_row_is_a_labelled_point_with_its_interval(tmp_path):
    code, root, err = plot(tmp_path, ROWS)
    assert code == 0 and err == ""
    assert sorted(labels_of(root)) == sorted(r["config"] for r in ROWS)
    (x0, y0), (x1, y1), (x2, y2) = points_of(root)
    assert x2 < x1 < x0 and y2 < y1 < y0, "bytes go right and losses up"
    intervals = [e for e in root.iter(SVG + "line") if e.get("class") == "interval"]
    assert len(intervals) == 2 * 3, "the first row is the measure itself"
    assert "nats per token" in "".join(root.itertext())


def test_accuracy_and_bytes_read_can_be_drawn_instead(tmp_path):
    rows = [row("a", 10, accuracy=0.0), row("b", 20, accuracy=1.0)]
    code, root, _ = plot(tmp_path, rows, "--accuracy", "--x", "read_bytes_per_step")
    assert code == 0 and "share of right answers" in "".join(root.itertext())
    intervals = [e for e in root.iter(SVG + "line") if e.get("class") == "interval"]
    assert len(intervals) == 2 * 3, "0 of 100 and 100 of 100 are not certain either"


def test_rows_without_a_number_are_named(tmp_path):
    code, root, err = plot(tmp_path, ROWS + [row("broken", None, 0.1), row("unfinished", 100)])
    assert code == 0 and len(points_of(root)) == 3
    assert "broken" in err and "unfinished" in err


@pytest.mark.parametrize("rows", ["", "{}", "[1]", "[]", [row("a", None)]])
def test_nothing_to_draw_is_an_error_without_a_file(tmp_path, rows):
    code, root, err = plot(tmp_path, rows)
    assert code == 1 and root is None and "rows.json" in err and "Traceback" not in err


def test_one_point_and_equal_points_have_a_scale(tmp_path):
    for rows in ([row("alone", 5)], [row("a", 5), row("b", 5, 0.0)], [row("zero", 0)]):
        code, root, err = plot(tmp_path, rows)
        assert code == 0, err
        for x, y in points_of(root):
            assert 0 < x < plot_eval.WIDTH and 0 < y < plot_eval.HEIGHT


def test_labels_cover_neither_points_nor_each_other():
    points = [plot_eval.Point(f"setting={i},more={i * i}", 100 + i % 3, i % 4 * 0.01, 0, 0.05) for i in range(12)]
    x = plot_eval.Scale([p.x for p in points], plot_eval.LEFT, plot_eval.WIDTH - plot_eval.RIGHT)
    y = plot_eval.Scale([0, 0.05], plot_eval.HEIGHT - plot_eval.BOTTOM, plot_eval.TOP)
    boxes = plot_eval.place_labels(points, x, y)
    assert not any(plot_eval.overlaps(a, b) for a, b in itertools.combinations(boxes, 2))
    assert not any(box[0] < x(p.x) < box[2] and box[1] < y(p.y) < box[3] for box in boxes for p in points)


def test_the_reader_s_dark_setting_has_colours_of_its_own():
    style = plot_eval.STYLE
    light, dark = style.split("@media (prefers-color-scheme: dark)")
    for kind in ("svg", "text", ".title", ".label", ".grid", ".interval", ".point"):
        assert re.search(re.escape(kind) + r"\b", light) and re.search(re.escape(kind) + r"\b", dark), kind


def test_ticks_are_round_and_zero_has_no_sign():
    assert plot_eval.format_tick(-0.0, 0.01) == "0.00"
    assert plot_eval.format_tick(2500, 500) == "2,500"
    assert plot_eval.format_tick(-0.025, 0.005) == "-0.025"
    assert plot_eval.nice_step(1, 5) == pytest.approx(0.2)


def test_wilson_is_the_published_interval():
    low, high = plot_eval.wilson(0.1, 10)  # 1 of 10
    assert low == pytest.approx(0.01788, abs=1e-4) and high == pytest.approx(0.40415, abs=1e-4)
    assert plot_eval.wilson(0, 10)[0] == 0 and plot_eval.wilson(1, 10)[1] == 1
