"""The official client of OpenAI against the server: what its users see."""

from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from server import N_RANKS, Server, limit, wait_until

STORY = "Once upon a time"
LONG_TOKENS = 2000  # of a request that shall still run when the next one comes
PROMPTS = {
    "ascii": "The king said to his daughter:",
    "emoji": "The 🦊 and the 🧙\u200d♂️ went 👍🏽",
    "cjk": "昔々あるところに、老人と 山",
    "accents": "Il était une fois à Köln, naïve façade —",
    "spaces": "  two  spaces\n\n\tand a tab ",
}


def client_of(server, key="unused"):
    return openai.OpenAI(base_url=server.url + "/v1", api_key=key, max_retries=0,
                         timeout=limit(60))


@pytest.fixture(scope="module")
def client(server):
    return client_of(server)


def complete(client, prompt=STORY, **fields):
    """A plain completion at temperature 0; unknown names go into the body as they are."""
    fields = {"model": "teller", "temperature": 0, "max_tokens": 24, **fields}
    return client.completions.create(prompt=prompt, **fields)


def collect(client, prompt=STORY, **fields):
    """A streamed completion: texts, finish reasons, and stop reasons by index; the usage; all chunks."""
    texts, reasons, stops, usage, chunks = {}, {}, {}, None, []
    for chunk in complete(client, prompt, stream=True, stream_options={"include_usage": True},
                          **fields):
        chunks.append(chunk)
        usage = chunk.usage or usage
        for choice in chunk.choices:
            assert choice.index not in reasons, "a chunk after the last one of its choice"
            texts[choice.index] = texts.get(choice.index, "") + choice.text
            if choice.finish_reason is not None:
                reasons[choice.index] = choice.finish_reason
                stops[choice.index] = choice.stop_reason
    return texts, reasons, stops, usage, chunks


# ---- text ----


def test_a_completion_has_the_documented_shape(client):
    reply = complete(client)
    choice, usage = reply.choices[0], reply.usage
    assert reply.object == "text_completion"
    assert reply.id.startswith("cmpl-")
    assert reply.model == "teller"
    assert choice.text and choice.index == 0 and choice.finish_reason == "length"
    assert choice.logprobs is None
    assert usage.completion_tokens == 24
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


@pytest.mark.parametrize("name", PROMPTS)
@pytest.mark.parametrize("temperature", [0, 1.5])
def test_a_stream_gives_the_text_and_usage_of_a_plain_completion(client, name, temperature):
    fields = {"temperature": temperature, "seed": 11, "max_tokens": 48}
    plain = complete(client, PROMPTS[name], **fields)
    texts, reasons, _, usage, _ = collect(client, PROMPTS[name], **fields)
    assert texts == {0: plain.choices[0].text}
    assert reasons == {0: plain.choices[0].finish_reason}
    assert usage.prompt_tokens == plain.usage.prompt_tokens
    assert usage.completion_tokens == plain.usage.completion_tokens


@pytest.mark.parametrize("name", PROMPTS)
def test_an_echoed_prompt_is_the_prompt_byte_for_byte(client, name):
    plain = complete(client, PROMPTS[name])
    echoed = complete(client, PROMPTS[name], echo=True)
    assert echoed.choices[0].text == PROMPTS[name] + plain.choices[0].text
    texts, *_ = collect(client, PROMPTS[name], echo=True)
    assert texts[0] == echoed.choices[0].text


def test_two_choices_of_a_seed_differ_and_repeat(client):
    fields = {"n": 2, "temperature": 1, "seed": 5, "max_tokens": 32}
    first = complete(client, **fields)
    second = complete(client, **fields)
    texts, reasons, _, usage, _ = collect(client, **fields)
    assert [c.index for c in first.choices] == [0, 1]
    assert first.choices[0].text != first.choices[1].text
    assert [c.text for c in first.choices] == [c.text for c in second.choices]
    assert texts == {c.index: c.text for c in first.choices}
    assert set(reasons) == {0, 1}
    assert usage.completion_tokens == first.usage.completion_tokens
    assert first.usage.prompt_tokens == complete(client).usage.prompt_tokens


def test_choices_come_prompt_by_prompt(client):
    prompts = [STORY, PROMPTS["cjk"], "The wolf"]
    alone = [complete(client, p) for p in prompts]
    reply = complete(client, prompts, n=2)
    texts, *_ = collect(client, prompts, n=2)
    assert [c.index for c in reply.choices] == list(range(6))
    expected = [a.choices[0].text for a in alone for _ in range(2)]
    assert [c.text for c in reply.choices] == expected
    assert texts == dict(enumerate(expected))
    assert reply.usage.prompt_tokens == sum(a.usage.prompt_tokens for a in alone)
    assert reply.usage.completion_tokens == 2 * sum(a.usage.completion_tokens for a in alone)


def test_a_seed_gives_one_text_alone_and_in_a_crowd(client):
    fields = {"temperature": 1, "seed": 1234, "max_tokens": 64}
    alone = complete(client, **fields).choices[0].text
    with ThreadPoolExecutor(12) as pool:
        crowd = [pool.submit(complete, client, PROMPTS["ascii"], temperature=1, max_tokens=64)
                 for _ in range(9)]
        same = [pool.submit(complete, client, **fields) for _ in range(3)]
        assert {f.result().choices[0].text for f in same} == {alone}
        assert len({f.result().choices[0].text for f in crowd}) > 1
    assert complete(client, **{**fields, "seed": 1235}).choices[0].text != alone


def test_without_a_seed_texts_differ(client):
    texts = {complete(client, temperature=1.5, max_tokens=32).choices[0].text for _ in range(3)}
    assert len(texts) > 1


# ---- logprobs ----


def check_logprobs(logprobs, n_tokens, n_top):
    for part in (logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs,
                 logprobs.text_offset):
        assert len(part) == n_tokens
    for token, value, top in zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs):
        if value is None:
            assert top is None
            continue
        assert value <= 0
        assert value in top.values(), (token, value, top)
        assert n_top <= len(top) <= n_top + 1


def test_logprobs_hold_five_candidates_and_the_offsets_of_tokens(client):
    choice = complete(client, logprobs=5).choices[0]
    logprobs = choice.logprobs
    check_logprobs(logprobs, 24, 5)
    assert "".join(logprobs.tokens) == choice.text
    for i, (token, offset) in enumerate(zip(logprobs.tokens, logprobs.text_offset)):
        assert choice.text[offset:offset + len(token)] == token
        assert logprobs.token_logprobs[i] == max(logprobs.top_logprobs[i].values())
        assert logprobs.top_logprobs[i][token] == logprobs.token_logprobs[i]


def test_logprobs_of_a_stream_are_those_of_a_plain_completion(client):
    plain = complete(client, PROMPTS["accents"], logprobs=3, echo=True).choices[0].logprobs
    *_, chunks = collect(client, PROMPTS["accents"], logprobs=3, echo=True)
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        joined = [x for chunk in chunks for c in chunk.choices
                  if c.logprobs for x in getattr(c.logprobs, name)]
        assert joined == getattr(plain, name), name


def test_an_echo_with_logprobs_scores_the_prompt(client):
    plain = complete(client, logprobs=5)
    choice = complete(client, logprobs=5, echo=True).choices[0]
    n_prompt = plain.usage.prompt_tokens
    check_logprobs(choice.logprobs, n_prompt + 24, 5)
    assert choice.logprobs.token_logprobs[0] is None
    assert None not in choice.logprobs.token_logprobs[1:]
    assert choice.logprobs.tokens[n_prompt:] == plain.choices[0].logprobs.tokens
    assert "".join(choice.logprobs.tokens[1:]) == choice.text  # the first is BOS, which has no text
    for token, offset in zip(choice.logprobs.tokens[1:], choice.logprobs.text_offset[1:]):
        assert choice.text[offset:offset + len(token)] == token


# ---- stop strings ----


def find_stops(client, n_tokens):
    """Strings that begin inside one token and end inside another, `n_tokens` in all, of a known text."""
    choice = complete(client, logprobs=0, max_tokens=48).choices[0]
    tokens = choice.logprobs.tokens
    found = []
    for i in range(4, len(tokens) - n_tokens):
        span = tokens[i:i + n_tokens]
        if len(span[0]) < 2 or len(span[-1]) < 2:
            continue
        stop = span[0][-1] + "".join(span[1:-1]) + span[-1][:-1]
        if choice.text.index(stop) == choice.logprobs.text_offset[i] + len(span[0]) - 1:
            found.append(stop)
    assert found
    return choice.text, found[:4]


@pytest.mark.parametrize("n_tokens", [2, 3, 4])
def test_a_stop_string_over_token_borders_cuts_the_text_before_it(client, n_tokens):
    text, stops = find_stops(client, n_tokens)
    for stop in stops:
        reply = complete(client, stop=stop, max_tokens=48)
        choice = reply.choices[0]
        assert choice.text == text[:text.index(stop)]
        assert choice.finish_reason == "stop"
        assert choice.stop_reason == stop
        texts, reasons, reported, usage, _ = collect(client, stop=stop, max_tokens=48)
        assert texts == {0: choice.text}
        assert reasons == {0: "stop"} and reported == {0: stop}
        assert usage.completion_tokens == reply.usage.completion_tokens


def test_a_stop_string_that_only_begins_holds_nothing_back_in_the_end(client):
    text, stops = find_stops(client, 3)
    texts, reasons, *_ = collect(client, stop=[stops[0] + "\u2603", text[-1] + "\u2603"],
                                 max_tokens=48)
    assert texts == {0: text} and reasons == {0: "length"}


def test_the_earliest_of_several_stop_strings_counts(client):
    text, stops = find_stops(client, 2)
    reply = complete(client, stop=[stops[1], "\u2603", stops[0]], max_tokens=48).choices[0]
    assert reply.text == text[:text.index(stops[0])]
    assert reply.stop_reason == stops[0]


# ---- models and errors ----


def test_models_are_listed_and_retrieved(client):
    models = client.models.list().data
    assert [m.id for m in models] == ["teller", "storyteller"]
    model = client.models.retrieve("storyteller")
    assert model.object == "model" and model.created == models[0].created
    assert model.max_model_len == 2048
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nobody")


def test_a_bad_value_raises_bad_request(client):
    with pytest.raises(openai.BadRequestError) as raised:
        complete(client, temperature=3)
    assert raised.value.param == "temperature"
    assert raised.value.type == "invalid_request_error"
    with pytest.raises(openai.BadRequestError) as raised:
        complete(client, max_tokens=5000)
    assert raised.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError):
        complete(client, max_tokens=5000, stream=True)


def test_an_unknown_model_raises_not_found(client):
    with pytest.raises(openai.NotFoundError) as raised:
        complete(client, model="gpt-4")
    assert raised.value.code == "model_not_found" and raised.value.param == "model"


def test_a_wrong_key_raises_authentication_error():
    with Server("--served-model-name", "teller", env={"PIKV_API_KEY": "right,other"}) as server:
        with pytest.raises(openai.AuthenticationError) as raised:
            complete(client_of(server, "wrong"))
        assert raised.value.code == "invalid_api_key"
        assert complete(client_of(server, "right")).choices[0].text
        assert client_of(server, "other").models.list().data


def test_a_full_queue_raises_rate_limit_error():
    with Server("--served-model-name", "teller", "--max-num-seqs", 1,
                "--max-num-queued-reqs", 1) as server:
        client = client_of(server)
        stream = complete(client, n=2, max_tokens=LONG_TOKENS, stream=True,
                          extra_body={"ignore_eos": True})
        next(iter(stream))
        with pytest.raises(openai.RateLimitError) as raised:
            complete(client)
        assert raised.value.code == "queue_full"
        stream.close()
        server.wait_idle()
        assert complete(client).choices[0].text


def test_a_draining_server_raises_internal_server_error():
    with Server("--served-model-name", "teller") as server:
        client = client_of(server)
        stream = complete(client, n=4, max_tokens=400, stream=True,
                          extra_body={"ignore_eos": True})
        chunks = iter(stream)
        next(chunks)
        server.terminate()

        def refusal():
            try:
                complete(client, max_tokens=1)
            except openai.InternalServerError as error:
                return error
            return None

        error = wait_until(refusal, 10, "new requests are refused")
        assert error.status_code == 503 and error.code == "draining"
        reasons = [c.finish_reason for chunk in chunks for c in chunk.choices if c.finish_reason]
        assert reasons == ["length"] * 4


# ---- methods of the KV cache ----

KV = [{"routing": "full", "compression": "none"}, {"routing": "topk", "routing_k": 0.25},
      {"compression": "int4"}, {"routing": "certified", "routing_eps": 0.2, "compression": "fp8"}]


def complete_with(client, kv, salt):
    """A long prompt; no other salt shares its pages."""
    return complete(client, PROMPTS["ascii"] * 20, logprobs=0,
                    extra_body={"kv": kv, "cache_salt": salt})


def test_requests_choose_their_methods_side_by_side():
    with Server("--served-model-name", "teller", "--kv-request-methods", "--kv-page-tokens", 16,
                "--kv-window", 16) as server:
        client = client_of(server)
        alone = [complete_with(client, kv, f"alone-{i}") for i, kv in enumerate(KV)]
        with ThreadPoolExecutor(8) as pool:
            crowd = [pool.submit(complete_with, client, kv, f"crowd-{i}-{k}")
                     for k in range(2) for i, kv in enumerate(KV)]
            crowd = [f.result() for f in crowd]
    for i, reply in enumerate(crowd):
        expected = alone[i % len(KV)]
        assert reply.choices[0].text == expected.choices[0].text
        if int(N_RANKS) == 1:  # over ranks the last digits depend on who reads the recent tokens
            assert reply.choices[0].logprobs == expected.choices[0].logprobs
            assert reply.usage.kv == expected.usage.kv
        assert reply.usage.kv["methods"].items() >= KV[i % len(KV)].items()
    assert len({str(a.choices[0].logprobs.token_logprobs) for a in alone}) == len(KV)


def test_a_stream_tells_what_its_methods_cost(client):
    *_, usage, chunks = collect(client, extra_body={"kv": {}})
    assert usage.kv["resident_bytes"] == usage.kv["uncompressed_bytes"] > 0
    assert usage.kv["methods"] == {"routing": "full", "scheduling": "none", "compression": "none",
                                   "rewrite": "none"}
    assert [c.usage for c in chunks[:-1]] == [None] * (len(chunks) - 1)


def test_methods_that_a_server_lacks_raise_bad_request(client):
    with pytest.raises(openai.BadRequestError) as raised:
        complete(client, extra_body={"kv": {"routing": "topk"}})
    assert raised.value.param == "kv.routing" and raised.value.code is None
