"""Chats as documented in docs/api.md: prompts by a template, messages out, everything else as in completions."""

import json

import pytest

from server import CHAT_TEMPLATE, N_RANKS, ROOT, Server, run_command, wait_until
from test_errors import check_error
from wire import Connection, chat_bytes, sse_events

MODEL = ROOT / "models/storyteller"
USER = {"role": "user", "content": "Tell me a story."}
BOS, EOS = 1, 2


def stream(server, messages, **fields):
    with Connection(server.port) as connection:
        connection.send(chat_bytes(messages, stream=True, **fields))
        reply = connection.read_reply()
    assert reply.status == 200, reply.body
    return sse_events(reply.body)


def refuse(server, body, param=None, code=None, path="/v1/chat/completions"):
    reply = server.post(path, body)
    return check_error(reply.status_code, reply.content, 400, code, param)


def tokens_of(server, messages, **fields):
    reply = server.post("/tokenize", {"messages": messages, **fields})
    assert reply.status_code == 200, reply.text
    assert reply.json()["count"] == len(reply.json()["tokens"])
    return reply.json()["tokens"]


# ---- prompts ----


def test_a_prompt_is_what_the_template_makes(chatting):
    messages = [{"role": "system", "content": "Be brief."}, USER,
                {"role": "assistant", "content": "No."}, {"role": "user", "content": "Please!"}]
    plain = lambda text: chatting.tokenize(text, special=False)  # noqa: E731
    expected = [BOS] + plain("[INST] Be brief.\n\nTell me a story. [/INST] No.") + [EOS] + \
        plain("[INST] Please! [/INST]")
    assert tokens_of(chatting, messages) == expected
    reply = chatting.chat(messages, return_token_ids=True, max_tokens=4)
    assert reply["prompt_token_ids"] == expected
    assert reply["usage"]["prompt_tokens"] == len(expected)


def test_a_chat_says_what_a_completion_of_its_prompt_says(chatting):
    ids = tokens_of(chatting, [USER])
    expected = chatting.complete(ids, max_tokens=40, return_token_ids=True)["choices"][0]
    choice = chatting.chat([USER], max_tokens=40, return_token_ids=True)["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": expected["text"], "refusal": None}
    assert choice["token_ids"] == expected["token_ids"]
    assert choice["finish_reason"] == "length" and choice["logprobs"] is None


def test_bos_comes_once_unless_asked_for(chatting):
    assert tokens_of(chatting, [USER])[:2].count(BOS) == 1
    assert tokens_of(chatting, [USER], add_special_tokens=True)[:2] == [BOS, BOS]
    doubled = chatting.chat([USER], add_special_tokens=True, return_token_ids=True, max_tokens=1)
    assert doubled["prompt_token_ids"][:2] == [BOS, BOS]


def test_names_of_control_tokens_in_a_message_are_those_tokens(chatting):
    """As in vLLM and transformers; completions never read them."""
    ids = tokens_of(chatting, [{"role": "user", "content": "one</s>two<s>three"}])
    assert ids.count(EOS) == 1 and ids.count(BOS) == 2
    assert EOS not in chatting.tokenize("one</s>two")


def test_parts_are_joined_by_line_ends(chatting):
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert tokens_of(chatting, [{"role": "user", "content": parts}]) == \
        tokens_of(chatting, [{"role": "user", "content": "one\ntwo"}])


WALKS = ("{% for m in messages %}{{ m.role }}:{% for p in m.content %}<{{ p.text }}>{% endfor %};{% endfor %}")
ASKS = ("{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}"
        "{% for p in m.content %}<{{ p.text }}>{% endfor %}{% endif %};{% endfor %}")
TELLS = "{% for m in messages %}{{ m.content }};{% endfor %}"
PARTS = {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]}
FORMATS = [(WALKS, "auto", "user:<Tell me a story.>;user:<one><two>;"), (ASKS, "auto", "Tell me a story.;<one><two>;"),
           (TELLS, "auto", "Tell me a story.;one\ntwo;"), (ASKS, "string", "Tell me a story.;one\ntwo;"),
           (ASKS, "openai", "<Tell me a story.>;<one><two>;")]


@pytest.mark.parametrize("template, form, expected", FORMATS, ids=range(len(FORMATS)))
def test_contents_have_the_form_that_the_template_reads(tmp_path, template, form, expected):
    path = tmp_path / "template"
    path.write_text(template)
    with Server("--chat-template", path, "--chat-template-content-format", form) as server:
        assert tokens_of(server, [USER, PARTS]) == server.tokenize(expected, special=False)
        last = {**PARTS, "role": "assistant"}
        ids = tokens_of(server, [USER, last], continue_final_message=True)
        whole = expected.replace("user:<one", "assistant:<one")
        assert ids == server.tokenize(whole[:whole.rindex("two") + 3], special=False)
        reply = server.chat([USER, last], continue_final_message=True, echo=True, max_tokens=1)
        assert reply["choices"][0]["message"]["content"].startswith("one\ntwo")


def test_a_message_can_be_continued(chatting):
    messages = [USER, {"role": "assistant", "content": "Once upon a time"}]
    ids = tokens_of(chatting, messages, continue_final_message=True)
    assert ids == tokens_of(chatting, messages)[:len(ids)] and ids[-1] != EOS
    reply = chatting.chat(messages, continue_final_message=True, max_tokens=8)
    rest = reply["choices"][0]["message"]["content"]
    assert rest == chatting.text(ids, max_tokens=8)
    reply = chatting.chat(messages, continue_final_message=True, echo=True, max_tokens=8)
    assert reply["choices"][0]["message"]["content"] == "Once upon a time" + rest
    events = stream(chatting, messages, continue_final_message=True, echo=True, max_tokens=8)
    assert "".join(e["choices"][0]["delta"].get("content", "") for e in events) == \
        "Once upon a time" + rest
    messages[1]["content"] = "Once upon a time  "
    assert tokens_of(chatting, messages, continue_final_message=True)[:len(ids) - 1] == ids[:-1]


def test_a_template_may_refuse(chatting):
    message = refuse(chatting, {"messages": [USER, USER]}, "messages")
    assert "roles must alternate" in message
    refuse(chatting, {"messages": [USER, USER]}, "messages", path="/tokenize")


def test_a_chat_beyond_the_context_is_refused(chatting):
    body = {"messages": [{"role": "user", "content": "a " * 4000}]}
    refuse(chatting, body, "messages", "context_length_exceeded")
    refuse(chatting, {**body, "stream": True}, "messages", "context_length_exceeded")
    refuse(chatting, {"messages": [USER], "max_completion_tokens": 2048},
           "max_completion_tokens", "context_length_exceeded")
    kept = chatting.chat(body["messages"], truncate_prompt_tokens=16, max_tokens=2)
    assert kept["usage"]["prompt_tokens"] == 16


def test_variables_of_a_template_come_from_the_request(tmp_path):
    path = tmp_path / "template"
    path.write_text("{% if shout is defined and shout %}LOUD {% endif %}{{ messages[-1].content }}"
                    "{% if reasoning_effort is defined %} {{ reasoning_effort }}{% endif %}"
                    "{% for d in documents or [] %}[{{ d.text }}]{% endfor %}"
                    "{% if add_generation_prompt %} >{% endif %}")
    with Server("--chat-template", path) as server:
        plain = lambda text: server.tokenize(text, special=False)  # noqa: E731
        assert tokens_of(server, [USER]) == plain("Tell me a story. >")
        assert tokens_of(server, [USER], add_generation_prompt=False) == plain("Tell me a story.")
        assert tokens_of(server, [USER], chat_template_kwargs={"shout": True},
                         reasoning_effort="low", documents=[{"text": "d"}]) == \
            plain("LOUD Tell me a story. low[d] >")


TOOL = {"type": "function", "function": {"name": "f", "description": "\"does\"", "parameters": {
    "type": "object", "properties": {"a": {"type": "integer"}}}}}
AUTO = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes")


def test_a_template_gets_tools_as_they_are(tmp_path):
    path = tmp_path / "template"
    path.write_text("{{ tools | tojson if tools else 'none' }}")
    with Server("--chat-template", path, *AUTO) as server:
        plain = lambda text: server.tokenize(text, special=False)  # noqa: E731
        assert tokens_of(server, [USER], tools=[TOOL]) == plain(json.dumps([TOOL]))
        assert tokens_of(server, [USER], tools=[TOOL], tool_choice="auto") == plain(json.dumps([TOOL]))
        for fields in ({"tools": [TOOL], "tool_choice": "none"}, {"tools": []}, {"tool_choice": "auto"}):
            assert tokens_of(server, [USER], **fields) == plain("none")
        for tool in ({}, {"type": "function"}, {"type": "other", "function": {"name": "f"}}, 1,
                     {"type": "function", "function": {"name": ""}},
                     {"type": "function", "function": {"name": "f", "parameters": []}},
                     {"type": "function", "function": {"name": "f", "description": 1}}):
            refuse(server, {"messages": [USER], "tools": [TOOL, tool]}, "tools[1]")


def test_tools_need_a_parser_and_a_place_in_the_template(chatting):
    body = {"messages": [USER], "tools": [TOOL]}
    assert "--tool-call-parser" in refuse(chatting, body, "tools", "unsupported_parameter")
    with Server("--chat-template", CHAT_TEMPLATE, *AUTO) as server:
        assert "no place" in refuse(server, body, "tools", "unsupported_parameter")
        assert server.chat([USER], tools=[TOOL], tool_choice="none", max_tokens=2)["usage"]["completion_tokens"] == 2
    for words in ((AUTO[0],), AUTO[1:], (AUTO[0], AUTO[1], "nosuch")):
        code, _, stderr = run_command("serve", *words)
        assert code == 2 and ("tool-call-parser" in stderr), stderr


BOMBS = {"output": "{% for a in range(9999) %}{% for b in range(9999) %}xxxxxxxxxxxxxxxx{% endfor %}{% endfor %}",
         "steps": "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
         "memory": "{% set n = namespace(x='x' * 1000) %}{% for a in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}"}


@pytest.mark.parametrize("template", BOMBS.values(), ids=BOMBS)
def test_a_template_that_goes_on_and_on_is_a_refusal(tmp_path, template):
    path = tmp_path / "template"
    path.write_text(template)
    with Server("--chat-template", path) as server:
        refuse(server, {"messages": [USER]}, "messages")
        assert server.text("The king", max_tokens=2)


# ---- replies ----


SETTINGS = [{}, {"n": 2, "temperature": 1, "seed": 5}, {"logprobs": True, "top_logprobs": 2},
            {"stop": ["o", "the"]}, {"logprobs": True, "stop": [" a"], "return_token_ids": True},
            {"temperature": 2, "seed": 9, "ignore_eos": True, "logprobs": True}]


@pytest.mark.parametrize("fields", SETTINGS, ids=range(len(SETTINGS)))
def test_a_stream_says_what_a_document_says(chatting, fields):
    plain = chatting.chat([USER], max_tokens=24, **fields)
    events = stream(chatting, [USER], max_tokens=24, stream_options={"include_usage": True}, **fields)
    for name in ("id", "created", "model", "object"):
        assert len({e[name] for e in events}) == 1
    assert events[0]["object"] == "chat.completion.chunk" and plain["object"] == "chat.completion"
    assert events[0]["id"].startswith("chatcmpl-") and plain["id"].startswith("chatcmpl-")
    *chunks, last = events
    assert last["choices"] == [] and all(e["usage"] is None for e in chunks)
    for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert last["usage"][name] == plain["usage"][name]
    assert events[0].get("prompt_token_ids") == plain.get("prompt_token_ids")
    for choice in plain["choices"]:
        own = [e["choices"][0] for e in chunks if e["choices"][0]["index"] == choice["index"]]
        check_choice(own, choice)


def check_choice(chunks, choice):
    first, *middle, end = chunks
    assert first["delta"] == {"role": "assistant", "content": "", "refusal": None}
    assert end["delta"] == {} and end["logprobs"] is None
    assert all(set(c["delta"]) == {"content"} for c in middle)
    assert all(c["finish_reason"] is None for c in (first, *middle))
    assert end["finish_reason"] == choice["finish_reason"]
    assert end["stop_reason"] == choice["stop_reason"]
    assert "".join(c["delta"]["content"] for c in middle) == choice["message"]["content"]
    items = [i for c in middle for i in (c["logprobs"] or {"content": []})["content"]]
    assert items == (choice["logprobs"] or {"content": []})["content"]
    if "token_ids" in choice:
        assert [i for c in chunks for i in c["token_ids"]] == choice["token_ids"]


def test_logprobs_hold_the_bytes_of_the_message(chatting):
    fields = {"max_tokens": 40, "temperature": 2, "seed": 4, "ignore_eos": True}
    choice = chatting.chat("🦊 昔", logprobs=True, top_logprobs=3, **fields)["choices"][0]
    items = choice["logprobs"]["content"]
    assert choice["logprobs"]["refusal"] is None and len(items) == 40
    said = b"".join(bytes(i["bytes"]) for i in items if i["token"] not in ("<s>", "</s>", "<unk>"))
    assert said.decode("utf-8", "replace") == choice["message"]["content"]
    for item in items:
        assert set(item) == {"token", "logprob", "bytes", "top_logprobs"}
        tops = [t["logprob"] for t in item["top_logprobs"]]
        assert len(tops) == 3 and tops == sorted(tops, reverse=True)
        assert item["logprob"] <= tops[0]
        assert bytes(item["bytes"]).decode("utf-8", "replace") == item["token"]
    bare = chatting.chat("🦊 昔", logprobs=True, **fields)["choices"][0]["logprobs"]["content"]
    assert all(i["top_logprobs"] == [] for i in bare)
    assert [i["logprob"] for i in bare] == [i["logprob"] for i in items]


def test_scores_are_those_of_completions(chatting):
    legacy = chatting.complete(tokens_of(chatting, [USER]), max_tokens=12, logprobs=2)
    items = chatting.chat([USER], max_tokens=12, logprobs=True, top_logprobs=2)
    items = items["choices"][0]["logprobs"]["content"]
    legacy = legacy["choices"][0]["logprobs"]
    assert [i["token"] for i in items] == legacy["tokens"]
    assert [i["logprob"] for i in items] == legacy["token_logprobs"]


def test_a_chat_without_max_tokens_ends_with_the_context():
    with Server("--chat-template", CHAT_TEMPLATE, "--max-model-len", 64) as server:
        reply = server.chat([USER], ignore_eos=True)
        assert reply["usage"]["total_tokens"] == 64
        assert reply["choices"][0]["finish_reason"] == "length"


@pytest.mark.skipif(int(N_RANKS) > 1, reason="each rank rounds its share of so small a cache")
def test_a_chat_without_max_tokens_fits_a_cache_that_is_smaller_than_the_context():
    with Server("--chat-template", CHAT_TEMPLATE, "--kv-cache-memory-bytes", "1Mi") as server:
        reply = server.chat([USER], ignore_eos=True)
        assert 0 < reply["usage"]["total_tokens"] < 2048
        assert reply["choices"][0]["finish_reason"] == "length"


def test_methods_of_the_cache_and_salts_work_the_same(chatting):
    long = [{"role": "user", "content": "The king had a daughter. " * 40}]
    first = chatting.chat(long, max_tokens=4, cache_salt="chat", kv={})
    again = chatting.chat(long, max_tokens=4, cache_salt="chat")
    assert first["usage"]["kv"]["resident_bytes"] > 0
    assert first["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    ids = tokens_of(chatting, long)
    shared = chatting.complete(ids, max_tokens=4, cache_salt="chat")["usage"]
    assert shared["prompt_tokens_details"]["cached_tokens"] > 0


@pytest.mark.parametrize("streams", [False, True])
def test_a_client_that_leaves_ends_its_chat(chatting, streams):
    before = chatting.metrics().get("client_disconnects_total")
    client = Connection(chatting.port)
    client.send(chat_bytes([USER], stream=streams, n=4, ignore_eos=True))
    wait_until(lambda: chatting.metrics().get("requests_running") > 0, 20, "it runs")
    client.close()
    wait_until(lambda: chatting.metrics().get("client_disconnects_total") > before, 10, "it is seen")
    chatting.wait_idle()


def test_a_chat_needs_a_key_where_others_do():
    with Server("--chat-template", CHAT_TEMPLATE, env={"PIKV_API_KEY": "right"}) as server:
        body = {"messages": [USER], "max_tokens": 1}
        assert server.post("/v1/chat/completions", body).status_code == 401
        key = {"Authorization": "Bearer right"}
        assert server.post("/v1/chat/completions", body, headers=key).status_code == 200
        assert server.get("/v1/chat/completions", headers=key).status_code == 405


# ---- where templates come from ----


def model_with(folder, **files):
    """The default model with other small files; a value that is no text is written as JSON."""
    for name in ("config.json", "model.safetensors", "tokenizer.model"):
        (folder / name).symlink_to(MODEL / name)
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name.replace("__", ".")).write_text(text)
    return folder


OWN = "{{ bos_token }}{{ messages[0].content }}"


def test_a_model_without_a_template_says_so(server):
    message = refuse(server, {"messages": [USER]})
    assert "no chat template" in message and "--chat-template" in message
    assert "no chat template" in refuse(server, {"messages": [USER]}, path="/tokenize")
    assert server.text("The king", max_tokens=2)
    assert "chat is off" in server.log()


@pytest.mark.parametrize("config", [
    {"chat_template": OWN},
    {"chat_template": [{"name": "tool_use", "template": "no"}, {"name": "default", "template": OWN}]},
], ids=["text", "list"])
def test_a_template_comes_from_the_tokenizers_config(tmp_path, config):
    model = model_with(tmp_path, tokenizer_config__json={**config, "bos_token": {"content": "<s>"}})
    with Server(model) as server:
        assert tokens_of(server, [USER]) == server.tokenize(USER["content"])
        assert "chat is on" in server.log()


def test_a_file_of_its_own_comes_first(tmp_path):
    model = model_with(tmp_path, tokenizer_config__json={"chat_template": "no", "eos_token": "</s>"},
                       chat_template__jinja="{{ eos_token }}" + OWN)
    with Server(model) as server:
        assert tokens_of(server, [USER]) == [EOS] + server.tokenize(USER["content"])


@pytest.mark.parametrize("template, reason", [
    ("a\n{% include 'b' %}", "line 2"), ("{% if x %}", "line 1"),
], ids=["unsupported", "broken"])
def test_a_model_whose_template_is_refused_still_completes(tmp_path, template, reason):
    with Server(model_with(tmp_path, chat_template__jinja=template)) as server:
        message = refuse(server, {"messages": [USER]})
        assert "chat_template.jinja" in message and reason in message
        assert server.text("The king", max_tokens=2)
        assert reason in server.log()
    path = tmp_path / "named.jinja"
    path.write_text(template)
    code, _, said = run_command("serve", "--port", 0, "--chat-template", path)
    assert code == 1 and "chat-template" in said and reason in said
    code, _, said = run_command("serve", "--check", "--chat-template", path)
    assert code == 1 and reason in said


def test_a_list_without_a_default_is_no_template(tmp_path):
    config = {"chat_template": [{"name": "tool_use", "template": OWN}]}
    with Server(model_with(tmp_path, tokenizer_config__json=config)) as server:
        assert "default" in refuse(server, {"messages": [USER]})


def test_a_named_file_must_be_there(tmp_path):
    code, _, said = run_command("serve", "--port", 0, "--chat-template", tmp_path / "none")
    assert code == 1 and "no such file" in said


def test_the_end_token_of_the_tokenizer_ends_a_turn(tmp_path):
    bias = {"logit_bias": {str(BOS): 100}, "max_tokens": 4}
    config = {"chat_template": OWN, "eos_token": "<s>"}
    with Server(model_with(tmp_path, tokenizer_config__json=config)) as server:
        assert server.chat([USER], **bias)["choices"][0]["finish_reason"] == "stop"
    assert run_command("serve", "--check", tmp_path)[0] == 0


# ---- generation_config.json ----


SAMPLED = {"temperature": 1.5, "top_k": 1, "max_new_tokens": 12, "num_beams": 4}


def test_a_model_says_how_requests_are_sampled(tmp_path):
    model = model_with(tmp_path, generation_config__json=SAMPLED, chat_template__jinja=OWN)
    with Server(model) as server:
        greedy = server.text("The king", max_tokens=10)
        hot = {"prompt": "The king", "seed": 1, "max_tokens": 10}
        reply = server.post("/v1/completions", hot).json()
        assert reply["choices"][0]["text"] == greedy, "top_k 1 is the file's"
        reply = server.post("/v1/completions", {**hot, "top_k": -1}).json()
        assert reply["choices"][0]["text"] != greedy, "the request's top_k counts"
        assert server.chat([USER], ignore_eos=True)["usage"]["completion_tokens"] == 12
        assert server.complete("The king", max_tokens=50)["usage"]["completion_tokens"] <= 12
        assert "not applied: num_beams" in server.log()
    with Server(model, "--generation-config", "vllm") as server:
        reply = server.post("/v1/completions", {**hot, "temperature": 1.5}).json()
        assert reply["choices"][0]["text"] != greedy
        assert server.complete("The king", max_tokens=50, ignore_eos=True)["usage"] \
            ["completion_tokens"] == 50


def test_a_generation_config_with_an_impossible_value_is_refused(tmp_path):
    model = model_with(tmp_path, generation_config__json={"temperature": -1})
    code, _, errors = run_command("serve", "--check", model)
    assert code == 1 and "generation_config.json: temperature" in errors
    code, _, _ = run_command("serve", "--check", "--generation-config", "vllm", model)
    assert code == 0
