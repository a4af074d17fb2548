"""OpenAI's client for Node, replayed: the requests that version 5.19.0 sends, and its rules for reading the answers.

Node is not needed. Headers and bodies are what the client makes of a call; `Stream` and `raise_for` restate how it
reads a stream and an error, so that an answer which it would not understand fails here.
"""

import json

import pytest

from server import limit
from wire import Connection

HEADERS = ("Accept: application/json", "Content-Type: application/json", "User-Agent: OpenAI/JS 5.19.0",
           "X-Stainless-Retry-Count: 0", "X-Stainless-Timeout: 600", "X-Stainless-Lang: js",
           "X-Stainless-Package-Version: 5.19.0", "X-Stainless-OS: Linux", "X-Stainless-Arch: x64",
           "X-Stainless-Runtime: node", "X-Stainless-Runtime-Version: v20.20.2", "Authorization: Bearer none",
           "accept-language: *", "sec-fetch-mode: cors", "accept-encoding: gzip, deflate")


class ApiError(Exception):
    def __init__(self, error):
        super().__init__(error["message"])
        self.code, self.param, self.type = error.get("code"), error.get("param"), error.get("type")


class Stream:
    """Events are lines up to an empty one; `data` lines are joined; a document with `error` is thrown; what
    follows [DONE] is dropped; another event name than none is handed on unread."""

    def __init__(self, pieces):
        self.pieces = pieces

    def _lines(self):
        rest = b""
        for piece in self.pieces:
            *lines, rest = (rest + piece).replace(b"\r\n", b"\n").split(b"\n")
            yield from (line.decode("utf-8") for line in lines)
        assert rest == b"", "the stream ends within a line"

    def __iter__(self):
        data, event, is_done = [], None, False
        for line in self._lines():
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if line == "" and (data or event):
                if not is_done and data[0].startswith("[DONE]"):
                    is_done = True
                elif not is_done:
                    assert event is None
                    document = json.loads("\n".join(data))
                    if document.get("error"):
                        raise ApiError(document["error"])
                    yield document
                data, event = [], None
            elif name == "event":
                event = value
            elif name == "data":
                data.append(value)
        assert is_done and not data


def call(connection, method, path, body=None):
    """The document of a plain call."""
    text = json.dumps(body, separators=(",", ":")).encode() if body is not None else b""
    reply = connection.ask(method, path, text, HEADERS)
    assert reply.headers["content-type"] == "application/json"  # or it is read as text
    document = reply.json()
    if reply.status >= 400:
        raise ApiError(document["error"])  # an object; its code, param and type become the error's
    assert reply.headers["x-request-id"] if path.endswith("completions") else True
    return document


def pieces(connection):
    while piece := connection.read_chunk():
        yield piece


def stream(connection, body, path=b"/v1/completions"):
    text = json.dumps({**body, "stream": True}, separators=(",", ":")).encode()
    connection.send(b"POST " + path + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n" + "\r\n".join(HEADERS).encode() +
                    b"\r\nContent-Length: %d\r\n\r\n%s" % (len(text), text))
    head = connection.read_head()
    assert head.status == 200 and head.headers["content-type"].startswith("text/event-stream")
    assert head.headers["transfer-encoding"] == "chunked"
    return Stream(pieces(connection))


@pytest.fixture
def node(server):
    with Connection(server.port, limit(30)) as connection:
        yield connection


PLAIN = {"model": "teller", "prompt": "Once upon a time", "max_tokens": 12, "temperature": 0}


def test_a_completion(server, node):
    reply = call(node, "POST", "/v1/completions", PLAIN)
    assert reply["object"] == "text_completion" and reply["usage"]["completion_tokens"] == 12
    assert reply["choices"][0]["text"] == server.text("Once upon a time", max_tokens=12)


def test_a_stream_of_two_prompts(server, node):
    prompts = ["Once upon a time", "Il était une fois à Köln 🦊"]
    texts, reasons, usage = ["", ""], {}, None
    for chunk in stream(node, {**PLAIN, "prompt": prompts, "stream_options": {"include_usage": True}}):
        assert chunk["object"] == "text_completion"
        for choice in chunk["choices"]:
            texts[choice["index"]] += choice["text"]
            reasons[choice["index"]] = choice["finish_reason"]
        usage = chunk.get("usage") or usage
    assert texts == [server.text(prompt, max_tokens=12) for prompt in prompts]
    assert reasons == {0: "length", 1: "length"} and usage["completion_tokens"] == 24
    assert call(node, "GET", "/v1/models")["data"][0]["id"] == "teller"  # the connection is used again


CHAT = {"model": "teller", "messages": [{"role": "user", "content": "Once 🦊"}], "max_completion_tokens": 12,
        "temperature": 0}


def test_a_chat_and_its_stream(server, node):
    """The client's runner adds deltas up: the role once, content piece by piece."""
    reply = call(node, "POST", "/v1/chat/completions", CHAT)
    assert reply["object"] == "chat.completion"
    message, reason = {}, None
    for chunk in stream(node, CHAT, b"/v1/chat/completions"):
        assert chunk["object"] == "chat.completion.chunk"
        (choice,) = chunk["choices"]
        assert reason is None and choice["index"] == 0
        for key, value in choice["delta"].items():
            message[key] = message[key] + value if isinstance(message.get(key), str) else value
        reason = choice["finish_reason"]
    assert message == reply["choices"][0]["message"] and reason == reply["choices"][0]["finish_reason"]


def test_fields_that_are_not_set_are_not_sent_and_null_is_default(server, node):
    body = {**PLAIN, "best_of": None, "echo": None, "logprobs": None, "stop": None, "n": None, "suffix": None,
            "logit_bias": None, "user": "somebody", "seed": None, "stream_options": None}
    assert call(node, "POST", "/v1/completions", body)["choices"][0]["text"] == \
        server.text("Once upon a time", max_tokens=12)


def test_a_list_of_models_has_no_next_page(node):
    models = call(node, "GET", "/v1/models")  # its iterator ends unless there is has_more
    assert [model["id"] for model in models["data"]] == ["teller", "storyteller"] and "has_more" not in models
    assert call(node, "GET", "/v1/models/teller")["id"] == "teller"


@pytest.mark.parametrize("fields, code, param", [
    ({"max_tokens": -1}, None, "max_tokens"), ({"model": "nobody"}, "model_not_found", "model"),
    ({"suffix": "x"}, "unsupported_parameter", "suffix")])  # of completions; of chats in test_openai_chat.py
def test_an_error_has_what_the_client_copies(node, fields, code, param):
    with pytest.raises(ApiError) as raised:
        call(node, "POST", "/v1/completions", {**PLAIN, **fields})
    assert (raised.value.code, raised.value.param) == (code, param)
    assert raised.value.type == "invalid_request_error"
