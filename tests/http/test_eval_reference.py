"""`pikv eval` beside transformers, and `make eval`'s script.

tests/golden/eval-text/storyteller.json is what tools/score_text.py wrote for the default model's weights; training
them anew means writing it anew (tests/golden/README.md).
"""

import json
import lzma
import subprocess

import pytest

from server import BINARY, ROOT, clean_environment, limit, run_command

MODEL = ROOT / "models/storyteller"
TEXT = ROOT / "tests/golden/eval-text/text.txt"
REFERENCE = json.loads((ROOT / "tests/golden/eval-text/storyteller.json").read_text())


@pytest.mark.parametrize("cache_type", ["f32", "bf16"])
@pytest.mark.parametrize("reference", REFERENCE, ids=lambda r: f"window-{r['window']}")
def test_the_scores_of_a_text_are_those_of_transformers(reference, cache_type, tmp_path):
    to = tmp_path / "out.json"
    code, _, err = run_command("eval", MODEL, "--text", TEXT, "--window", reference["window"], "--kv-cache-dtype",
                               cache_type, "--json", to, seconds=120)
    assert code == 0, err
    (row,) = json.loads(to.read_text())
    for count in ("n_tokens", "n_bytes", "n_windows"):
        assert row[count] == reference[count]
    close = 2e-5 if cache_type == "f32" else 1e-3
    for score in ("nll", "perplexity", "bits_per_byte"):
        assert row[score] == pytest.approx(reference[score], rel=close * (10 if score == "perplexity" else 1))


def run_script(*words):
    done = subprocess.run([ROOT / "tools/eval.sh", BINARY, MODEL, *words], capture_output=True, text=True, timeout=limit(100),
                          env=clean_environment() | {"SAMPLES": "1", "CONTEXTS": "256"})
    return done.returncode, done.stdout, done.stderr


def test_without_a_corpus_the_script_runs_the_tasks_alone_and_says_so():
    code, out, err = run_script()
    assert code == 0, err
    assert "no CORPUS" in out and "tasks run alone" in out
    assert "perplexity" not in out
    for task in ("lookup", "multi", "chain", "overwrite", "count"):
        assert task in out


def test_with_a_corpus_the_script_scores_its_text_without_the_lines_between_books(tmp_path):
    story = TEXT.read_text()
    with lzma.open(tmp_path / "valid.txt.xz", "wt") as f:
        f.write(story + "<|book|>\n" + story)
    code, out, err = run_script(tmp_path)
    assert code == 0, err
    (tmp_path / "twice.txt").write_text(story + story)
    same, expected, err = run_command("eval", MODEL, "--text", tmp_path / "twice.txt", "--window", 512, seconds=120)
    assert same == 0, err
    (nll,) = [line for line in expected.splitlines() if line.startswith("nll ")]
    assert nll in out


def test_a_corpus_without_held_out_text_is_an_error(tmp_path):
    code, _, err = run_script(tmp_path)
    assert code == 1
    assert "valid.txt" in err
