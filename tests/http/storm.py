"""Many clients at once, a third of which hang up midway: the server must come out as it went in.

    .venv/bin/python tests/http/storm.py --seconds 60 --clients 64
    .venv/bin/python tests/http/storm.py --seconds 60 --clients 32 --methods

Plain and streamed completions and chats of all sizes against a small KV pool and a short queue, so that requests are
queued, refused, preempted and aborted all the time. Afterwards: no status but 200 and 429, every whole reply
whole, the same text as before for the same prompt, no page in use, nothing on the log, exit code 0.

With --methods every request chooses its own methods of the KV cache - routing, scheduling, compression - over
prompts that share prefixes, in a pool with host memory and a file below it. What is exact must then say what it
said before, too, and every kind of work must have been done: evicted, encoded, demoted, read back, shared.
"""

import argparse
import collections
import json
import random
import socket
import tempfile
import threading
import time

from server import CHAT_TEMPLATE, Server
from wire import Closed, Connection, chat_bytes, completion_bytes, sse_events

FLAGS = ("--max-num-seqs", 12, "--max-num-batched-tokens", 64, "--max-num-queued-reqs", 64,
         "--kv-cache-memory-bytes", "1200Ki", "--kv-window", 8, "--max-model-len", 512,
         "--chat-template", CHAT_TEMPLATE)
PROBE = {"prompt": "Once upon a time", "max_tokens": 24, "seed": 4, "temperature": 1}
WORDS = ["Once upon a time", "The king", "昔々 🦊", "a " * 100, [5] * 70, [9] * 300, [[5, 6], [7] * 40],
         ["one", "two", "three"]]
CHATS = ["Once upon a time", [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello 🦊"}],
         [{"role": "user", "content": "a " * 100}, {"role": "assistant", "content": "The king"},
          {"role": "user", "content": "</s> and then?"}]]

METHOD_FLAGS = ("--max-num-seqs", 8, "--max-num-batched-tokens", 96, "--max-num-queued-reqs", 128,
                "--kv-request-methods", "--kv-page-tokens", 16, "--kv-window", 16,
                "--kv-cache-memory-bytes", "3Mi", "--kv-host-bytes", "512Ki", "--kv-disk-bytes", "8Mi")
KING = "The king had a daughter who was more beautiful than words can tell, and a dog. "
LONG_WORDS = [KING * 4, KING * 9, KING * 9 + "The dog", KING * 14 + "Then", "Once upon a time " + KING * 6]
ROUTINGS = [{}, {"routing": "topk", "routing_k": 0.25}, {"routing": "hierarchical", "routing_k": 2},
            {"routing": "certified", "routing_eps": 0.01}, {"routing": "adaptive", "routing_tau": 0.5}]
SCHEDULINGS = [{}, {}, {"scheduling": "adakv", "budget": 0.5}, {"scheduling": "h2o", "budget": 0.3},
               {"scheduling": "snapkv+pyramid", "budget": 80}, {"scheduling": "lru_plus", "budget": 0.5},
               {"scheduling": "duo_attention", "budget": 0.5}, {"scheduling": "flexgen", "budget": 0.5},
               {"scheduling": "kvzip", "budget": 0.4}, {"scheduling": "kvzip_plus+adakv", "budget": 0.4},
               {"scheduling": "non_causal", "budget": 0.5}, {"scheduling": "cap+simlayer", "budget": 0.5},
               {"scheduling": "simlayerkv", "budget": 0.9, "lazy_threshold": 0.6},
               {"scheduling": "keydiff+adakv", "budget": 0.3, "rewrite": "merge,rerotate"},
               {"scheduling": "streaming_llm", "budget": 0.5, "rewrite": "rerotate"}]
COMPRESSIONS = [{}, {}, {"compression": "int8"}, {"compression": "int4"}, {"compression": "fp8"},
                {"compression": "think"}, {"compression": "svd"}, {"compression": "pikv"}]
WORK_DONE = ("kv_pages_evicted_total", "kv_pages_compacted_total", "kv_encoded_blocks_total",
             "kv_demoted_blocks_total", "kv_disk_read_bytes_total", "prefix_cache_hit_tokens_total")


class Tally:
    """What happened; shared by all clients."""

    def __init__(self):
        self._lock = threading.Lock()
        self.counts = collections.Counter()
        self.faults = []

    def add(self, what):
        with self._lock:
            self.counts[what] += 1

    def fault(self, what):
        with self._lock:
            self.faults.append(what)


def random_fields(rng):
    fields = {"max_tokens": rng.choice([1, 2, 8, 30, 100]), "n": rng.choice([1, 1, 1, 2, 5]),
              "temperature": rng.choice([0, 1]), "ignore_eos": rng.random() < 0.5,
              "stream": rng.random() < 0.5}
    if rng.random() < 0.2:
        fields.update(logprobs=rng.randint(0, 5), echo=rng.random() < 0.5)
    if rng.random() < 0.2:
        fields["stop"] = [" the", "\n"]
    if rng.random() < 0.3:
        fields["cache_salt"] = rng.choice("abc")
    return fields


def random_methods(rng):
    """Fields of a request that chooses; half of them share one salt."""
    kv = {**rng.choice(ROUTINGS), **rng.choice(SCHEDULINGS), **rng.choice(COMPRESSIONS)}
    return {"max_tokens": rng.choice([1, 8, 40]), "n": rng.choice([1, 1, 2]), "kv": kv,
            "temperature": 0, "ignore_eos": True, "stream": rng.random() < 0.5,
            "cache_salt": rng.choice("aabc")}


def check_reply(reply, fields, tally):
    tally.add(reply.status)
    if reply.status == 429:
        assert reply.json()["error"]["code"] == "queue_full"
        assert "retry-after" in reply.headers
    elif reply.status != 200:
        tally.fault(f"status {reply.status}: {reply.body[:300]!r}")
    elif fields["stream"]:
        ends = [c["finish_reason"] for e in sse_events(reply.body) for c in e["choices"]
                if c["finish_reason"]]
        assert ends and set(ends) <= {"stop", "length"}
    else:
        choices = reply.json()["choices"]
        assert {c["finish_reason"] for c in choices} <= {"stop", "length"}


def send_and_hang_up(connection, data, rng):
    """At once, after a moment, or after a part of the reply; sometimes amid the request."""
    if rng.random() < 0.1:
        connection.send(data[:rng.randint(1, len(data) - 1)])
        how = rng.randrange(2)  # there will be no reply to wait for
    else:
        connection.send(data)
        how = rng.randrange(3)
    if how == 1:
        time.sleep(rng.random() * 0.05)
    elif how == 2:
        connection.socket.recv(rng.randint(1, 2000))
    if rng.random() < 0.3:  # with a reset instead of an orderly end
        connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    connection.close()


def random_request(rng, methods):
    """The bytes and the fields of a completion or a chat."""
    if methods:
        fields = random_methods(rng)
        return completion_bytes(rng.choice(LONG_WORDS), **fields), fields
    fields = random_fields(rng)
    if rng.random() < 0.6:
        return completion_bytes(rng.choice(WORDS), **fields), fields
    if "logprobs" in fields:
        fields.update(top_logprobs=fields["logprobs"], logprobs=True)
    return chat_bytes(rng.choice(CHATS), **fields), fields


def run_client(server, seed, end, tally, methods):
    rng = random.Random(seed)
    connection = None
    while time.monotonic() < end:
        if connection is None:
            connection = Connection(server.port)
        data, fields = random_request(rng, methods)
        try:
            if rng.random() < 1 / 3:
                send_and_hang_up(connection, data, rng)
                tally.add("hung up")
                connection = None
                continue
            connection.send(data)
            reply = connection.read_reply()
            check_reply(reply, fields, tally)
            if reply.status == 429:
                time.sleep(0.05 + 0.2 * rng.random())  # mostly waiting leaves the server time to serve
        except (AssertionError, Closed, OSError, ValueError, KeyError) as error:
            tally.fault(f"{type(error).__name__}: {error} after {json.dumps(fields)}")
            connection = None
    if connection is not None:
        connection.close()


def check_server(server, tally, methods):
    """When all clients are gone."""
    assert server.get("/ready").status_code == 200
    metrics = server.metrics()
    tally.counts["preempted"] = int(metrics.get("preemptions_total"))
    tally.counts["disconnects seen"] = int(metrics.get("client_disconnects_total"))
    assert metrics.get("requests_total", outcome="error") == 0
    assert metrics.get("kv_used_bytes") == 0 and metrics.get("kv_sequences_open") == 0
    assert " error " not in server.log(), "an error is on the log"
    for name in WORK_DONE if methods else ():
        tally.counts[name] = int(metrics.get(name))
        assert tally.counts[name] > 0, f"{name} is 0"


def storm(seconds, n_clients, seed, methods):
    """Runs it and checks the server; the tally."""
    tally = Tally()
    with tempfile.TemporaryDirectory() as folder:
        flags = (*METHOD_FLAGS, "--kv-disk-path", folder) if methods else FLAGS
        with Server(*flags) as server:
            expected = server.complete(**PROBE)["choices"]
            end = time.monotonic() + seconds
            threads = [threading.Thread(target=run_client,
                                        args=(server, seed * 1000 + i, end, tally, methods))
                       for i in range(n_clients)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            server.wait_idle(30)
            assert server.complete(**PROBE)["choices"] == expected, "the storm changed a text"
            server.wait_idle(30)
            check_server(server, tally, methods)
    assert not tally.faults, "\n".join(tally.faults[:10])
    assert tally.counts[200] > 0 and tally.counts["hung up"] > 0
    return tally


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--methods", action="store_true", help="of the KV cache, by request")
    args = parser.parse_args()
    print(dict(storm(args.seconds, args.clients, args.seed, args.methods).counts))


if __name__ == "__main__":
    main()
