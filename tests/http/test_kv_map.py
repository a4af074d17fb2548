"""GET /debug/kv: a map of the cache that agrees with /metrics and with itself."""

import collections
import contextlib
import itertools

import pytest
import requests

from server import N_RANKS, Server, limit, wait_until
from test_errors import check_error
from wire import Connection, completion_bytes

LONG = "The king had a daughter who was more beautiful than words can tell. " * 8
N_LAYERS, N_HEADS = 4, 2  # of models/storyteller
N_SHARDS = int(N_RANKS)   # one for each rank
SHAPES = {
    "settings": {"type": str, "placement": str, "layers": int, "page_tokens": int,
                 "window_tokens": int, "sink_tokens": int, "shards": int, "prefix_caching": bool,
                 "request_methods": bool, "methods": dict},
    "counters": {"pages": dict, "bytes": dict, "slots_live": int, "prefix_objects": int},
    "sequences": {"id": int, "length": int, "blocks_in_pages": int, "slots_live": int,
                  "methods": dict},
    "heads": {"layer": int, "head": int, "shard": int, "slots_live": int},
    "pages": {"layer": int, "head": int, "shard": int, "slots_live": int, "pages": int,
              "runs": list},
    "runs": {"block": int, "blocks": int, "codec": str, "slots_live": int, "tier": str,
             "cached": bool},
}


def check_shape(name, value):
    assert {k: type(v) for k, v in value.items()} == SHAPES[name], name


def check_map(document, layers=range(N_LAYERS)):
    """Shapes, order and sums that hold in every map."""
    check_shape("settings", document["settings"])
    check_shape("counters", document["counters"])
    heads = document["heads"]
    for head in heads:
        check_shape("heads", head)
    assert [(h["layer"], h["head"], h["shard"]) for h in heads] == \
           [(layer, head, shard) for layer in layers for head in range(N_HEADS)
            for shard in range(N_SHARDS)]
    for seq in document["sequences"]:
        check_shape("sequences", seq)
    if len(layers) == N_LAYERS:
        assert sum(h["slots_live"] for h in heads) == \
               sum(s["slots_live"] for s in document["sequences"])
    for head in document.get("sequence", {}).get("heads", ()):
        check_shape("pages", head)
        for run in head["runs"]:
            check_shape("runs", run)
            assert run["tier"] == "device"
        assert sum(r["blocks"] for r in head["runs"]) == head["pages"]
        assert sum(r["blocks"] * r["slots_live"] for r in head["runs"]) == head["slots_live"]
    return document


def look(server, layers=range(N_LAYERS), **query):
    reply = server.get("/debug/kv", params=query)
    assert reply.status_code == 200, reply.text
    return check_map(reply.json(), layers)


@contextlib.contextmanager
def running(server, **fields):
    """A completion that runs meanwhile, and has begun."""
    with Connection(server.port) as client:
        client.send(completion_bytes(LONG, max_tokens=1500, ignore_eos=True, stream=True, **fields))
        assert client.read_until(b"data: ")
        yield


@pytest.fixture(scope="module")
def choosing():
    with Server("--kv-request-methods", "--kv-page-tokens", 16, "--kv-window", 16,
                "--no-enable-prefix-caching") as started:
        yield started


@pytest.fixture
def free(choosing):
    """Nothing of an earlier test is left in it."""
    choosing.wait_idle()
    return choosing


def test_an_idle_map_has_the_numbers_of_metrics(server):
    server.complete(LONG, max_tokens=4)
    server.wait_idle()
    document, metrics = look(server), server.metrics()
    assert document["sequences"] == [] and "sequence" not in document
    pages, sizes = document["counters"]["pages"], document["counters"]["bytes"]
    assert pages["cached"] > 0 and pages["used"] == 0
    if N_SHARDS > 1:  # the map is of all ranks, and so are the sums of what they report once a second
        slots = document["counters"]["slots_live"]
        wait_until(lambda: server.metrics().sum("rank_kv_slots") == slots, 10, "reports")
        assert sizes["budget"] == server.metrics().sum("rank_kv_budget_bytes")
        return
    for state in ("used", "cached", "free"):
        assert pages[state] == metrics.get("kv_blocks", state=state)
    for part in ("slabs", "tables", "ring", "staging"):
        assert sizes[part] == metrics.get("kv_cache_bytes", part=part)
    assert sizes["budget"] == metrics.get("kv_pool_budget_bytes")
    assert sizes["used"] == metrics.get("kv_used_bytes")
    assert document["counters"]["slots_live"] == metrics.get("kv_slots_live")
    assert document["counters"]["prefix_objects"] == metrics.get("prefix_cache_objects")


def test_the_pages_of_a_sequence_are_those_that_are_used(free):
    with running(free):
        (seq,) = look(free)["sequences"]
        document = look(free, seq=seq["id"])
    (now,) = document["sequences"]
    assert now["id"] == seq["id"] and now["length"] >= seq["length"]
    part, counters = document["sequence"], document["counters"]
    assert part["id"] == seq["id"] and part["is_truncated"] is False
    by_head = collections.Counter()
    for head in part["heads"]:
        by_head[head["layer"], head["head"]] += head["pages"]
    assert set(by_head.values()) == {now["blocks_in_pages"]}
    assert sum(h["pages"] for h in part["heads"]) == counters["pages"]["used"]
    assert sum(h["slots_live"] for h in part["heads"]) == now["slots_live"]
    sinks = document["settings"]["sink_tokens"] * len(by_head)  # read from the ring
    assert now["slots_live"] + sinks == counters["slots_live"]
    assert [h["slots_live"] for h in part["heads"]] == [h["slots_live"] for h in document["heads"]]


def test_the_newest_sequence_can_be_asked_for(free):
    assert "sequence" not in look(free, seq="newest")
    with running(free), running(free):
        document = look(free, seq="newest")
        first, second = document["sequences"]
        assert document["sequence"]["id"] == second["id"] > first["id"]
        assert sum(h["slots_live"] for h in document["sequence"]["heads"]) == second["slots_live"]
        assert look(free, seq=first["id"])["sequence"]["id"] == first["id"]


def test_sequences_show_their_methods_and_codecs(free):
    own = {"routing": "topk", "routing_k": 0.5, "scheduling": "none", "compression": "int8",
           "rewrite": "none"}
    with running(free), running(free, kv=own):
        first, second = look(free)["sequences"]
        assert first["id"] < second["id"]
        assert first["methods"] == {"routing": "full", "scheduling": "none", "compression": "none",
                                    "rewrite": "none"}
        assert second["methods"] == own
        for seq, codecs in ((first, ["none"]), (second, ["none", "int8"])):
            runs = collections.defaultdict(list)
            for head in look(free, seq=seq["id"])["sequence"]["heads"]:
                runs[head["layer"], head["head"]] += head["runs"]
            for of_head in runs.values():
                of_head.sort(key=lambda run: run["block"])
                assert [c for c, _ in itertools.groupby(of_head, lambda r: r["codec"])] == codecs


def test_pages_of_cached_prefixes_are_marked():
    with Server("--kv-page-tokens", 16, "--kv-window", 16) as server:
        server.complete(LONG, max_tokens=1)
        with running(server):
            (seq,) = look(server)["sequences"]
            heads = look(server, seq=seq["id"])["sequence"]["heads"]
    for head in heads:
        assert head["runs"][0]["cached"] is True


def test_a_layer_can_be_asked_for(free):
    n_lists = N_HEADS * N_SHARDS
    assert [h["layer"] for h in look(free, layers=[2], layer=2)["heads"]] == [2] * n_lists
    with running(free):
        (seq,) = look(free)["sequences"]
        part = look(free, layers=[3], layer=3, seq=seq["id"])["sequence"]
        assert [h["layer"] for h in part["heads"]] == [3] * n_lists


@pytest.mark.parametrize("query, param", [
    ("seq=x", "seq"), ("seq=newest1", "seq"), ("seq=0", "seq"), ("seq=-1", "seq"), ("seq=", "seq"), ("seq=1e3", "seq"),
    ("seq=99999999999999999999", "seq"), ("layer=4", "layer"), ("layer=", "layer"),
    ("layer=4294967296", "layer"), ("seq=1&layer=two", "layer"), ("seq=" + "9" * 5000, "seq")])
def test_a_bad_query_is_refused(server, query, param):
    reply = server.get("/debug/kv?" + query)
    message = check_error(reply.status_code, reply.content, 400, param=param)
    assert message.startswith(param + ":")


def test_a_sequence_that_is_not_open_is_not_found(server):
    reply = server.get("/debug/kv?seq=123456789")
    check_error(reply.status_code, reply.content, 404, "not_found", "seq")


def test_the_map_is_not_public(server):
    reply = requests.get(server.monitor_url + "/debug/kv", timeout=limit(20))
    assert reply.status_code == 404
    assert server.post("/debug/kv").status_code == 405
