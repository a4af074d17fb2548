"""bench/serve_load.py, which sends and reads what `vllm bench serve` does: its numbers are those of the server."""

import json
import subprocess
import sys

import pytest

from server import ROOT, limit


def bench(server, tmp_path, *words):
    """(exit code, numbers, what it said)"""
    path = tmp_path / "load.json"
    done = subprocess.run([sys.executable, ROOT / "bench/serve_load.py", "--base-url", server.url, "--json", path,
                           *map(str, words)], capture_output=True, text=True, timeout=limit(120), check=False)
    assert path.exists(), done.stderr
    return done.returncode, json.loads(path.read_text()), done.stdout


@pytest.mark.parametrize("words", [["--max-concurrency", 4], ["--request-rate", 100]])
def test_the_numbers_are_those_of_the_server(server, tmp_path, words):
    before = server.metrics()
    code, got, said = bench(server, tmp_path, "--num-prompts", 12, "--random-input-len", 40, "--model", "teller",
                            "--random-output-len", 16, "--ignore-eos", *words)
    after = server.metrics()
    assert code == 0 and got["completed"] == 12 and got["failed"] == 0 and got["errors"] == []
    assert got["total_input_tokens"] == 12 * 40 == \
        after.get("prompt_tokens_total") - before.get("prompt_tokens_total")
    assert got["total_output_tokens"] == 12 * 16 == \
        after.get("generation_tokens_total") - before.get("generation_tokens_total")
    assert 0 < got["mean_ttft_ms"] <= got["p99_ttft_ms"] <= got["duration"] * 1e3
    assert 0 < got["median_tpot_ms"] < got["median_e2el_ms"]
    assert got["output_throughput"] == pytest.approx(12 * 16 / got["duration"])
    assert "mean ttft ms" in said


def test_refusals_are_counted_and_fail(server, tmp_path):
    code, got, _ = bench(server, tmp_path, "--num-prompts", 2, "--random-input-len", 4000)
    assert code == 1 and got["failed"] == 2 and "context" in got["errors"][0]
    code, got, _ = bench(server, tmp_path, "--num-prompts", 1, "--extra-body", '{"kv": {"compression": "int4"}}')
    assert code == 1 and "kv-request-methods" in got["errors"][0]
