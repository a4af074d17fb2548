"""Tools with the official client of OpenAI: what its users get of a model that calls, in one document and in a stream."""

import json

import openai
import pytest

from parrot import draw, make_model
from server import Server, limit

WEATHER = {"type": "function", "function": {
    "name": "weather", "description": "of a place",
    "parameters": {"type": "object", "properties": {"place": {"type": "string"}}}}}
MODELS = {
    "hermes": ('Well. <tool_call>\n{"name": "weather", "arguments": {"place": "Köln"}}\n</tool_call>\n<tool_call>'
               '{"name":"g","arguments":{}}</tool_call>', (),
               "Well.", [("weather", {"place": "Köln"}), ("g", {})]),
    "mistral": ('[TOOL_CALLS][{"name": "weather", "arguments": {"place": "Köln"}}]', ("[TOOL_CALLS]",),
                None, [("weather", {"place": "Köln"})]),
    "granite": ("<tool_call> no list", (), "<tool_call> no list", []),
}


@pytest.fixture(scope="module")
def draws():
    with Server() as server:
        yield draw(server)


@pytest.fixture(scope="module", params=MODELS)
def caller(request, draws, tmp_path_factory):
    """A client, what a request must say, and what the model then means."""
    text, special, content, calls = MODELS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    fields = make_model(folder, draws, text, special)
    with Server(folder, "--enable-auto-tool-choice", "--tool-call-parser", request.param) as server:
        client = openai.OpenAI(base_url=server.url + "/v1", api_key="unused", max_retries=0, timeout=limit(60))
        yield client, fields, text, content, calls


def ask(client, fields, **more):
    seed = {"seed": fields["seed"], "temperature": fields["temperature"], "top_p": fields["top_p"]}
    others = {k: v for k, v in fields.items() if k not in seed}
    return client.chat.completions.create(model=client.models.list().data[0].id, extra_body=others, **{
        "messages": [{"role": "user", "content": "How is the weather?"}], "tools": [WEATHER], **seed, **more})


def test_a_document_has_the_calls(caller):
    client, fields, _, content, calls = caller
    (choice,) = ask(client, fields).choices
    assert choice.message.content == content
    assert choice.finish_reason == ("tool_calls" if calls else "stop")
    found = choice.message.tool_calls or []
    assert [(c.function.name, json.loads(c.function.arguments)) for c in found] == calls
    assert all(c.type == "function" and c.id for c in found) and len({c.id for c in found}) == len(calls)


def test_a_stream_has_the_document(caller):
    client, fields, _, content, calls = caller
    text, found, reason = "", {}, None
    for chunk in ask(client, fields, stream=True):
        (choice,) = chunk.choices
        text += choice.delta.content or ""
        for call in choice.delta.tool_calls or []:
            if call.index not in found:
                assert call.id and call.type == "function" and call.function.name
                found[call.index] = [call.function.name, ""]
            else:
                assert call.id is None and call.function.name is None
            found[call.index][1] += call.function.arguments
        assert reason is None, "a chunk behind the last"
        reason = choice.finish_reason
    assert text == (content or "")
    assert [(name, json.loads(arguments)) for name, arguments in found.values()] == calls
    assert list(found) == list(range(len(calls)))
    assert reason == ("tool_calls" if calls else "stop")


def test_scores_are_of_all_tokens(caller):
    client, fields, *_ = caller
    whole = ask(client, fields, logprobs=True).choices[0].logprobs.content
    items = []
    for chunk in ask(client, fields, logprobs=True, stream=True):
        if chunk.choices[0].logprobs:
            items += chunk.choices[0].logprobs.content
    assert items == whole and len(items) > 5


def test_one_call_is_enough_where_asked(caller):
    client, fields, _, _, calls = caller
    (choice,) = ask(client, fields, parallel_tool_calls=False).choices
    assert [c.function.name for c in choice.message.tool_calls or []] == [name for name, _ in calls[:1]]


def test_without_tools_a_text_is_a_text(caller):
    client, fields, text, _, _ = caller
    for more in ({"tools": openai.NOT_GIVEN}, {"tool_choice": "none"}):
        (choice,) = ask(client, {**fields, "skip_special_tokens": False}, **more).choices
        assert choice.message.tool_calls is None and choice.finish_reason == "stop"
        assert choice.message.content.startswith(text)


def test_a_cut_answer_has_what_came(caller):
    client, fields, _, _, calls = caller
    (whole,) = ask(client, fields).choices
    (choice,) = ask(client, fields, max_tokens=30).choices
    assert choice.finish_reason == ("length" if calls else "stop")
    for cut_call, call in zip(choice.message.tool_calls or [], whole.message.tool_calls or []):
        assert call.function.arguments.startswith(cut_call.function.arguments)


def test_nothing_makes_a_model_call(caller):
    client, fields, *_ = caller
    for choice in ("required", {"type": "function", "function": {"name": "weather"}}):
        with pytest.raises(openai.BadRequestError, match="tool_choice"):
            ask(client, fields, tool_choice=choice)
