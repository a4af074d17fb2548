"""Completions and tokens as documented in docs/api.md, looked at without a client library."""

import pytest

from wire import Connection, completion_bytes, sse_events

STORY = "Once upon a time"
LONG = "The king had a daughter who was more beautiful than words can tell. " * 12
TEXTS = ["", "a", STORY, "  two  spaces ", "\n\t\r\n", "Köln, naïve", "昔々あるところに", "🦊🧙\u200d♂️👍🏽",
         "nul \u0000 inside", "\ufffd\ufeff", "<s>not special</s>", "x" * 3000]


def stream(server, prompt, **fields):
    """The head of a streamed completion and its events."""
    with Connection(server.port) as connection:
        connection.send(completion_bytes(prompt, stream=True, **fields))
        reply = connection.read_reply()
    assert reply.status == 200, reply.body
    return reply.headers, sse_events(reply.body)


# ---- streams ----


def test_a_stream_is_framed_as_server_sent_events(server):
    headers, events = stream(server, STORY, max_tokens=32, request_id="my-id.1")
    assert headers["content-type"].split(";")[0] == "text/event-stream"
    assert headers["cache-control"] == "no-cache"
    assert headers["transfer-encoding"] == "chunked" and "content-length" not in headers
    assert headers["x-request-id"] == "my-id.1"
    for name in ("id", "created", "model", "object"):
        assert len({e[name] for e in events}) == 1
    assert events[0]["object"] == "text_completion"
    choices = [e["choices"] for e in events]
    assert all(len(c) == 1 for c in choices), "a chunk without a choice that nobody asked for"
    assert all(c[0]["text"] or c[0]["finish_reason"] for c in choices), "a chunk that says nothing"
    assert [c[0]["finish_reason"] for c in choices] == [None] * (len(choices) - 1) + ["length"]
    assert not any("usage" in e for e in events)
    assert "".join(c[0]["text"] for c in choices) == server.text(STORY, max_tokens=32)


def test_usage_comes_last_and_only_when_asked_for(server):
    _, events = stream(server, STORY, max_tokens=8, stream_options={"include_usage": True})
    assert events[-1]["choices"] == []
    assert [e["usage"] for e in events[:-1]] == [None] * (len(events) - 1)
    plain = server.complete(STORY, max_tokens=8)["usage"]
    usage = events[-1]["usage"]
    assert {k: usage[k] for k in ("prompt_tokens", "completion_tokens", "total_tokens")} == \
           {k: plain[k] for k in ("prompt_tokens", "completion_tokens", "total_tokens")}


def test_every_choice_of_a_stream_ends_once(server):
    _, events = stream(server, [STORY, "The wolf"], n=2, max_tokens=12, temperature=1, seed=3)
    ends = [e["choices"][0]["index"] for e in events if e["choices"][0]["finish_reason"]]
    assert sorted(ends) == [0, 1, 2, 3]
    plain = server.complete([STORY, "The wolf"], n=2, max_tokens=12, temperature=1, seed=3)
    for choice in plain["choices"]:
        text = "".join(e["choices"][0]["text"] for e in events
                       if e["choices"][0]["index"] == choice["index"])
        assert text == choice["text"]


def test_a_character_is_never_cut_between_chunks(server):
    for length in range(1, 12):
        fields = {"max_tokens": length, "temperature": 2, "seed": 9, "ignore_eos": True}
        _, events = stream(server, "🦊🧙👍昔々", **fields)
        text = "".join(e["choices"][0]["text"] for e in events)
        assert text == server.text("🦊🧙👍昔々", **fields)


# ---- what lm-eval needs ----


def score(server, prompts):
    reply = server.complete(prompts, max_tokens=1, logprobs=1, echo=True, seed=1234)
    choices = reply["choices"]
    assert [c["index"] for c in choices] == list(range(len(prompts)))
    return [c["logprobs"] for c in choices]


def test_loglikelihood_scores_every_prompt_token(server):
    prompts = [server.tokenize(t, special=False)
               for t in (LONG, STORY, "The wolf ate the seven little goats.")]
    first, second = score(server, prompts), score(server, prompts)
    for ids, logprobs in zip(prompts, first):
        assert {len(v) for v in logprobs.values()} == {len(ids) + 1}
        values, tops = logprobs["token_logprobs"], logprobs["top_logprobs"]
        assert values[0] is None and tops[0] is None
        for token, value, top in zip(logprobs["tokens"][1:], values[1:], tops[1:]):
            assert value <= 0 and value in top.values() and 1 <= len(top) <= 2
            assert value == top.get(token, value)
        assert values[-1] == max(tops[-1].values()), "the continuation is greedy"
    assert first == second, "the prefix cache changes a score"


def test_scores_are_the_same_after_the_prompt_was_cached(server):
    ids = server.tokenize(LONG + "cached", special=False)
    for _ in range(2):
        server.complete(ids, max_tokens=1)
    cached = server.complete(ids, max_tokens=1)["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert cached > 0
    after = score(server, [ids])
    assert after == score(server, [ids])
    salted = server.complete(ids, max_tokens=1, logprobs=1, echo=True, cache_salt="fresh")
    assert salted["choices"][0]["logprobs"] == after[0]


def test_a_greedy_continuation_is_recognised_by_equality(server):
    context = server.tokenize(STORY)
    follow = server.complete(context, max_tokens=3, return_token_ids=True)["choices"][0]["token_ids"]
    (logprobs,) = score(server, [context + follow])
    for i in range(len(context), len(context) + 3):
        assert logprobs["token_logprobs"][i] == max(logprobs["top_logprobs"][i].values())


def test_a_prompt_is_scored_without_generating(server):
    reply = server.complete(STORY, max_tokens=0, echo=True, logprobs=0)
    choice, n_prompt = reply["choices"][0], reply["usage"]["prompt_tokens"]
    assert choice["text"] == STORY and reply["usage"]["completion_tokens"] == 0
    assert len(choice["logprobs"]["tokens"]) == n_prompt
    assert all(len(t) == 1 for t in choice["logprobs"]["top_logprobs"][1:])


def test_tokens_as_ids_are_lossless(server):
    choice = server.complete("🦊", max_tokens=8, logprobs=1, echo=True, return_token_ids=True,
                             return_tokens_as_token_ids=True)["choices"][0]
    ids = choice["prompt_token_ids"] + choice["token_ids"]
    assert choice["logprobs"]["tokens"] == [f"token_id:{i}" for i in ids]


# ---- tokens ----


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_tokens_become_the_text_again(server, text):
    reply = server.post("/tokenize", {"prompt": text, "return_token_strs": True}).json()
    assert reply["count"] == len(reply["tokens"]) == len(reply["token_strs"])
    assert reply["max_model_len"] == 2048
    plain = server.post("/tokenize", {"content": text}).json()
    assert set(plain) == {"tokens"}
    assert reply["tokens"] == [1] + plain["tokens"], "BOS by default in one form only"
    assert server.post("/tokenize", {"content": text, "add_special": True}).json()["tokens"] == \
           reply["tokens"]
    for ids in (reply["tokens"], plain["tokens"]):
        back = server.post("/detokenize", {"tokens": ids}).json()
        assert back == {"prompt": text, "content": text}


def test_pieces_are_text_or_bytes(server):
    tokens = server.post("/tokenize", {"content": STORY + " 🦊", "with_pieces": True}).json()["tokens"]
    raw = b"".join(t["piece"].encode() if isinstance(t["piece"], str) else bytes(t["piece"])
                   for t in tokens)
    assert raw.decode().strip() == STORY + " 🦊"
    assert [t["id"] for t in tokens] == server.tokenize(STORY + " 🦊", special=False)


def test_ids_are_taken_as_they_are(server):
    ids = server.tokenize(STORY)
    by_text = server.complete(STORY, return_token_ids=True)
    by_ids = server.complete(ids, return_token_ids=True)
    assert by_text["choices"][0]["prompt_token_ids"] == ids == by_ids["choices"][0]["prompt_token_ids"]
    assert by_text["choices"][0]["text"] == by_ids["choices"][0]["text"]
    assert server.complete(ids[1:])["usage"]["prompt_tokens"] == len(ids) - 1


def test_token_ids_of_a_stream_are_those_of_a_document(server):
    fields = {"max_tokens": 24, "return_token_ids": True}
    plain = server.complete(STORY, **fields)["choices"][0]
    _, events = stream(server, STORY, **fields)
    choices = [e["choices"][0] for e in events]
    assert [i for c in choices for i in c["token_ids"]] == plain["token_ids"]
    assert choices[0]["prompt_token_ids"] == plain["prompt_token_ids"]
    assert not any("prompt_token_ids" in c for c in choices[1:])
    assert len(plain["token_ids"]) == 24


def test_a_truncated_prompt_keeps_its_end(server):
    ids = server.tokenize(LONG)
    choice = server.complete(LONG, truncate_prompt_tokens=10, return_token_ids=True)["choices"][0]
    assert choice["prompt_token_ids"] == [1] + ids[-9:]
    reply = server.complete([5] * 5000, truncate_prompt_tokens=-1, max_tokens=8)
    assert reply["usage"]["prompt_tokens"] == 2048 - 8


# ---- the prefix cache ----


def cached_tokens(reply):
    return reply["usage"]["prompt_tokens_details"]["cached_tokens"]


def test_a_repeated_prompt_is_cached_and_gives_the_same_text(server):
    prompt = "A repeated prompt. " + LONG
    first = server.complete(prompt, max_tokens=40)
    second = server.complete(prompt, max_tokens=40)
    assert cached_tokens(first) == 0
    assert 0 < cached_tokens(second) < second["usage"]["prompt_tokens"]
    assert first["choices"][0]["text"] == second["choices"][0]["text"]
    longer = server.complete(prompt + first["choices"][0]["text"] + " And then", max_tokens=4)
    assert cached_tokens(longer) >= cached_tokens(second)


def test_a_salt_separates_tenants(server):
    prompt = "A salted prompt. " + LONG
    texts = set()
    for salt, is_cached in (("a", False), ("a", True), ("b", False), (None, False), ("b", True)):
        reply = server.complete(prompt, max_tokens=8, cache_salt=salt)
        assert (cached_tokens(reply) > 0) == is_cached, salt
        texts.add(reply["choices"][0]["text"])
    assert len(texts) == 1


# ---- ends and sampling ----


def ids_and_text(server, **fields):
    choice = server.complete(STORY, max_tokens=24, return_token_ids=True, **fields)["choices"][0]
    return choice["token_ids"], choice["text"], choice


def test_a_stop_id_ends_the_text(server):
    ids, text, _ = ids_and_text(server)
    stop = ids[6]
    first = ids.index(stop)
    cut, cut_text, choice = ids_and_text(server, stop_token_ids=[stop])
    assert cut == ids[:first + 1]
    assert choice["finish_reason"] == "stop" and choice["stop_reason"] == stop
    assert text.startswith(cut_text)


def test_min_tokens_holds_off_a_stop_id(server):
    stop = ids_and_text(server)[0][2]
    ids, _, choice = ids_and_text(server, stop_token_ids=[stop], min_tokens=24)
    assert len(ids) == 24 and stop not in ids[:23]
    assert choice["finish_reason"] in ("length", "stop")


def test_a_forced_token_is_all_that_comes(server):
    (fox,) = server.tokenize("fox", special=False)[-1:]
    ids, _, _ = ids_and_text(server, logit_bias={str(fox): 100})
    assert ids == [fox] * 24
    first = ids_and_text(server)[0][0]
    assert ids_and_text(server, logit_bias={str(first): -100})[0][0] != first


def test_eos_ends_unless_it_is_ignored_or_too_early(server):
    eos = {"logit_bias": {"2": 100}}
    ids, text, choice = ids_and_text(server, **eos)
    assert ids == [2] and text == "" and choice["finish_reason"] == "stop"
    ids, _, choice = ids_and_text(server, ignore_eos=True, **eos)
    assert ids == [2] * 24 and choice["finish_reason"] == "length"
    ids, _, choice = ids_and_text(server, min_tokens=5, **eos)
    assert len(ids) == 6 and ids[5] == 2 and 2 not in ids[:5]
    text = ids_and_text(server, ignore_eos=True, skip_special_tokens=False, **eos)[1]
    assert text == "</s>" * 24


def test_a_stop_string_can_be_kept(server):
    _, text, _ = ids_and_text(server)
    stop = text[10:14]
    end = text.index(stop)
    assert ids_and_text(server, stop=stop)[1] == text[:end]
    assert ids_and_text(server, stop=stop, include_stop_str_in_output=True)[1] == text[:end + 4]
    assert ids_and_text(server, stop=text[:3])[1] == ""


def test_a_cut_text_counts_the_tokens_that_were_made(server):
    ids, text, _ = ids_and_text(server)
    reply = server.complete(STORY, max_tokens=24, stop=text[10:14], return_token_ids=True)
    made = reply["choices"][0]["token_ids"]
    assert made == ids[:len(made)] and reply["usage"]["completion_tokens"] == len(made)


def test_likeliest_only_settings_are_greedy(server):
    expected = server.text(STORY)
    for fields in ({"temperature": 1, "top_k": 1}, {"temperature": 1, "top_p": 0},
                   {"temperature": 1, "min_p": 1}):
        assert server.text(STORY, **fields) == expected


def test_penalties_change_a_text(server):
    ids, text, _ = ids_and_text(server)
    assert len(ids) > len(set(ids)), "the text repeats nothing that a penalty could prevent"
    for fields in ({"presence_penalty": 2}, {"frequency_penalty": 2}, {"repetition_penalty": 10}):
        assert ids_and_text(server, **fields)[1] != text


def test_a_request_id_comes_back_if_it_is_safe(server):
    for wanted, is_safe in (("a-b_c.d:1", True), ("a b", False), ("x\r\nY: z", False)):
        reply = server.post("/v1/completions", {"prompt": "a", "max_tokens": 1, "request_id": wanted})
        assert reply.status_code == 200
        assert (reply.headers["X-Request-Id"] == wanted) == is_safe
        assert "Y" not in reply.headers
