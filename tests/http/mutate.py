"""Thousands of broken request bodies: never a 5xx, never a long error, never a dead server.

    .venv/bin/python tests/http/mutate.py --count 10000 --seed 1

Every body comes from a sound one by one to three changes: some of bytes (flips, cuts, bad UTF-8, doubled
spans), some of structure (wrong types, huge numbers, deep nesting, missing and doubled keys). A failure
prints the body and the number of the seed that makes it again.
"""

import argparse
import collections
import copy
import json
import random
import time

from server import CHAT_TEMPLATE, Server, wait_until
from wire import Closed, Connection, request_bytes

REPLY_BYTES_MAX = 4096
BODY_BYTES_MAX = 60000  # below the server's limit: beyond it a connection may be cut while we send
STATUSES = {200, 400, 404, 413, 429}
# A short context keeps what happens to be a sound request cheap.
FLAGS = ("--max-model-len", 48, "--max-choices", 8, "--max-body-bytes", 65536, "--log-level", "info",
         "--chat-template", CHAT_TEMPLATE)

SEEDS = [
    ("/v1/completions", {"prompt": "Once upon", "max_tokens": 2, "temperature": 0}),
    ("/v1/completions", {"prompt": ["a", "b"], "max_tokens": 1, "n": 2, "seed": 7, "best_of": 2}),
    ("/v1/completions", {"prompt": [[1, 5], [9]], "max_tokens": 1, "logprobs": 2, "echo": True}),
    ("/v1/completions", {"prompt": [1, 2, 3], "max_tokens": 2, "stream": True,
                         "stream_options": {"include_usage": True}, "stop": ["a", "bc"]}),
    ("/v1/completions", {"prompt": "🦊昔", "max_tokens": 2, "logit_bias": {"5": 1, "7": -100},
                         "top_p": 0.9, "top_k": 4, "min_p": 0.1, "repetition_penalty": 1.1,
                         "presence_penalty": 0.5, "frequency_penalty": -0.5}),
    ("/v1/completions", {"model": "storyteller", "prompt": "a", "max_tokens": 2, "min_tokens": 1,
                         "stop_token_ids": [2, 3], "ignore_eos": True, "cache_salt": "s",
                         "request_id": "id", "truncate_prompt_tokens": 4, "return_token_ids": True,
                         "include_stop_str_in_output": True, "skip_special_tokens": False}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Once"}], "max_tokens": 2}),
    ("/v1/chat/completions", {"messages": [
        {"role": "system", "content": "Be"}, {"role": "user", "content": [{"type": "text", "text": "🦊"}]},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{\"a\": 1}"}}]},
        {"role": "user", "content": "so"}], "max_completion_tokens": 2, "logprobs": True,
                              "top_logprobs": 2, "stream": True, "chat_template_kwargs": {"a": 1}}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"},
                                           {"role": "assistant", "content": "Once"}], "echo": True,
                              "continue_final_message": True, "max_tokens": 1, "tools": [],
                              "tool_choice": "none", "documents": [{"text": "d"}]}),
    ("/tokenize", {"messages": [{"role": "user", "content": "a"}], "return_token_strs": True}),
    ("/tokenize", {"prompt": "Once 🦊", "add_special_tokens": True, "return_token_strs": True}),
    ("/tokenize", {"content": "upon a", "add_special": True, "with_pieces": True}),
    ("/detokenize", {"tokens": [1, 5, 300, 4095]}),
]
VALUES = [None, True, False, 0, -0.0, 1, -1, 16.0, 1.5, 1e-300, 1e300, 2**31, 2**32, 2**53 + 1, 2**63 - 1,
          -2**63, 4095, 4096, "", "x", "\u0000", "\ud7ff\ue000", "🦊" * 50, "9" * 400, [], {}, [[]], [{}],
          {"": None}, ["a", 1], [1, "a"], [None], [True], [1.0, 2.5], [-1], [4096], {"1": 1}, {"-1": 1},
          {"type": "text"}, {"include_usage": True}, ["x"] * 100, [1] * 600, [[1]] * 100]
LITERALS = [b"NaN", b"-Infinity", b"1e400", b"9" * 400, b"-9223372036854775809", b"0x10", b"01", b"1.",
            b"\"\\ud800\"", b"\"\\u0000\"", b"\"\xff\"", b"\"\xc0\x80\"", b"'a'", b"[" * 300, b"[" * 40000,
            b"{\"a\":" * 2500, b"//", b"tru", b"\"\n\"", b"\xef\xbb\xbf"]


def paths_of(value, path=()):
    """Every place in a document."""
    yield path
    items = value.items() if isinstance(value, dict) else \
        enumerate(value) if isinstance(value, list) else ()
    for key, child in items:
        yield from paths_of(child, (*path, key))


def change_structure(rng, document):
    """One place gets another value, vanishes, or moves into brackets."""
    document = copy.deepcopy(document)
    places = [p for p in paths_of(document) if p]
    if not places:
        return document
    path = rng.choice(places)
    parent = document
    for key in path[:-1]:
        parent = parent[key]
    how = rng.randrange(5)
    if how == 0:
        del parent[path[-1]]
    elif how == 1:
        nested = parent[path[-1]]
        for _ in range(rng.choice([1, 2, 50])):
            nested = [nested] if rng.random() < 0.5 else {"a": nested}
        parent[path[-1]] = nested
    elif how == 2 and isinstance(parent, list):
        parent.extend(parent * rng.choice([1, 20, 200]))
    else:
        parent[path[-1]] = copy.deepcopy(rng.choice(VALUES))
    return document


def change_bytes(rng, data):
    data = bytearray(data)
    at = rng.randrange(len(data) + 1)
    span = rng.randint(1, 12)
    how = rng.randrange(7)
    if how == 0 and at < len(data):
        data[at] ^= 1 << rng.randrange(8)
    elif how == 1 and at < len(data):
        data[at] = rng.randrange(256)
    elif how == 2:
        del data[at:at + span]
    elif how == 3:
        del data[at:]
    elif how == 4:
        data[at:at] = data[at:at + span]
    elif how == 5:
        data[at:at] = rng.choice(LITERALS)
    else:  # a value becomes something that no JSON library would write
        colon = data.find(b":", at)
        if colon >= 0:
            data[colon + 1:colon + 1 + span] = rng.choice(LITERALS)
    return bytes(data)


def double_key(rng, data):
    key = rng.choice(["prompt", "messages", "n", "tokens", "max_tokens"])
    return b'{"%s": 1, ' % key.encode() + data[1:]


def make_case(seed):
    """The path and body of one case; the same for the same seed."""
    rng = random.Random(seed)
    path, document = rng.choice(SEEDS)
    for _ in range(rng.choice([0, 1, 1, 2, 3])):
        document = change_structure(rng, document)
        if len(json.dumps(document)) > BODY_BYTES_MAX:
            break
    data = json.dumps(document, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    if rng.random() < 0.08:
        data = double_key(rng, data)
    for _ in range(rng.choice([0, 0, 1, 1, 2, 3])):
        data = change_bytes(rng, data)
    return path, data[:BODY_BYTES_MAX]


def fault_of(reply):
    """What is wrong with a reply, or None."""
    if reply.status not in STATUSES:
        return f"status {reply.status}"
    if reply.status == 200:
        return None
    if len(reply.body) >= REPLY_BYTES_MAX:
        return f"an error of {len(reply.body)} bytes"
    error = json.loads(reply.body)["error"]
    return None if set(error) == {"message", "type", "param", "code"} else f"odd error {error}"


def show(case):
    return f"{case[0]} {case[1][:500]!r} ({len(case[1])} bytes)"


def send_case(connection, case):
    connection.send(request_bytes("POST", *case))
    return connection.read_reply()


def mutate(count, seed):
    """Sends them all over one connection after another; how often each status came."""
    counts = collections.Counter()
    with Server(*FLAGS) as server:
        connection = Connection(server.port)
        for number in range(seed * 10**6, seed * 10**6 + count):
            case = make_case(number)
            try:
                reply = send_case(connection, case)
            except (Closed, OSError) as error:
                raise AssertionError(f"seed {number}: no reply to {show(case)}: {error!r}") from error
            fault = fault_of(reply)
            assert fault is None, f"seed {number}: {fault}: {show(case)}: {reply.body[:500]!r}"
            counts[reply.status] += 1
            if reply.headers.get("connection", "").lower() == "close" or number % 500 == 499:
                connection.close()
                connection = Connection(server.port)
        connection.close()
        server.wait_idle()
        wait_until(lambda: server.get("/ready").status_code == 200, 10, "ready")
        assert " error " not in server.log(), "an error is on the log"
    assert counts[200] > count // 50 and counts[400] > count // 4, counts
    return counts


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    start = time.monotonic()
    print(dict(mutate(args.count, args.seed)), f"{time.monotonic() - start:.1f} s")


if __name__ == "__main__":
    main()
