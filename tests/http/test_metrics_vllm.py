"""--metrics-compat vllm: what dashboards and autoscalers made for vLLM read, and that it agrees with our own."""

import subprocess
import threading

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from server import Server, limit, run_command

STORY = "Once upon a time"
LABELS = {"model_name": "storyteller", "engine": "0"}

# (name, type, labels beside model_name and engine), as vLLM prints them.
FAMILIES = [
    ("num_requests_running", "gauge", set()),
    ("num_requests_waiting", "gauge", set()),
    ("num_requests_waiting_by_reason", "gauge", {"reason"}),
    ("engine_sleep_state", "gauge", {"sleep_state"}),
    ("kv_cache_usage_perc", "gauge", set()),
    ("gpu_cache_usage_perc", "gauge", set()),
    ("cache_config_info", "gauge",
     {"block_size", "cache_dtype", "enable_prefix_caching", "num_gpu_blocks"}),
    ("prefix_cache_queries", "counter", set()),
    ("prefix_cache_hits", "counter", set()),
    ("num_preemptions", "counter", set()),
    ("prompt_tokens", "counter", set()),
    ("generation_tokens", "counter", set()),
    ("prompt_tokens_by_source", "counter", {"source"}),
    ("request_success", "counter", {"finished_reason"}),
    ("time_to_first_token_seconds", "histogram", {"le"}),
    ("inter_token_latency_seconds", "histogram", {"le"}),
    ("time_per_output_token_seconds", "histogram", {"le"}),
    ("request_time_per_output_token_seconds", "histogram", {"le"}),
    ("e2e_request_latency_seconds", "histogram", {"le"}),
    ("request_queue_time_seconds", "histogram", {"le"}),
    ("request_prefill_time_seconds", "histogram", {"le"}),
    ("request_decode_time_seconds", "histogram", {"le"}),
    ("request_inference_time_seconds", "histogram", {"le"}),
    ("request_prompt_tokens", "histogram", {"le"}),
    ("request_generation_tokens", "histogram", {"le"}),
    ("request_prefill_kv_computed_tokens", "histogram", {"le"}),
    ("request_params_max_tokens", "histogram", {"le"}),
    ("request_params_n", "histogram", {"le"}),
    ("iteration_tokens_total", "histogram", {"le"}),
]

# vLLM's buckets.
TTFT = [.001, .005, .01, .02, .04, .06, .08, .1, .25, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560]
TOKEN = [.01, .025, .05, .075, .1, .15, .2, .3, .4, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80]
REQUEST = [.3, .5, .8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680]
LENGTH = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000]  # the model's context has 2048 positions
EDGES = {"time_to_first_token_seconds": TTFT, "inter_token_latency_seconds": TOKEN,
         "time_per_output_token_seconds": TOKEN, "request_time_per_output_token_seconds": TOKEN,
         "e2e_request_latency_seconds": REQUEST, "request_queue_time_seconds": REQUEST,
         "request_prefill_time_seconds": REQUEST, "request_decode_time_seconds": REQUEST,
         "request_inference_time_seconds": REQUEST, "request_prompt_tokens": LENGTH,
         "request_generation_tokens": LENGTH, "request_prefill_kv_computed_tokens": LENGTH,
         "request_params_max_tokens": LENGTH, "request_params_n": [1, 2, 5, 10, 20],
         "iteration_tokens_total": [1] + [8 << i for i in range(12)]}

# Theirs and ours that count the same thing: sums over all samples of one scrape are equal.
SAME = [
    ("num_requests_running", "requests_running"),
    ("prompt_tokens_total", "prompt_tokens_total"),
    ("prompt_tokens_by_source_total", "prompt_tokens_total"),
    ("generation_tokens_total", "generation_tokens_total"),
    ("num_preemptions_total", "preemptions_total"),
    ("request_success_total", "requests_total"),
    ("prefix_cache_queries_total", "prefix_cache_query_tokens_total"),
    ("prefix_cache_hits_total", "prefix_cache_hit_tokens_total"),
    ("iteration_tokens_total_sum", "batch_tokens_sum"),
    ("iteration_tokens_total_count", "batch_tokens_count"),
    ("time_per_output_token_seconds_sum", "inter_token_latency_seconds_sum"),
    ("request_prefill_kv_computed_tokens_sum", "request_prefill_computed_tokens_sum"),
] + [(f"{name}_{part}", f"{name}_{part}") for part in ("sum", "count") for name in (
    "time_to_first_token_seconds", "inter_token_latency_seconds", "e2e_request_latency_seconds",
    "request_queue_time_seconds", "request_prefill_time_seconds", "request_decode_time_seconds",
    "request_inference_time_seconds", "request_time_per_output_token_seconds",
    "request_prompt_tokens", "request_generation_tokens", "request_params_max_tokens",
    "request_params_n")]


class Scrape:
    """One page, as the Python client of Prometheus reads it."""

    def __init__(self, server):
        self.text = requests.get(server.monitor_url + "/metrics", timeout=limit(20)).text
        self.families = {f.name: f for f in text_string_to_metric_families(self.text)}

    def vllm(self, name):
        return self.families["vllm:" + name]

    def sum(self, name, **labels):
        found = [s.value for f in self.families.values() for s in f.samples
                 if s.name == name and labels.items() <= s.labels.items()]
        assert found, name
        return sum(found)


@pytest.fixture(scope="module")
def vllm_server():
    with Server("--metrics-compat", "vllm") as server:
        server.complete([STORY, "The wolf"], n=3, max_tokens=30, temperature=1)
        server.complete("A repeated prompt " * 20, max_tokens=3)
        server.complete("A repeated prompt " * 20, max_tokens=1)
        server.wait_idle()
        yield server


def test_it_is_a_setting_like_the_others(tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text("metrics-compat: vllm\n")
    for words, env in ((["--metrics-compat", "vllm"], {}), (["--config", str(file)], {}),
                       ([], {"PIKV_METRICS_COMPAT": "vllm"})):
        code, out, err = run_command("serve", *words, "--print-config", env=env)
        assert code == 0, err
        assert "metrics-compat: vllm" in out.replace('"', "")
    code, _, err = run_command("serve", "--metrics-compat", "tgi", "--print-config")
    assert code == 2 and "metrics-compat" in err


def test_without_the_flag_nothing_of_it_is_shown(server):
    assert "vllm:" not in Scrape(server).text


def test_all_families_have_their_types_and_labels(vllm_server):
    page = Scrape(vllm_server)
    assert {n for n in page.families if n.startswith("vllm:")} == {"vllm:" + n for n, _, _ in FAMILIES}
    for name, kind, labels in FAMILIES:
        family = page.vllm(name)
        assert family.type == kind, name
        assert family.documentation, name
        assert {k for s in family.samples for k in s.labels} == labels | set(LABELS), name
        assert all(LABELS.items() <= s.labels.items() for s in family.samples), name


def test_buckets_have_the_edges_of_vllm(vllm_server):
    page = Scrape(vllm_server)
    assert set(EDGES) == {n for n, kind, _ in FAMILIES if kind == "histogram"}
    for name, edges in EDGES.items():
        buckets = [s for s in page.vllm(name).samples if s.name.endswith("_bucket")]
        assert [float(s.labels["le"]) for s in buckets] == edges + [float("inf")], name
        values = [s.value for s in buckets]
        assert values == sorted(values)
        assert values[-1] == page.sum(f"vllm:{name}_count") > 0, name


def test_promtool_minds_only_what_vllm_does(vllm_server):
    done = subprocess.run(["promtool", "check", "metrics"], input=Scrape(vllm_server).text, text=True,
                          timeout=60, capture_output=True, check=False)
    lines = (done.stdout + done.stderr).splitlines()
    kept = [line for line in lines if "metric names should not contain ':'" not in line]
    assert kept == ['vllm:iteration_tokens_total non-counter metrics should not have "_total" suffix']


def agree(page):
    for theirs, ours in SAME:
        assert page.sum("vllm:" + theirs) == page.sum("pikv_" + ours), (theirs, ours)
    waiting = page.sum("pikv_requests_waiting") + page.sum("pikv_requests_preempted")
    assert page.sum("vllm:num_requests_waiting") == waiting
    assert page.sum("vllm:num_requests_waiting_by_reason") == waiting
    assert page.sum("vllm:kv_cache_usage_perc") == pytest.approx(
        page.sum("pikv_kv_used_bytes") / page.sum("pikv_kv_pool_budget_bytes"), rel=1e-9)
    assert page.sum("vllm:engine_sleep_state") == page.sum("vllm:engine_sleep_state", sleep_state="awake")


def test_both_sets_of_names_say_the_same_in_one_scrape(vllm_server):
    agree(Scrape(vllm_server))


def test_they_agree_while_the_engine_counts(vllm_server):
    done = threading.Event()

    def load():
        while not done.is_set():
            vllm_server.complete([STORY, "The wolf", "A bird"], max_tokens=40, temperature=1)

    worker = threading.Thread(target=load)
    worker.start()
    try:
        first = Scrape(vllm_server)
        for _ in range(20):
            agree(Scrape(vllm_server))
        assert Scrape(vllm_server).sum("vllm:generation_tokens_total") > first.sum(
            "vllm:generation_tokens_total")
    finally:
        done.set()
        worker.join()


def test_what_requests_ask_for_is_counted(vllm_server):
    before = Scrape(vllm_server)
    usage = vllm_server.complete(["The cat", "The dog"], n=2, max_tokens=9, temperature=1)["usage"]
    vllm_server.wait_idle()
    after = Scrape(vllm_server)

    def gain(name, **labels):
        return after.sum("vllm:" + name, **labels) - before.sum("vllm:" + name, **labels)

    assert gain("request_params_n_count") == 2 and gain("request_params_n_sum") == 4
    assert gain("request_params_max_tokens_count") == 4
    assert gain("request_params_max_tokens_sum") == 36
    assert gain("generation_tokens_total") == usage["completion_tokens"]
    assert gain("request_success_total") == 4


def test_times_of_a_request_add_up(vllm_server):
    before = Scrape(vllm_server)
    for n_tokens in (1, 2, 30):
        vllm_server.complete(f"A tale of {n_tokens}", max_tokens=n_tokens, ignore_eos=True)
    vllm_server.wait_idle()
    after = Scrape(vllm_server)

    def gain(name):
        return after.sum("vllm:" + name) - before.sum("vllm:" + name)

    queue, prefill, decode, inference, e2e = (
        gain(f"{name}_seconds_sum") for name in (
            "request_queue_time", "request_prefill_time", "request_decode_time", "request_inference_time",
            "e2e_request_latency"))
    assert inference == pytest.approx(prefill + decode, rel=1e-6, abs=1e-6)
    assert gain("time_to_first_token_seconds_sum") == pytest.approx(queue + prefill, rel=1e-6, abs=1e-6)
    assert 0 < decode < inference < queue + inference <= e2e
    # One token has no distance to another; of the others each sequence counts once.
    assert gain("request_time_per_output_token_seconds_count") == 2
    assert gain("inter_token_latency_seconds_count") == 1 + 29
    assert gain("inter_token_latency_seconds_sum") == pytest.approx(decode, rel=1e-6, abs=1e-6)


def test_cached_prompts_are_told_apart(vllm_server):
    before = Scrape(vllm_server)
    prompt = [701 + 3 * i for i in range(200)]
    first = vllm_server.complete(prompt, max_tokens=4)["usage"]
    second = vllm_server.complete(prompt, max_tokens=4)["usage"]
    vllm_server.wait_idle()
    after = Scrape(vllm_server)
    cached = [u["prompt_tokens_details"]["cached_tokens"] for u in (first, second)]
    assert cached[0] == 0 and cached[1] > 0

    def gain(source):
        name = "vllm:prompt_tokens_by_source_total"
        return after.sum(name, source=source) - before.sum(name, source=source)

    assert gain("local_cache_hit") == sum(cached)
    assert gain("local_compute") == 400 - sum(cached)
    assert gain("external_kv_transfer") == 0
    name = "vllm:request_prefill_kv_computed_tokens_sum"
    assert after.sum(name) - before.sum(name) == 400 - sum(cached)


def test_the_configuration_gives_the_capacity_in_tokens(vllm_server):
    page = Scrape(vllm_server)
    labels = page.vllm("cache_config_info").samples[0].labels
    assert labels["block_size"] == "32" and labels["enable_prefix_caching"] == "True"
    assert int(labels["num_gpu_blocks"]) * 32 == page.sum("pikv_kv_capacity_tokens") > 0
