"""The real Prometheus beside a busy server: every query of a panel, a rule or an alert has data.

Two ranks and methods that leave things out, so that all parts of the cache work. The files of configs/ are used as they
are, but for the target, intervals of a second, windows of a few, and an alert's comparison, which gives 0 or 1 here
instead of hiding what is not so. A query may have to wait until its window holds two samples; then it must have a value
that is a number.
"""

import math
import socket
import subprocess
import threading
import time

import pytest
import requests
import yaml

import observe
from server import Server, limit, wait_until

WINDOW = "8s"
STORY = "The king had a daughter who was more beautiful than words can tell, and a dog. "
FLAGS = ("--metrics-compat", "vllm", "--ranks", 2, "--max-num-seqs", 6, "--max-num-batched-tokens", 96, "--kv-request-methods",
         "--kv-page-tokens", 16, "--kv-window", 16, "--kv-shards", 2, "--kv-cache-memory-bytes", "3Mi",
         "--kv-host-bytes", "512Ki", "--kv-disk-bytes", "8Mi")
METHODS = ({"routing": "topk", "routing_k": 0.5, "compression": "int4"},
           {"scheduling": "snapkv", "budget": 0.5}, {"routing": "certified", "routing_eps": 0.01}, {})


class Prometheus:
    """The program with our configuration, on a port of its own."""

    def __init__(self, folder, target):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.log = folder / "prometheus.log"
        words = ["prometheus", f"--config.file={self._configure(folder, target)}",
                 f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address=127.0.0.1:{self.port}"]
        with self.log.open("w") as out:
            self.process = subprocess.Popen(words, stdout=out, stderr=subprocess.STDOUT, cwd=folder)

    @staticmethod
    def _configure(folder, target):
        config = observe.load(observe.PROMETHEUS / "prometheus.yml")
        config["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
        job, = config["scrape_configs"]
        job["static_configs"] = [{"targets": [target]}]
        for name in config["rule_files"]:
            text = (observe.PROMETHEUS / name).read_text()
            (folder / name).write_text(observe.with_windows(text, WINDOW))
        file = folder / "prometheus.yml"
        file.write_text(yaml.safe_dump(config))
        return file

    def get(self, path, **params):
        assert self.process.poll() is None, self.log.read_text()[-4000:]
        reply = requests.get(f"http://127.0.0.1:{self.port}/api/v1/{path}", params=params, timeout=limit(20))
        assert reply.status_code == 200, (params, reply.text)
        return reply.json()["data"]

    def has_data(self, query):
        """Whether some series has a number now."""
        values = [float(sample["value"][1]) for sample in self.get("query", query=query)["result"]]
        return any(not math.isnan(v) for v in values)

    def is_ready(self):
        try:
            return requests.get(f"http://127.0.0.1:{self.port}/-/ready", timeout=limit(20)).status_code == 200
        except requests.ConnectionError:
            return False

    def is_scraping(self):
        return self.is_ready() and self.has_data('up{job="pikv"} == 1')

    def close(self):
        self.process.terminate()
        self.process.wait(limit(30))


def ask(server, number, done):
    """One client: prompts that share beginnings, and all methods in turn."""
    while not done.is_set():
        number += 1
        server.complete(f"Tale {number % 5}. " + STORY * (4 + number % 6), max_tokens=24, temperature=1,
                        kv=METHODS[number % len(METHODS)])


@pytest.fixture(scope="module", name="prometheus")
def busy_prometheus(tmp_path_factory):
    """Of a server that is busy as long as the tests run."""
    folder = tmp_path_factory.mktemp("prometheus")
    (folder / "disk").mkdir()
    done = threading.Event()
    with Server(*FLAGS, "--kv-disk-path", folder / "disk") as server:
        clients = [threading.Thread(target=ask, args=(server, i * 7, done)) for i in range(4)]
        for client in clients:
            client.start()
        prometheus = Prometheus(folder, f"127.0.0.1:{server.monitor_port}")
        try:
            wait_until(prometheus.is_scraping, 30, "a first scrape")
            yield prometheus
        finally:
            done.set()
            for client in clients:
                client.join()
            prometheus.close()


def wait_for_data(prometheus, queries, seconds=60):
    """Until each of {name: query} has had data; the load comes and goes, so not all have it at one moment."""
    assert queries
    missing = dict(queries)
    end = time.monotonic() + limit(seconds)
    while missing:
        missing = {name: query for name, query in missing.items() if not prometheus.has_data(query)}
        assert not missing or time.monotonic() < end, missing
        if missing:
            time.sleep(0.5)


def test_every_panel_has_data(prometheus):
    wait_for_data(prometheus, {
        (panel["title"], target["refId"]): observe.with_variables(
            observe.with_windows(target["expr"], WINDOW))
        for panel in observe.panels() for target in panel["targets"]})


def test_every_recording_rule_records(prometheus):
    wait_for_data(prometheus, {rule["record"]: rule["record"] for rule in observe.recordings()})


def test_every_alert_has_something_to_compare(prometheus):
    wait_for_data(prometheus, {
        rule["alert"]: observe.with_windows(observe.without_comparison(rule["expr"]), WINDOW)
        for rule in observe.alerts()})


def test_prometheus_evaluates_all_rules_without_an_error(prometheus):
    def rules():
        return [r for group in prometheus.get("rules")["groups"] for r in group["rules"]]
    wait_until(lambda: all(r["health"] != "unknown" for r in rules()), 30, "an evaluation")
    assert [(r["name"], r["lastError"]) for r in rules() if r["health"] != "ok"] == []
    assert {r["name"] for r in rules()} == ({r["record"] for r in observe.recordings()} |
                                            {r["alert"] for r in observe.alerts()})


def test_variables_of_the_dashboard_have_values(prometheus):
    for variable in observe.dashboard()["templating"]["list"][1:]:
        series, label = variable["query"]["query"].removeprefix("label_values(").rstrip(")").rsplit(", ", 1)
        values = prometheus.get(f"label/{label}/values", **{"match[]": observe.with_variables(series)})
        assert len(values) == 1, variable["name"]


def test_queries_in_the_manner_of_vllm_have_data(prometheus):
    """What dashboards, autoscalers and routers that were made for it ask."""
    which, rate = '{job="pikv",model_name=~"storyteller",engine="0"}', f"[{WINDOW}]"
    queries = [f"histogram_quantile(0.99, sum by (le) (rate(vllm:{name}_bucket{which}{rate})))"
               for name in ("time_to_first_token_seconds", "inter_token_latency_seconds",
                            "time_per_output_token_seconds", "e2e_request_latency_seconds",
                            "request_queue_time_seconds", "request_prompt_tokens", "iteration_tokens_total")]
    queries += [f"sum(rate(vllm:{name}{which}{rate}))" for name in (
        "prompt_tokens_total", "generation_tokens_total", "num_preemptions_total", "request_success_total")]
    queries += [f"vllm:{name}{which}" for name in (
        "num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "gpu_cache_usage_perc")]
    queries += [f"sum(rate(vllm:prefix_cache_hits_total{which}{rate}))"
                f" / sum(rate(vllm:prefix_cache_queries_total{which}{rate}))",
                f"rate(vllm:e2e_request_latency_seconds_sum{which}{rate})"
                f" / rate(vllm:e2e_request_latency_seconds_count{which}{rate})",
                f"sum by (le) (increase(vllm:request_generation_tokens_bucket{which}{rate}))",
                f"sum by (finished_reason) (increase(vllm:request_success_total{which}{rate}))",
                f'count by (block_size, num_gpu_blocks) (vllm:cache_config_info{which})']
    wait_for_data(prometheus, {query: query for query in queries})


def test_a_query_of_nothing_is_noticed(prometheus):
    """What the tests above go by can be false."""
    for query in ("pikv_no_such_series", "pikv_ready > 1", "pikv_ready * NaN",
                  'rate(pikv_requests_total{outcome="none"}[8s])'):
        assert not prometheus.has_data(query), query
    assert observe.without_comparison('a{b!="c"} > 1 and rate(d[5m]) == 0') == \
        'a{b!="c"} > bool 1 and rate(d[5m]) == bool 0'


def test_a_scrape_is_whole_and_its_series_are_few(prometheus):
    """Cardinality: what one server adds to a Prometheus, all methods and ranks included."""
    assert prometheus.has_data('scrape_samples_scraped{job="pikv"} > 500 < 3000')
    assert not prometheus.has_data('scrape_samples_scraped != scrape_samples_post_metric_relabeling')
