"""GET /metrics: true numbers in a form that Prometheus accepts."""

import shutil
import subprocess
import time

import requests

from server import Server, limit
from wire import Connection, completion_bytes, sse_events

STORY = "Once upon a time"
N_LAYERS, TOP_K = 4, 2  # of models/storyteller


def scrape(server):
    return requests.get(server.url + "/metrics", timeout=limit(20)).text


def test_promtool_finds_nothing_to_complain_about(server):
    server.text(STORY)
    tool = shutil.which("promtool")
    assert tool, "promtool (Debian: prometheus) is not installed"
    done = subprocess.run([tool, "check", "metrics"], input=scrape(server), text=True, timeout=60,
                          capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_promtool_accepts_any_model_name():
    with Server("--served-model-name", 'odd"name\\ü') as server:
        done = subprocess.run(["promtool", "check", "metrics"], input=scrape(server), text=True,
                              timeout=60, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def gain(before, after, name, **labels):
    return after.sum(name, **labels) - before.sum(name, **labels)


def test_counters_are_the_sums_of_what_requests_were_told(server):
    server.wait_idle()
    before = server.metrics()
    replies = [server.complete(STORY, max_tokens=7),
               server.complete([[5, 6, 7], [8] * 100], n=1, max_tokens=9),
               server.complete("A repeated prompt " * 20, max_tokens=3),
               server.complete("A repeated prompt " * 20, max_tokens=3),
               server.complete(STORY, max_tokens=50, logit_bias={"2": 100})]
    usages = [r["usage"] for r in replies]
    with Connection(server.port) as client:
        client.send(completion_bytes(STORY, max_tokens=11, stream=True,
                                     stream_options={"include_usage": True}))
        usages.append(sse_events(client.read_reply().body)[-1]["usage"])
    server.wait_idle()
    after = server.metrics()
    n_output = sum(u["completion_tokens"] for u in usages)
    assert gain(before, after, "generation_tokens_total") == n_output
    assert gain(before, after, "prompt_tokens_total") == sum(u["prompt_tokens"] for u in usages)
    n_cached = sum(u["prompt_tokens_details"]["cached_tokens"] for u in usages)
    assert n_cached > 0
    assert gain(before, after, "prefix_cache_hit_tokens_total") == n_cached
    assert gain(before, after, "requests_total", outcome="length") == 6
    assert gain(before, after, "requests_total", outcome="stop") == 1
    assert gain(before, after, "request_generation_tokens_sum") == n_output
    for name in ("time_to_first_token_seconds", "e2e_request_latency_seconds",
                 "request_queue_time_seconds", "request_prompt_tokens"):
        assert gain(before, after, name + "_count") == 7, name


def test_experts_get_top_k_times_layers_of_every_token(server):
    before = server.metrics()
    server.complete([STORY, "The wolf"], n=2, max_tokens=40, temperature=1)
    server.wait_idle()
    after = server.metrics()
    n_tokens = gain(before, after, "kv_tokens_appended_total")
    assert n_tokens > 80
    assert gain(before, after, "moe_expert_tokens_total") == n_tokens * TOP_K * N_LAYERS
    for layer in range(N_LAYERS):
        by_layer = gain(before, after, "moe_expert_tokens_total", layer=str(layer))
        assert by_layer == n_tokens * TOP_K
        assert 1 <= after.get("moe_layer_load_imbalance_ratio", layer=str(layer)) <= 8


def test_every_token_of_a_new_prompt_goes_through_the_model_once(server):
    before = server.metrics()
    usage = server.complete([901 + 3 * i for i in range(50)], max_tokens=20)["usage"]
    server.wait_idle()
    after = server.metrics()
    assert usage["prompt_tokens_details"]["cached_tokens"] == 0
    assert gain(before, after, "kv_tokens_appended_total") == 50 + usage["completion_tokens"] - 1


def test_buckets_grow_and_end_in_the_count(server):
    values = server.metrics().values
    edges = {}
    for (name, labels), value in values.items():
        if name.endswith("_bucket"):
            rest = frozenset(p for p in labels if p[0] != "le")
            edges.setdefault((name[:-7], rest), []).append((float(dict(labels)["le"]), value))
    assert edges
    for (name, rest), pairs in edges.items():
        counts = [v for _, v in sorted(pairs)]
        assert counts == sorted(counts), name
        assert counts[-1] == values[name + "_count", rest]


def test_counters_never_fall_and_scrapes_change_nothing(server):
    first = server.metrics()
    server.text(STORY)
    server.wait_idle()
    second, third = server.metrics(), server.metrics()
    for (name, labels), value in first.values.items():
        if name.endswith(("_total", "_bucket", "_count")):
            assert second.values[name, labels] >= value, name
    for (name, labels), value in second.values.items():
        if name.startswith("pikv_") and name.endswith("_total"):
            assert third.values[name, labels] == value, name


def test_the_start_of_the_process_never_changes(server):
    """Alerts count its changes as restarts."""
    name = ("process_start_time_seconds", frozenset())
    started = {server.metrics().values[name] for _ in range(30) if not time.sleep(0.05)}
    assert len(started) == 1
    assert 0 <= time.time() - started.pop() < limit(600)


def test_rejections_are_counted_by_reason(server):
    before = server.metrics()
    server.post("/v1/completions", {})
    server.post("/v1/completions", {"prompt": "a", "n": 0})
    server.get("/nothing")
    server.get("/v1/completions")
    after = server.metrics()
    assert gain(before, after, "request_rejections_total", reason="bad_request") == 2
    assert gain(before, after, "request_rejections_total", reason="not_found") == 2
    assert gain(before, after, "request_rejections_total") == 4


def test_no_label_comes_from_a_client(server):
    server.post("/v1/completions", {"prompt": "a", "model": "client-model", "request_id": "client-id",
                                    "user": "client-user", "cache_salt": "client-salt"})
    server.get("/client-path")
    assert "client-" not in scrape(server)
