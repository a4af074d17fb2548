"""Clients that leave, queues that are full, signals: a server's life beside its answers."""

import json
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from server import ROOT, TRANSPORT, Server, limit, run_command, wait_until
from test_errors import check_error
from wire import Connection, completion_bytes, sse_events

STORY = "Once upon a time"
STOPPED_WHILE_LOADING = 1 if TRANSPORT == "mpi" else 0  # service/signal_watch.h
ENDLESS = {"max_tokens": 2000, "ignore_eos": True}
SLOW_PROMPT = [5 + i % 4000 for i in range(2000)]  # with 1 token a step: seconds of prefill


@pytest.fixture(scope="module")
def narrow():
    """One sequence at a time, one token a step."""
    with Server("--max-num-seqs", 1, "--max-num-batched-tokens", 1) as started:
        yield started


def disconnects(server):
    return server.metrics().get("client_disconnects_total")


# ---- clients that leave ----


def leaves(server, connection):
    """Hangs up, and waits until the server has noticed and forgotten."""
    before = disconnects(server)
    connection.close()
    wait_until(lambda: disconnects(server) > before, 10, "the disconnect is counted")


def test_a_client_that_leaves_the_queue_is_forgotten(narrow):
    first, second = Connection(narrow.port), Connection(narrow.port)
    first.start_stream(STORY, **ENDLESS)
    second.send(completion_bytes(STORY, **ENDLESS))
    wait_until(lambda: narrow.metrics().get("requests_waiting") == 1, 10, "one waits")
    leaves(narrow, second)
    wait_until(lambda: narrow.metrics().get("requests_waiting") == 0, 10, "nobody waits")
    assert narrow.metrics().get("requests_running") == 1
    leaves(narrow, first)
    narrow.wait_idle()


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_during_its_prompt_frees_its_pages(narrow, stream):
    made = narrow.metrics().get("generation_tokens_total")
    client = Connection(narrow.port)
    client.send(completion_bytes(SLOW_PROMPT, stream=stream, max_tokens=40, cache_salt="prefill"))
    wait_until(lambda: narrow.metrics().get("kv_blocks", state="used") > 0, 20, "pages in use")
    leaves(narrow, client)
    narrow.wait_idle()
    assert narrow.metrics().get("generation_tokens_total") == made, "the prompt was done"


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_during_the_output_frees_its_pages(server, stream):
    before = server.metrics()
    client = Connection(server.port)
    client.send(completion_bytes(STORY, stream=stream, n=4, **ENDLESS))
    wait_until(lambda: server.metrics().get("generation_tokens_total") >
               before.get("generation_tokens_total") + 8, 20, "some output")
    leaves(server, client)
    server.wait_idle()
    after = server.metrics()
    assert after.get("requests_total", outcome="abort") == \
           before.get("requests_total", outcome="abort") + 4
    assert after.get("generation_tokens_total") < before.get("generation_tokens_total") + 8000


def test_a_hundred_aborts_leave_nothing_behind(server):
    expected = server.text(STORY)

    def abort(i):
        with Connection(server.port) as client:
            client.send(completion_bytes([5 + i] * (1 + i * 7), stream=i % 2 == 0, **ENDLESS))
            if i % 3 == 0:
                client.read_until(b"\r\n") if i % 2 == 0 else time.sleep(0.002 * (i % 10))

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(abort, range(100)))
    server.wait_idle(30)
    wait_until(lambda: requests.get(server.monitor_url + "/metrics", timeout=limit(20)).status_code
               == 200 and server.metrics().get("http_requests_active") == 0, 10, "no exchange is left")
    assert server.text(STORY) == expected


def test_half_a_request_does_not_hold_up_others(server):
    with Connection(server.port) as head, Connection(server.port) as body:
        head.send(b"POST /v1/completions HTT")
        body.send(completion_bytes(STORY)[:-10])
        assert server.text(STORY)


# ---- too much at once ----


def test_a_small_pool_gives_the_texts_of_a_big_one():
    prompts = [[7 + i] * 40 + [300 + 11 * i, 5, 900 - i] for i in range(16)]
    fields = {"max_tokens": 200, "ignore_eos": True}
    with Server() as big:
        expected = [big.text(p, **fields) for p in prompts]
    with Server("--kv-cache-memory-bytes", "1500Ki") as small:
        with ThreadPoolExecutor(16) as pool:
            texts = list(pool.map(lambda p: small.text(p, **fields), prompts))
        assert texts == expected
        assert small.metrics().get("preemptions_total") > 0, "the pool was never full"
        small.wait_idle()


def test_a_full_queue_is_429_with_a_time_to_come_back():
    with Server("--max-num-seqs", 1, "--max-num-queued-reqs", 1) as server:
        with Connection(server.port) as running, Connection(server.port) as waiting:
            assert running.start_stream(STORY, **ENDLESS).status == 200
            waiting.send(completion_bytes(STORY))
            wait_until(lambda: server.metrics().get("requests_waiting") == 1, 10, "one waits")
            for stream in (False, True):
                reply = server.post("/v1/completions", {"prompt": STORY, "stream": stream})
                check_error(reply.status_code, reply.content, 429, "queue_full")
                assert int(reply.headers["Retry-After"]) > 0
            assert server.metrics().get("request_rejections_total", reason="queue_full") == 2
            running.close()
            assert waiting.read_reply().status == 200, "an accepted request is served"


def test_more_choices_than_can_ever_wait_are_400():
    with Server("--max-num-seqs", 2, "--max-num-queued-reqs", 1) as server:
        reply = server.post("/v1/completions", {"prompt": STORY, "n": 4})
        check_error(reply.status_code, reply.content, 400, None, "n")


def test_the_monitor_answers_while_the_main_listener_is_full():
    with Server("--max-connections", 3) as server:
        idle = [Connection(server.port) for _ in range(3)]
        wait_until(lambda: refused(server), 10, "the limit is reached")
        for path in ("/ready", "/live", "/metrics"):
            reply = requests.get(server.monitor_url + path, timeout=limit(20))
            assert reply.status_code == 200
        for connection in idle:
            connection.close()
        wait_until(lambda: not refused(server), 10, "there is room again")


def refused(server):
    """True if a new connection gets a 503 or is cut."""
    try:
        reply = server.get("/live")
    except requests.ConnectionError:
        return True
    assert reply.status_code in (200, 503)
    return reply.status_code == 503


def test_a_request_has_an_end():
    with Server("--request-timeout", 1, "--max-num-batched-tokens", 1, "--max-num-seqs", 1) as server:
        reply = server.post("/v1/completions", {"prompt": STORY, "n": 100, **ENDLESS})
        check_error(reply.status_code, reply.content, 504, "request_timeout")
        with Connection(server.port) as client:
            client.send(completion_bytes(STORY, stream=True, n=100, **ENDLESS))
            reply = client.read_reply()
        assert reply.status == 200
        assert sse_events(reply.body)[-1]["error"]["code"] == "request_timeout"
        server.wait_idle()


# ---- signals ----


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_streams_finish_and_refuses_new_requests(number):
    with Server() as server:
        with Connection(server.port) as client:
            assert client.start_stream(STORY, n=4, max_tokens=400, ignore_eos=True).status == 200
            server.terminate(number)

            def is_refused():
                try:
                    reply = server.post("/v1/completions", {"prompt": STORY, "max_tokens": 1})
                except requests.ConnectionError:
                    return True
                if reply.status_code == 200:
                    return False
                check_error(reply.status_code, reply.content, 503, "draining")
                assert int(reply.headers["Retry-After"]) > 0
                return True

            wait_until(is_refused, 10, "new requests are refused")
            events = sse_events(client.read_rest_of_stream())
        ends = [e["choices"][0]["finish_reason"] for e in events]
        assert ends.count("length") == 4


def test_what_does_not_finish_in_time_ends_with_an_error():
    with Server("--shutdown-timeout", 1, "--max-num-seqs", 2) as server:
        with Connection(server.port) as client:
            assert client.start_stream(STORY, n=32, **ENDLESS).status == 200
            server.terminate()
            events = sse_events(client.read_rest_of_stream())
        assert events[-1]["error"]["code"] == "draining"


def test_a_second_signal_ends_the_process_at_once():
    with Server(code=1) as server:
        with Connection(server.port) as client:
            client.start_stream(STORY, n=16, **ENDLESS)
            server.terminate()
            wait_until(lambda: "stopping:" in server.log(), 10, "it is stopping")
            server.terminate()
            assert server.wait(10) == 1


def test_an_idle_keep_alive_connection_does_not_hold_up_the_end():
    with Server() as server:
        with Connection(server.port) as idle, Connection(server.port) as fresh:
            assert idle.ask("GET", "/live").status == 200
            server.terminate()
            assert server.wait(15) == 0
            del fresh


def test_a_closed_terminal_does_not_end_the_server():
    with Server() as server:
        server.send_signal(signal.SIGHUP)
        assert server.text(STORY)


@pytest.fixture(scope="module")
def big_model(tmp_path_factory):
    """A model whose dummy weights take a while to make."""
    path = tmp_path_factory.mktemp("big")
    source = ROOT / "models/storyteller"
    config = json.loads((source / "config.json").read_text())
    config.update(hidden_size=1024, intermediate_size=2048, num_hidden_layers=8)
    (path / "config.json").write_text(json.dumps(config))
    (path / "tokenizer.model").symlink_to(source / "tokenizer.model")
    return path


def test_probes_answer_while_the_model_loads_and_a_signal_ends_it(big_model):
    with Server(big_model, "--load-format", "dummy", waits="listening") as server:
        assert server.get("/ready").json() == {"status": "loading"}
        assert server.get("/live").status_code == 200
        reply = server.post("/v1/completions", {"prompt": STORY})
        check_error(reply.status_code, reply.content, 503, "loading")
        assert int(reply.headers["Retry-After"]) > 0
        assert server.metrics().get("ready") == 0
        server.terminate()
        assert server.wait(30) == STOPPED_WHILE_LOADING
        server.code = STOPPED_WHILE_LOADING


def test_a_signal_right_after_the_start_ends_it(big_model):
    for pause in (0, 0.01, 0.05):
        with Server(big_model, "--load-format", "dummy", waits="listening") as server:
            time.sleep(pause)
            server.terminate()
            server.code = server.wait(30)
            assert server.code == (0 if "drained" in server.log() else STOPPED_WHILE_LOADING)
            assert "ready model" not in server.log() or "drained" in server.log()


def test_a_port_in_use_is_a_clear_failure():
    with Server() as server:
        code, _, said = run_command("serve", "--port", server.port)
        assert code == 1 and str(server.port) in said
