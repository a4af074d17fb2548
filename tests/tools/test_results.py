"""tools/results.py: the page says what was measured, and every setting of configs/results.txt is one that pikv knows."""

import lzma
import os
import pathlib
import re
import subprocess
import sys
import xml.etree.ElementTree as ET

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import results  # noqa: E402

BINARY = os.environ.get("PIKV_BIN", str(ROOT / "build/dev/pikv"))
MODEL = ROOT / "models/storyteller"
STORY = "The old king looked at the sea and said that it was dark. His daughter went to the river and found it cold.\n"


def run(folder, *words):
    """(exit code, stderr)"""
    done = subprocess.run([sys.executable, "tools/results.py", BINARY, "models/storyteller", "--lengths", "128,160",
                           "--windows", "1", "--samples", "2", "-o", str(folder / "page.md"), *map(str, words)],
                          cwd=ROOT, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


def rows_of(page):
    """The table: a list of cells for each row, the header first."""
    lines = [line for line in page.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_every_setting_of_the_repository_gives_a_row(tmp_path):
    (tmp_path / "valid.txt").write_text((STORY * 8 + "<|book|>\n") * 2)
    code, err = run(tmp_path, "--corpus", tmp_path)
    assert code == 0, err
    page = (tmp_path / "page.md").read_text()
    settings = results.read_list(ROOT / "configs/results.txt")
    header, *rows = rows_of(page)
    assert [row[0] for row in rows] == [name for name, _ in settings]
    assert all(len(row) == len(header) for row in rows)
    for said in ("2 questions at each length", "1 of 160 tokens", "1 of 128 tokens", "page.svg",
                 "--kv-window 32 --kv-shards 1", results.weights_of(MODEL), *(f"`{words}`" for _, words in settings)):
        assert said in page, said
    first = dict(zip(header, rows[0]))
    assert first["difference, %"] == "-" and first["pages read"] == "" and first["read B/step (of full)"].endswith("(1.000)")
    topk = dict(zip(header, next(row for row in rows if row[0] == "topk 1/4")))
    assert 0 < float(topk["pages read"]) < 1 and 0 < float(topk["certificate"]) <= 1
    assert re.fullmatch(r"[\d,]+ \(0\.\d+\)", topk["read B/step (of full)"])
    svg = ET.parse(tmp_path / "page.svg").getroot()
    labels = [t.text for t in svg.iter("{http://www.w3.org/2000/svg}text") if t.get("class") == "label"]
    assert sorted(labels) == sorted(name for name, _ in settings)


def test_without_a_text_the_questions_run_alone(tmp_path):
    settings = tmp_path / "list.txt"
    settings.write_text("all: default\n# no row\n\nfew: routing=topk,routing-k=0.25\n")
    code, err = run(tmp_path, "--settings", settings)
    assert code == 0, err
    page = (tmp_path / "page.md").read_text()
    header, *rows = rows_of(page)
    assert [row[0] for row in rows] == ["all", "few"] and not any("NLL" in title for title in header)
    assert "No text was given" in page and "right answers" in (tmp_path / "page.svg").read_text()


@pytest.mark.parametrize("text,named", [
    ("", "no settings"), ("full default\n", "line 1 is not"), ("a: default\na: default\n", "line 2: a is there"),
    ("a: default;default\n", "line 1 is not"), (": default\n", "line 1 is not"), ("a:\n", "line 1 is not")])
def test_a_broken_list_is_refused_by_line(tmp_path, text, named):
    (tmp_path / "list.txt").write_text(text)
    code, err = run(tmp_path, "--settings", tmp_path / "list.txt")
    assert code == 1 and named in err and "Traceback" not in err
    assert not (tmp_path / "page.md").exists()


def test_a_setting_that_pikv_refuses_leaves_no_page(tmp_path):
    (tmp_path / "list.txt").write_text("full: default\nodd: routing=nonsense\n")
    code, err = run(tmp_path, "--settings", tmp_path / "list.txt")
    assert code == 2 and "config 2" in err and not (tmp_path / "page.md").exists()


def test_a_folder_without_a_text_is_refused(tmp_path):
    code, err = run(tmp_path, "--corpus", tmp_path / "nowhere")
    assert code == 1 and "valid.txt" in err and "Traceback" not in err


def measured_row(config, nll, difference, accuracy, routing="full"):
    return {"config": config, "resident_bytes_per_token": 1000.0, "read_bytes_per_step": 5000.0, "nll": nll,
            "nll_difference": difference, "nll_difference_ci95": None if difference is None else 0.02, "n_windows": 3,
            "n_tokens": 30, "settings": {"kv-routing": routing}, "pages_read_share": 0.25, "certificate_mean": 0.5,
            "accuracy_by_task": {"lookup": {"1024": accuracy}}, "n_samples": 10}


def test_differences_are_in_percent_of_the_first_row_and_accuracies_a_share_of_it():
    rows = [measured_row("full", 4.0, None, 0.8), measured_row("half", 4.1, 0.1, 0.4, "topk")]
    header, first, half = results.table({"text": {1024: rows}, "tasks": rows}, [1024])
    assert dict(zip(header, half)) == {
        "setting": "half", "KV B/token (of full)": "1,000 (1.000)", "read B/step (of full)": "5,000 (1.000)",
        "NLL 1024": "4.10000", "difference, %": "+2.500 ± 0.500", "look-up 1024 (of full)": "0.400 (0.500)",
        "pages read": "0.250", "certificate": "0.5000"}
    assert first[-2:] == ["", ""]


def test_one_window_has_no_interval():
    rows = [{**measured_row("full", 4.0, difference, 0.8), "n_windows": 1} for difference in (None, 0.1)]
    assert results.difference_cell(rows[1], rows[0]) == "+2.500"


def test_a_full_cache_that_knows_nothing_has_no_share():
    rows = [measured_row("full", 4.0, None, 0.0), measured_row("half", 4.1, 0.1, 0.0)]
    table = results.table({"text": {1024: rows}, "tasks": rows}, [1024])
    assert table[2][5] == "0.000 (-)"


def test_the_best_are_those_that_lose_least_within_the_limits():
    rows = [measured_row("full", 4.0, None, 0.8),
            {**measured_row("forgets", 4.0, 0.01, 0.7), "resident_bytes_per_token": 250.0},
            {**measured_row("good", 4.0, 0.02, 0.8), "resident_bytes_per_token": 250.0},
            {**measured_row("better", 4.0, 0.01, 0.77), "resident_bytes_per_token": 333.0},
            {**measured_row("loses", 4.0, 0.05, 0.8), "resident_bytes_per_token": 200.0}]
    measured = {"text": {1024: rows}, "tasks": rows}
    assert results.best_at(measured, [1024], 3) == "- 3x: better, 3.0x, NLL +0.25 %, look-up 0.770 at 1024"
    assert results.best_at(measured, [1024], 4) == "- 4x: good, 4.0x, NLL +0.50 %, look-up 0.800 at 1024"
    assert results.best_at(measured, [1024], 5) == (
        "- 5x: none within these limits; least is lost by loses, 5.0x, NLL +1.25 %, look-up 0.800 at 1024")
    assert results.best_at(measured, [1024], 8) == (
        "- 8x: not reached; the smallest is loses, 5.0x, NLL +1.25 %, look-up 0.800 at 1024")


def test_the_text_is_read_plain_or_compressed_without_what_parts_books(tmp_path):
    text = "One line.\n<|book|>\nAnother.\n"
    with lzma.open(tmp_path / "valid.txt.xz", "wt") as file:
        file.write(text)
    assert results.read_text(tmp_path) == "One line.\nAnother.\n"
    (tmp_path / "valid.txt").write_text("Plain.\n")
    assert results.read_text(tmp_path) == "Plain.\n"


def test_the_list_is_what_eval_takes():
    """128 rows at most, and the first one changes nothing."""
    settings = results.read_list(ROOT / "configs/results.txt")
    assert len(settings) <= 128 and settings[0][1] == "default"
