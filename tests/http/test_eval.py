"""`pikv eval`: the command line, its two reports, and that it measures what the API shows.

Nothing here says how good a model is: the default model may be trained anew at any time.
"""

import itertools
import json
import math
import os
import pty
import re
import shlex
import signal
import subprocess
import sys

import pytest

from server import BINARY, ROOT, SLOWNESS, clean_environment, limit, run_command, wait_until

MODEL = ROOT / "models/storyteller"
GOLDEN = ROOT / "tests/golden/mixtral-gqa-bf16"
STORY = ("The old king looked at the sea and said that it was dark. His daughter went to the river and found it "
         "cold. She thought of the hill and the quiet day, and of the white house by the road, where a little bird "
         "sat in the tree. Then she came home from the wood, which was green, and walked past the mill. ")


@pytest.fixture
def story(tmp_path):
    file = tmp_path / "story.txt"
    file.write_text(STORY * 3)
    return file


def evaluate(*words, to, code=0):
    """The rows of a run, as JSON has them."""
    got, out, err = run_command("eval", *words, "--json", to, seconds=120)
    assert got == code, err
    return json.loads(to.read_text()), out


# ---- what is measured ----


def windows_of(server, text, size):
    """Token ids in windows of `size`, by the protocol: without BOS, the last one at least 8 long."""
    ids = server.tokenize(text, special=False)
    pieces = [ids[i:i + size] for i in range(0, len(ids), size)]
    return [p for p in pieces if len(p) >= 8]


def test_the_api_and_the_command_give_the_same_nll(server, story, tmp_path):
    size = 32
    bos = server.tokenize("", special=True)
    assert len(bos) == 1
    scored = []
    for window in windows_of(server, STORY * 3, size):
        reply = server.complete(bos + window, max_tokens=0, echo=True, logprobs=0)
        values = reply["choices"][0]["logprobs"]["token_logprobs"]
        assert len(values) == 1 + len(window)
        scored += values[1 + len(window) // 2:]
    rows, _ = evaluate("--text", story, "--window", size, to=tmp_path / "out.json")
    assert rows[0]["n_tokens"] == len(scored)
    assert rows[0]["nll"] == pytest.approx(-sum(scored) / len(scored), rel=1e-6)


def test_a_text_gives_nll_perplexity_and_bits_per_byte(story, tmp_path):
    (row,), out = evaluate("--text", story, "--window", 16, "--batch", 3, to=tmp_path / "out.json")
    assert row["perplexity"] == pytest.approx(math.exp(row["nll"]))
    nats = row["nll"] * row["n_tokens"]
    assert row["bits_per_byte"] == pytest.approx(nats / math.log(2) / row["n_bytes"])
    assert row["config"] == "default" and row["window"] == 16 and row["is_cut_short"] is False
    for unknown in ("accuracy", "accuracy_by_task", "seed", "nll_difference", "nll_difference_ci95",
                    "top1_agreement", "distance"):
        assert row[unknown] is None
    assert row["settings"]["kv-page-tokens"] == 32
    for said in (f"{row['nll']:.5f}", f"{row['perplexity']:.3f}", f"{row['bits_per_byte']:.4f}", "BOS",
                 f"{row['n_windows']} windows of at most 16 tokens", "second half", "3 sequences at once",
                 f"{row['n_tokens']} tokens"):
        assert said in out, said


def test_the_batch_and_the_chunks_change_no_result(story, tmp_path):
    words = ("--text", story, "--window", 48, "--max-windows", 3)
    (a,), _ = evaluate(*words, to=tmp_path / "a.json")
    (b,), _ = evaluate(*words, "--batch", 1, "--max-num-batched-tokens", 7, to=tmp_path / "b.json")
    assert a["nll"] == b["nll"] and a["n_tokens"] == b["n_tokens"] == 3 * 24


def test_equal_configs_give_equal_rows_and_types_their_bytes(story, tmp_path):
    rows, out = evaluate("--text", story, "--window", 64, "--kv-cache-dtype", "bf16", "--compare",
                         "default; ;cache-dtype=f32;kv-cache-dtype=f32, kv_page_tokens = 16",
                         to=tmp_path / "out.json")
    first, same, wide, small = rows
    assert [r["config"] for r in rows[:3]] == ["default", "default", "cache-dtype=f32"]
    for key in ("nll", "n_tokens", "resident_bytes_per_token", "read_bytes_per_step"):
        assert same[key] == first[key], key
    assert first["nll_difference"] is None
    assert same["nll_difference"] == 0 and same["nll_difference_ci95"] == 0
    assert wide["nll_difference"] == pytest.approx(wide["nll"] - first["nll"], abs=1e-9)
    assert wide["read_bytes_per_step"] == 2 * first["read_bytes_per_step"]
    assert 1.5 < wide["resident_bytes_per_token"] / first["resident_bytes_per_token"] <= 2.001
    assert small["settings"]["kv-page-tokens"] == 16 and small["settings"]["kv-cache-dtype"] == "f32"
    assert first["settings"]["kv-cache-dtype"] == "bf16"
    assert len([line for line in out.splitlines() if re.match(r" +\d+  +\d", line)]) == 4


def test_what_routing_leaves_unread_is_reported(story, tmp_path):
    rows, out = evaluate("--text", story, "--window", 128, "--kv-window", 0, "--kv-page-tokens", 8, "--compare",
                         "default;kv-routing=topk,kv-routing-k=0.25", to=tmp_path / "out.json")
    full, topk = rows
    assert full["pages_read_share"] == 1 and full["certificate_mean"] == 0
    assert 0.25 <= topk["pages_read_share"] < 0.5 and 0 < topk["certificate_mean"] <= 1
    assert topk["read_bytes_per_step"] < full["read_bytes_per_step"]
    assert "pages read" in out and "certificate" in out and f"{topk['certificate_mean']:.4f}" in out


def test_tasks_are_counted_by_task_and_context(tmp_path):
    words = ("--tasks", "lookup,count", "--context", "128,192", "--samples", 5)
    (row,), out = evaluate(*words, "--seed", 3, to=tmp_path / "a.json")
    shares = row["accuracy_by_task"]
    assert {task: list(by) for task, by in shares.items()} == {"lookup": ["128", "192"], "count": ["128", "192"]}
    cells = [share for by in shares.values() for share in by.values()]
    assert all(share * 5 == pytest.approx(round(share * 5)) for share in cells)
    assert row["accuracy"] == pytest.approx(sum(cells) / 4)
    assert row["n_samples"] == 20 and row["seed"] == 3 and row["nll"] is None and row["window"] is None
    for said in ("lookup, count", "context 128, 192", "5 samples each, seed 3", "exact match"):
        assert said in out, said
    (again,), _ = evaluate(*words, "--seed", 3, to=tmp_path / "b.json")
    assert again["accuracy_by_task"] == shares and again["distance_mean"] == row["distance_mean"]


def test_a_distance_is_met(tmp_path):
    (row,), _ = evaluate("--tasks", "lookup", "--context", 256, "--samples", 4, "--distance", 120,
                         to=tmp_path / "out.json")
    assert row["distance"] == 120 and 120 <= row["distance_mean"] <= 150


def test_stored_logits_are_compared_without_a_tokenizer(tmp_path):
    words = (GOLDEN, "--against", GOLDEN / "reference.safetensors", "--compare", "kv-cache-dtype=f32;default")
    rows, out = evaluate(*words, to=tmp_path / "out.json")
    exact, rounded = rows
    assert exact["relative_error_max"] < 1e-4 and exact["top1_agreement"] == 1
    assert 0 < exact["relative_error_mean"] <= exact["relative_error_max"] < rounded["relative_error_max"]
    assert exact["nll"] is None and exact["accuracy"] is None and exact["tokens_per_s"] is None
    assert "reference.safetensors" in out and "top-1" in out


def test_text_and_tasks_go_together(story, tmp_path):
    (row,), out = evaluate("--text", story, "--window", 64, "--tasks", "multi", "--context", 128,
                           "--samples", 2, to=tmp_path / "out.json")
    assert row["nll"] > 0 and row["accuracy"] is not None and row["n_samples"] == 2
    assert "nll" in out and "multi" in out


# ---- what is refused ----


@pytest.mark.parametrize("words,named", [
    ((), "--text FILE, --tasks LIST or --against FILE"),
    (("--text", "README.md", "--context", "512"), "context: it is for --tasks"),
    (("--tasks", "lookup,dance"), '"dance" is none of lookup, multi, chain, overwrite, count'),
    (("--tasks", "lookup,lookup"), "lookup is named twice"),
    (("--tasks", ""), "tasks"),
    (("--tasks", "lookup", "--context", "512,x"), '"x" is not a number'),
    (("--tasks", "lookup", "--context", "512,"), '"" is not a number'),
    (("--tasks", "lookup", "--context", "1"), "context: 1 is outside [128,"),
    (("--tasks", "lookup", "--context", "512,512"), "512 is named twice"),
    (("--tasks", "lookup", "--context", "4096"), "context: 4096 is beyond the model's 2048 positions"),
    (("--tasks", "lookup", "--samples", "0"), "samples: 0 is outside"),
    (("--tasks", "lookup,count", "--distance", "100"), "distance: the questions of count"),
    (("--tasks", "lookup", "--distance", "5000"), "distance"),
    (("--text", "README.md", "--distance", "100"), "distance"),
    (("--text", "README.md", "--window", "4096"), "window: 4096 is beyond the model's 2048 positions"),
    (("--text", "README.md", "--window", "7"), "window: 7 is outside [8,"),
    (("--text", "README.md", "--batch", "8", "--max-num-batched-tokens", "4"), "batch: 8 is beyond"),
    (("--text", "README.md", "--kv-routing", "nonsense"), "kv-routing"),
    (("--text", "README.md", "--enable-prefix-caching"), "enable-prefix-caching"),
    (("--text", "README.md", "--compare", "default;kv-page-tokens=3"),
     "compare: config 2: kv-page-tokens: 3 is outside [4, 64]"),
    (("--text", "README.md", "--compare", "page-tokens=65"), "config 1: kv-page-tokens: 65 is outside [4, 64]"),
    (("--text", "README.md", "--compare", "kv-cache-dtype=f8"), "config 1: kv-cache-dtype"),
    (("--text", "README.md", "--compare", "kv-page-token=8"), 'did you mean "kv-page-tokens"'),
    (("--text", "README.md", "--compare", "kv-window"), 'config 1: "kv-window" is not name=value'),
    (("--text", "README.md", "--compare", "kv-window=1,"), 'config 1: "" is not name=value'),
    (("--text", "README.md", "--compare", "routing=one,two,window=8"), "one,two"),
    (("--text", "README.md", "--compare", "kv-window=1,window=2"), "config 1: \"window=2\" is set for the second"),
    (("--text", "README.md", "--compare", ";;enable-prefix-caching=on"), "config 3: enable-prefix-caching"),
    (("--text", "README.md", "--compare", "default;kv-routing=nonsense"), "config 2: "),
    (("--text", "README.md", "--compare", "default;kv-sink=64"), "config 2: kv-sink"),
    (("--text", "README.md", "--compare", ";" * 128), "more than 128 configs"),
    (("--text", "README.md", "--temperature", "1"), "temperature"),
])
def test_a_bad_setting_is_named_before_anything_runs(words, named):
    code, out, err = run_command("eval", *words)
    assert code == 2 and out == "", err
    assert named in err and "%" not in err, err


@pytest.mark.parametrize("content,named", [
    (None, "missing.txt"), (b"", "tokens"), (b"one", "tokens"), (b"\xff\xfe" * 100, "UTF-8")])
def test_a_bad_text_is_refused(tmp_path, content, named):
    file = tmp_path / ("missing.txt" if content is None else "text.txt")
    if content is not None:
        file.write_bytes(content)
    code, out, err = run_command("eval", "--text", file)
    assert code == 1 and out == "" and named in err, err


def test_a_bad_reference_is_refused(tmp_path):
    for path in (tmp_path / "missing.safetensors", MODEL / "model.safetensors"):
        code, out, err = run_command("eval", GOLDEN, "--against", path)
        assert code == 1 and out == "" and path.name in err, err


# ---- where it goes ----


def test_a_json_file_that_cannot_be_written_is_found_first(story, tmp_path):
    for path in (tmp_path / "no folder/out.json", tmp_path, story / "out.json"):
        code, out, err = run_command("eval", "--text", story, "--json", path)
        assert code == 1 and out == "" and str(path) in err, err
        assert "loaded" not in err, "the run has begun"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["story.txt"]


def test_a_full_disk_is_an_error(story):
    code, out, err = run_command("eval", "--text", story, "--window", 64, "--json", "/dev/full", seconds=60)
    assert code == 1 and "/dev/full: No space left" in err and "nll" in out
    with open("/dev/full", "w", encoding="utf-8") as full:
        done = subprocess.run([BINARY, "eval", "--text", str(story), "--window", "64"], stdout=full, cwd=ROOT,
                              stderr=subprocess.PIPE, text=True, env=clean_environment(), check=False,
                              timeout=limit(60))
    assert done.returncode == 1 and "standard output" in done.stderr


def test_a_report_replaces_the_old_one_behind_a_link(story, tmp_path):
    (tmp_path / "to").mkdir()
    file, link = tmp_path / "to/real.json", tmp_path / "link.json"
    file.write_text("old")
    file.chmod(0o640)
    link.symlink_to(file)
    evaluate("--text", story, "--window", 64, to=link)
    assert link.is_symlink() and json.loads(file.read_text())[0]["n_windows"] > 0
    assert file.stat().st_mode & 0o777 == 0o640
    assert [p.name for p in (tmp_path / "to").iterdir()] == ["real.json"]


def test_reports_go_to_stdout_and_progress_elsewhere_in_tenths(story):
    code, out, err = run_command("eval", "--text", story, "--window", 16, "--batch", 1, seconds=60)
    assert code == 0 and "%" not in out
    shown = [int(n) for n in re.findall(r"^pikv eval: +(\d+) %", err, re.M)]
    assert shown[-1] == 100 and len(shown) <= 10
    assert all(b // 10 > a // 10 for a, b in itertools.pairwise(shown)), shown


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_prints_what_is_finished(tmp_path, number):
    text, file = tmp_path / "long.txt", tmp_path / "out.json"
    text.write_text(STORY * 400)
    with open(tmp_path / "err", "w+", encoding="utf-8") as err:
        process = subprocess.Popen([BINARY, "eval", "--text", str(text), "--window", "512", "--batch", "2",
                                    "--compare", "default;kv-cache-dtype=f32", "--json", str(file)], cwd=ROOT,
                                   stdout=subprocess.PIPE, stderr=err, text=True, env=clean_environment())
        try:
            wait_until(lambda: " %," in (tmp_path / "err").read_text(), 60, "a tenth")
            process.send_signal(number)
            out, _ = process.communicate(timeout=limit(60))
        finally:
            process.kill()
    assert process.returncode == 130
    assert "Cut short: 1 of 2 rows are shown" in out
    (row,) = json.loads(file.read_text())
    assert row["is_cut_short"] is True and row["n_windows"] > 0 and row["nll"] > 0
    assert f"{row['nll']:.5f}" in out and re.search(r"^  1\*", out, re.M)


def test_a_row_that_fails_leaves_those_before_it(tmp_path):
    small = "kv-cache-memory-bytes=300k,kv-page-tokens=4,kv-window=0"
    long = tmp_path / "long.txt"
    long.write_text(STORY * 12)
    code, out, err = run_command("eval", "--text", long, "--compare", f"default;{small};default", "--json",
                                 tmp_path / "out.json", seconds=60)
    assert code == 1 and "compare: config 2: kv-cache-memory-bytes: 262144 cannot hold" in err, err
    (row,) = json.loads((tmp_path / "out.json").read_text())
    assert row["is_cut_short"] is False and f"{row['nll']:.5f}" in out
    assert "Cut short: 1 of 3 rows are shown" in out


def test_a_terminal_sees_one_line_that_is_drawn_over(story):
    ours, theirs = pty.openpty()
    process = subprocess.Popen([BINARY, "eval", "--text", str(story), "--window", "16", "--batch", "1"], cwd=ROOT,
                               stdout=subprocess.PIPE, stderr=theirs, env=clean_environment())
    os.close(theirs)
    seen = b""
    try:
        while chunk := os.read(ours, 4096):
            seen += chunk
    except OSError:  # how Linux says that the other end is closed
        pass
    os.close(ours)
    out, _ = process.communicate(timeout=limit(60))
    assert process.returncode == 0 and b"nll" in out and b"\r" not in out
    drawn = seen.decode().split("\r")
    assert any(re.match(r"\[[#.]{20}\] +\d+ %", line) for line in drawn) and drawn[-1] == ""
    assert all(len(line) < 80 for line in drawn)


def test_an_ignored_interrupt_stays_ignored(story):
    def ignore():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    process = subprocess.Popen([BINARY, "eval", "--text", str(story), "--window", "16", "--batch", "1"], cwd=ROOT,
                               stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=clean_environment(),
                               preexec_fn=ignore)
    while process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(0.02)
        except subprocess.TimeoutExpired:
            pass
    process.stdout.close()
    assert process.returncode == 0


def test_help_lists_the_tasks():
    code, out, err = run_command("eval", "--help")
    assert code == 0 and err == ""
    for word in ("--compare", "--distance", "lookup", "overwrite", "Ctrl-C"):
        assert word in out


# ---- what docs/quality.md says ----


@pytest.mark.skipif(SLOWNESS > 1, reason="minutes under a sanitizer, of what other tests run there")
def test_the_commands_of_the_document_run(tmp_path):
    lines = (ROOT / "docs/quality.md").read_text().replace("\\\n", " ").splitlines()
    commands = [shlex.split(line) for line in lines
                if line.startswith(("build/release/pikv eval", "python3 tools/plot_eval.py"))]
    assert len(commands) >= 5
    for name in ("models", "README.md", "tools", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)
    programs = {"build/release/pikv": BINARY, "python3": sys.executable}
    for words in commands:
        words[0] = programs[words[0]]
        done = subprocess.run(words, cwd=tmp_path, env=clean_environment(), capture_output=True, text=True,
                              timeout=limit(120), check=False)
        assert done.returncode == 0, (words, done.stderr)
    assert any(os.path.getsize(p) > 0 for p in tmp_path.glob("*.svg"))
