"""A model whose tokenizer is a tokenizer.json: the default model's weights with the small fixtures of tests/golden."""

import json

import pytest

from server import ROOT, Server, run_command
from wire import Connection, completion_bytes, sse_events

MODEL = ROOT / "models/storyteller"
FIXTURES = ("qwen", "phi", "deepseek3")
BYTES = "漢é😀 "


def golden(name, file):
    return json.loads((ROOT / f"tests/golden/tokenizer-json-{name}/{file}.json").read_text(encoding="utf-8"))


def make_model(folder, name):
    for file in ("model.safetensors", "config.json", "generation_config.json"):
        (folder / file).symlink_to(MODEL / file)
    (folder / "tokenizer.json").symlink_to(ROOT / f"tests/golden/tokenizer-json-{name}/tokenizer.json")
    return folder


@pytest.fixture(scope="module", params=FIXTURES)
def served(request, tmp_path_factory):
    """The fixture's name and a server with it."""
    folder = make_model(tmp_path_factory.mktemp(request.param), request.param)
    with Server(folder) as started:
        yield request.param, started


def stream_text(server, prompt, **fields):
    """The texts of a streamed completion's events."""
    with Connection(server.port) as connection:
        connection.send(completion_bytes(prompt, stream=True, **fields))
        reply = connection.read_reply()
    assert reply.status == 200, reply.body
    return [choice["text"] for event in sse_events(reply.body) for choice in event["choices"]]


def test_texts_have_the_ids_of_the_library(served):
    name, server = served
    cases = golden(name, "cases")
    named = [case for case in cases["cases"] if case["decoded"] != case["shown"]]
    assert named # text of a client is never a control token, so these have other ids here
    for case in [case for case in cases["cases"][::7] if case not in named] + cases["plain_cases"]:
        assert server.tokenize(case["text"], special=False) == case["ids"], case["text"]


def test_ids_have_the_text_of_the_library(served):
    name, server = served
    for case in golden(name, "cases")["decode_cases"][::3]:
        reply = server.post("/detokenize", {"tokens": case["ids"]})
        assert reply.status_code == 200 and reply.json()["prompt"] in (case["decoded"], case["shown"]), case


def test_tokenizer_info_tells_its_kind(served):
    _, server = served
    reply = server.get("/tokenizer_info")
    assert reply.status_code in (200, 404)
    if reply.status_code == 200:
        assert reply.json()["tokenizer_class"] == "bpe"


def test_streamed_characters_are_whole(served):
    """Only bytes of characters may be chosen, so that most tokens are a part of one."""
    _, server = served
    ids = sorted(set(server.tokenize(BYTES, special=False)))
    assert len(ids) > 6
    for seed in range(4):
        fields = {"max_tokens": 48, "temperature": 1, "seed": seed, "logit_bias": dict.fromkeys(map(str, ids), 100), "ignore_eos": True}
        whole = server.complete("漢é", **fields)["choices"][0]["text"]
        parts = stream_text(server, "漢é", **fields)
        assert "".join(parts) == whole
        assert any("\ufffd" in part or not part.isascii() for part in parts)


def test_echo_gives_the_prompt_back(served):
    _, server = served
    prompt = " 😀 昔々, été!"
    text = server.text(prompt, echo=True, max_tokens=1)
    assert text.lstrip(" ").startswith(prompt.lstrip(" ")), text


def test_a_tokenizer_of_another_kind_is_named(tmp_path):
    folder = make_model(tmp_path, "qwen")
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").write_text(json.dumps({**golden("qwen", "tokenizer"), "model": {"type": "Unigram"}}))
    code, out, err = run_command("serve", folder, "--check", seconds=60)
    assert code == 1 and out == "" and 'model: type: "Unigram" is not supported' in err, err
