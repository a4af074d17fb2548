"""The official client of OpenAI chats with the server: what its users see. The model tells stories whatever it is
asked; what is looked at is the form."""

import openai
import pytest

from server import limit

MESSAGES = [{"role": "system", "content": "You tell stories."},
            {"role": "user", "content": "Tell me of the 🦊 and the king."}]


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=server.url + "/v1", api_key="unused", max_retries=0, timeout=limit(60))


def chat(client, messages=None, **fields):
    fields = {"model": "teller", "temperature": 0, "max_completion_tokens": 24, **fields}
    return client.chat.completions.create(messages=messages or MESSAGES, **fields)


def collect(client, **fields):
    """A streamed chat: texts, finish reasons and logprobs by index; the usage."""
    texts, reasons, items, usage = {}, {}, {}, None
    for chunk in chat(client, stream=True, stream_options={"include_usage": True}, **fields):
        assert chunk.object == "chat.completion.chunk" and chunk.id.startswith("chatcmpl-")
        usage = chunk.usage or usage
        for choice in chunk.choices:
            assert choice.index not in reasons, "a chunk after the last one of its choice"
            if choice.index not in texts:
                assert choice.delta.role == "assistant" and choice.delta.content == ""
                texts[choice.index] = ""
            else:
                assert choice.delta.role is None
            texts[choice.index] += choice.delta.content or ""
            if choice.logprobs:
                items.setdefault(choice.index, []).extend(choice.logprobs.content)
            if choice.finish_reason is not None:
                assert choice.delta.content is None
                reasons[choice.index] = choice.finish_reason
    return texts, reasons, items, usage


def test_a_chat_has_the_documented_shape(client):
    reply = chat(client)
    assert reply.object == "chat.completion" and reply.id.startswith("chatcmpl-")
    assert reply.model == "teller" and reply.system_fingerprint.startswith("fp_")
    (choice,) = reply.choices
    assert choice.index == 0 and choice.finish_reason == "length" and choice.logprobs is None
    assert choice.message.role == "assistant" and choice.message.content
    assert choice.message.refusal is None and choice.message.tool_calls is None
    usage = reply.usage
    assert usage.completion_tokens == 24
    assert usage.total_tokens == usage.prompt_tokens + 24


@pytest.mark.parametrize("fields", [
    {}, {"n": 3, "temperature": 1, "seed": 7}, {"stop": [" a", "e"], "max_completion_tokens": 60},
    {"logprobs": True, "top_logprobs": 4}, {"max_tokens": 5, "max_completion_tokens": openai.NOT_GIVEN},
], ids=["plain", "three", "stop", "logprobs", "max_tokens"])
def test_a_stream_is_the_document(client, fields):
    reply = chat(client, **fields)
    texts, reasons, items, usage = collect(client, **fields)
    assert texts == {c.index: c.message.content for c in reply.choices}
    assert reasons == {c.index: c.finish_reason for c in reply.choices}
    assert items == {c.index: c.logprobs.content for c in reply.choices if c.logprobs}
    assert (usage.prompt_tokens, usage.completion_tokens) == \
        (reply.usage.prompt_tokens, reply.usage.completion_tokens)


def test_logprobs_are_typed(client):
    items = chat(client, logprobs=True, top_logprobs=2).choices[0].logprobs.content
    assert len(items) == 24
    for item in items:
        assert item.logprob <= 0 and bytes(item.bytes).decode() == item.token
        assert len(item.top_logprobs) == 2
        assert item.top_logprobs[0].token == item.token, "the likeliest was taken"
        assert item.top_logprobs[0].logprob == item.logprob


def test_the_clients_own_stream_helper_understands_it(client):
    stop = chat(client).choices[0].message.content[16:19]
    fields = {"stop": [stop], "logprobs": True}  # it raises when a length ends a text
    with client.chat.completions.stream(model="teller", messages=MESSAGES, temperature=0,
                                        max_completion_tokens=24, **fields) as events:
        deltas = [e.delta for e in events if e.type == "content.delta"]
        final = events.get_final_completion().choices[0]
    expected = chat(client, **fields).choices[0]
    assert "".join(deltas) == final.message.content == expected.message.content
    assert final.finish_reason == expected.finish_reason == "stop"
    assert final.logprobs.content == expected.logprobs.content


def test_an_answer_can_be_asked_back(client):
    first = chat(client).choices[0].message
    messages = [*MESSAGES, first, {"role": "user", "content": "And then?"}]
    reply = chat(client, messages)
    assert reply.choices[0].message.content
    assert reply.usage.prompt_tokens_details.cached_tokens >= 0


def test_a_bad_message_raises_bad_request(client):
    for messages, param, code in (
            ([{"role": "bot", "content": "a"}], "messages[0].role", None),
            ([*MESSAGES, {"role": "assistant", "content": None}], "messages[2].content", None),
            ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
             "messages[0].content[0]", "unsupported_parameter")):
        with pytest.raises(openai.BadRequestError) as raised:
            chat(client, messages)
        assert raised.value.param == param and raised.value.code == code


def test_tools_raise_bad_request_unless_they_are_switched_off(client):
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    with pytest.raises(openai.BadRequestError) as raised:
        chat(client, tools=tools)
    assert raised.value.param == "tools" and raised.value.code == "unsupported_parameter"
    assert chat(client, tools=tools, tool_choice="none").choices[0].message.content == \
        chat(client).choices[0].message.content


def test_a_closed_stream_ends_the_chat(server, client):
    stream = chat(client, stream=True, max_completion_tokens=1500, extra_body={"ignore_eos": True})
    next(iter(stream))
    stream.close()
    server.wait_idle()
