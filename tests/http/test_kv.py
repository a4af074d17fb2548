"""Methods of the KV cache that requests choose, and what usage and metrics say about them."""

import tempfile
from concurrent.futures import ThreadPoolExecutor

import pytest

from server import N_RANKS, Server
from test_errors import refuse
from wire import Connection, completion_bytes, sse_events

LONG = "The king had a daughter who was more beautiful than words can tell. " * 8
EXACT = {"routing": "full", "compression": "none"}
CHOICES = [EXACT,
           {"routing": "certified", "routing_eps": 0},
           {"routing": "topk", "routing_k": 1.0},
           {"routing": "topk", "routing_k": 3},
           {"routing": "topk", "routing_k": 0.1, "compression": "int2"},
           {"routing": "hierarchical", "routing_k": 0.25},
           {"routing": "adaptive", "routing_tau": 0.2, "compression": "fp8"},
           {"compression": "int8"},
           {"compression": "int2"},
           {"scheduling": "snapkv", "budget": 0.5},
           {"scheduling": "h2o+adakv", "budget": 0.4, "compression": "int4"},
           {"compression": "chunkkv,int4", "budget": 0.5},
           {"compression": "fastv,none", "budget": 0.9},
           {"scheduling": "h2o", "compression": "pyramidkv,int8", "budget": 0.5},
           {"scheduling": "non_causal+adakv", "budget": 0.5},
           {"scheduling": "cap", "budget": 0.5},
           {"scheduling": "simlayerkv", "budget": 0.7, "lazy_threshold": 1},
           {"compression": "finch,int8", "budget": 0.4},
           {"scheduling": "keydiff+adakv", "budget": 0.4, "rewrite": "merge"},
           {"compression": "snapkv,int8", "budget": 0.5, "rewrite": "merge,rerotate"},
           {"scheduling": "kvzip", "budget": 0.5},
           {"compression": "kvzip,int4", "budget": 0.5},
           {"scheduling": "kvzip_plus", "budget": 0.5}]
READ_AGAIN = CHOICES[-3:]
OVER_RANKS = int(N_RANKS) > 1


@pytest.fixture(scope="module")
def free():
    """A server whose requests choose. Its pool keeps few prefixes: debug builds walk over all of them in every
    step."""
    with Server("--kv-request-methods", "--kv-page-tokens", 16, "--kv-window", 16,
                "--kv-cache-memory-bytes", "12Mi") as started:
        yield started


def ask(server, kv, salt, **fields):
    """The document; nothing is shared with requests of another salt."""
    return server.complete(LONG, kv=kv, cache_salt=salt, max_tokens=24, ignore_eos=True, **fields)


def text_of(reply):
    return reply["choices"][0]["text"]


def said(reply):
    """The text with the probability of each token, as printed. Over ranks the last digits of these depend on
    which rank a sequence's recent tokens are read by."""
    choice = reply["choices"][0]
    if OVER_RANKS:
        return choice["text"]
    return choice["text"], tuple(choice["logprobs"]["token_logprobs"])


def test_methods_beside_each_other_give_what_each_gives_alone(free):
    alone = [said(ask(free, kv, f"alone-{i}", logprobs=0)) for i, kv in enumerate(CHOICES)]
    assert alone[1] == alone[0] and alone[2] == alone[0], "exact methods have one text"
    if not OVER_RANKS:
        assert len(set(alone)) == len(CHOICES) - 2, "some of the methods do nothing"
    with ThreadPoolExecutor(2 * len(CHOICES)) as pool:
        crowd = [pool.submit(ask, free, kv, f"crowd-{i}-{k}", logprobs=0)
                 for i, kv in enumerate(CHOICES) for k in range(2)]
        together = [said(f.result()) for f in crowd]
    assert together == [a for a in alone for _ in range(2)]


def test_prefixes_cross_exact_methods_only(free):
    def cached(kv):
        usage = ask(free, kv, "prefixes")["usage"]
        return usage["prompt_tokens_details"]["cached_tokens"]
    assert cached(CHOICES[0]) == 0
    assert cached(CHOICES[1]) > 0 and cached(CHOICES[2]) > 0
    for kv in CHOICES[3:]:
        takes_none = "non_causal" in kv.get("scheduling", "")  # it must see all queries of its prompt
        assert cached(kv) == 0, kv
        assert (cached(kv) == 0) == takes_none, kv


# ---- usage ----


def test_usage_speaks_of_kv_when_the_request_does(free):
    assert "kv" not in free.complete(LONG, max_tokens=2)["usage"]
    assert set(ask(free, {}, "u0")["usage"]["kv"]) == \
           {"resident_bytes", "uncompressed_bytes", "pages_evicted", "pages_demoted", "methods"}
    usage = ask(free, CHOICES[4], "u1")["usage"]["kv"]
    assert usage["methods"] == {"scheduling": "none", "rewrite": "none", **CHOICES[4]}
    assert 0 < usage["mean_certificate"] <= 1
    assert 0 < usage["resident_bytes"] < usage["uncompressed_bytes"]
    exact = ask(free, EXACT, "u2")["usage"]["kv"]
    assert exact["resident_bytes"] == exact["uncompressed_bytes"]
    assert ask(free, {"compression": "int2"}, "u3")["usage"]["kv"]["uncompressed_bytes"] == \
           exact["resident_bytes"]


def test_usage_counts_pages_that_went():
    with tempfile.TemporaryDirectory() as folder, \
            Server("--kv-request-methods", "--kv-page-tokens", 16, "--kv-window", 16,
                   "--kv-disk-path", folder, "--kv-disk-bytes", "64Mi") as tiered:
        evicting = ask(tiered, {"scheduling": "knorm", "budget": 0.4}, "e")["usage"]["kv"]
        assert evicting["resident_bytes"] < evicting["uncompressed_bytes"]
        if not OVER_RANKS:  # of two ranks each may close its holes without a page to spare
            assert evicting["pages_evicted"] > 0
        assert evicting["pages_demoted"] == 0
        moving = ask(tiered, {"scheduling": "flexgen", "budget": 0.4}, "f", n=2)
        assert moving["usage"]["kv"]["pages_demoted"] > 0
        assert moving["usage"]["kv"]["pages_evicted"] == 0
        assert text_of(moving) == text_of(ask(tiered, EXACT, "g"))


def rounded(usage):
    """Over ranks a certificate also depends on whose recent tokens are at home: each rank has one of its own."""
    kv = usage["kv"]
    if OVER_RANKS and "mean_certificate" in kv:
        kv = {**kv, "mean_certificate": pytest.approx(kv["mean_certificate"], rel=0.2)}
    return {**usage, "kv": kv}


def test_methods_of_usage_can_be_asked_for_again(free):
    for i, kv in enumerate(CHOICES):
        usage = ask(free, kv, f"again-{i}")["usage"]
        again = ask(free, usage["kv"]["methods"], f"again-{i}-2")["usage"]
        assert again == rounded(usage)


def test_a_stream_ends_with_the_usage_of_a_plain_reply(free):
    kv = CHOICES[4]
    plain = ask(free, kv, "plain")
    with Connection(free.port) as client:
        client.send(completion_bytes(LONG, kv=kv, cache_salt="stream", max_tokens=24,
                                     ignore_eos=True, stream=True,
                                     stream_options={"include_usage": True}))
        events = sse_events(client.read_reply().body)
    assert "".join(e["choices"][0]["text"] for e in events[:-1]) == text_of(plain)
    assert events[-1]["usage"] == rounded(plain["usage"])


def test_usage_adds_up_over_choices(free):
    one = ask(free, CHOICES[4], "one")["usage"]["kv"]
    two = free.complete([LONG, "a"], kv=CHOICES[4], cache_salt="two", max_tokens=24,
                        ignore_eos=True)["usage"]["kv"]
    assert two["resident_bytes"] > one["resident_bytes"]
    nothing = free.complete("a", kv={}, echo=True, max_tokens=0)["usage"]["kv"]
    assert nothing["resident_bytes"] == nothing["uncompressed_bytes"] == 0


# ---- prompts that are read again ----


@pytest.mark.parametrize("kv", READ_AGAIN, ids=str)
def test_a_prompt_is_read_again_between_its_first_two_tokens(free, kv):
    free.wait_idle()
    before = free.metrics()
    reply = ask(free, kv, f"again {kv}")
    free.wait_idle()
    after = free.metrics()

    def gain(name):
        return after.sum(name) - before.sum(name)
    usage = reply["usage"]
    assert gain("kv_pages_evicted_total") + gain("kv_pages_compacted_total") > 0
    assert gain("prompt_tokens_total") == usage["prompt_tokens"]
    assert gain("generation_tokens_total") == usage["completion_tokens"] == 24
    n_fed = gain("batch_tokens_sum")
    assert n_fed >= 2 * usage["prompt_tokens"] + 23, "the prompt once more, and an instruction"
    first = ask(free, {**kv, "budget": 1}, f"once {kv}")
    assert text_of(first)[:2] == text_of(reply)[:2]


@pytest.mark.parametrize("kv", READ_AGAIN, ids=str)
def test_a_client_that_leaves_while_its_prompt_is_read_again_leaves_nothing(free, kv):
    with Connection(free.port) as client:
        client.start_stream(LONG * 6, kv=kv, cache_salt=f"gone {kv}", max_tokens=200, ignore_eos=True)
    free.wait_idle()
    assert free.metrics().get("kv_used_bytes") == 0
    assert said(ask(free, kv, "after it", logprobs=0))


def test_a_prompt_that_the_context_does_not_hold_twice_is_refused(free):
    for kv in READ_AGAIN:
        name = kv.get("scheduling", "kvzip")
        key = "kv." + ("scheduling" if "scheduling" in kv else "compression")
        message = refuse(free, {"prompt": [5] * 1937, "kv": kv, "max_tokens": 5},
                         code="context_length_exceeded", param="prompt")
        assert message == (f"{key}: {name} reads a prompt of 1937 tokens again behind it, and a context of "
                           "2048 tokens leaves less than 112 for it")
        fits = free.complete([5] * 1936, kv=kv, max_tokens=5, ignore_eos=True)
        assert fits["usage"]["completion_tokens"] == 5


# ---- bounds ----


def test_a_server_without_the_flag_takes_its_own_settings_only():
    with Server("--kv-routing", "topk", "--kv-routing-k", 0.5) as fixed:
        own = {"routing": "topk", "routing_k": 0.5, "scheduling": "none", "compression": "none",
               "rewrite": "none"}
        assert fixed.complete(LONG, kv=own)["usage"]["kv"]["methods"] == own
        assert fixed.complete(LONG, kv={})["usage"]["kv"]["methods"] == own
        message = refuse(fixed, {"prompt": "a", "kv": {"routing": "full"}}, param="kv.routing")
        assert "--kv-request-methods" in message and '"topk"' in message
        refuse(fixed, {"prompt": "a", "kv": {"routing_k": 0.25}}, param="kv.routing_k")
        refuse(fixed, {"prompt": "a", "kv": {"compression": "int8"}}, param="kv.compression")
        refuse(fixed, {"prompt": "a", "kv": {"rewrite": "merge"}}, param="kv.rewrite")


def test_what_no_server_takes_is_refused(free):
    for kv, param in (({"routing": "best"}, "kv.routing"), ({"routing": 1}, "kv.routing"),
                      ({"routing": "topk", "routing_k": 0}, "kv.routing_k"),
                      ({"routing": "topk", "routing_k": 1e300}, "kv.routing_k"),
                      ({"routing": "topk", "routing_eps": 0.5}, "kv.routing_eps"),
                      ({"compression": "int3"}, "kv.compression"), ({"rewrite": "merge"}, "kv.rewrite"),
                      ({"scheduling": "h2o", "budget": 0.5, "rewrite": "mend"}, "kv.rewrite"),
                      ({"window": 5}, "kv"),
                      ("topk", "kv")):
        for stream in (False, True):
            message = refuse(free, {"prompt": "a", "kv": kv, "stream": stream}, param=param)
            assert message.startswith(param + ":")


# ---- metrics ----


def test_metrics_count_sequences_by_their_methods(free):
    free.wait_idle()
    before = free.metrics()
    free.complete([LONG, "a"], n=2, kv=CHOICES[4], max_tokens=2)
    free.complete("a", max_tokens=2)
    free.wait_idle()
    after = free.metrics()

    def gain(**labels):
        name = "requests_by_method_total"
        return after.sum(name, **labels) - before.sum(name, **labels)
    assert gain(routing="topk", scheduling="none", compression="int2") == 4
    assert gain(routing="full", compression="none") == 1
    assert gain() == 5
    assert after.sum("requests_by_method_total") == after.sum("requests_total")
    assert after.get("kv_used_bytes") == 0
