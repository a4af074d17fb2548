"""Routes, methods, keys and probes."""

import re

import pytest
import requests

from server import Server, limit
from test_errors import check_error
from wire import Connection, request_bytes

PUBLIC = ("/live", "/ready", "/health", "/ping", "/version", "/metrics")
PRIVATE = {"/v1/completions": "POST", "/v1/models": "GET", "/v1/models/storyteller": "GET",
           "/tokenize": "POST", "/detokenize": "POST", "/tokenizer_info": "GET", "/load": "GET",
           "/debug/kv": "GET", "/debug/kv/methods": "GET"}
BODIES = {"/v1/completions": {"prompt": "a", "max_tokens": 1}, "/tokenize": {"prompt": "a"},
          "/detokenize": {"tokens": [1]}}
KEYS = {"bearer": {"Authorization": "Bearer file-key"},
        "bearer_lower": {"Authorization": "bearer env-key"},
        "x_api_key": {"X-Api-Key": "file-key"},
        "x_api_key_beside_a_wrong_bearer": {"X-Api-Key": "env-key", "Authorization": "Bearer no"}}
WRONG = {"none": {}, "wrong": {"Authorization": "Bearer wrong"}, "empty": {"Authorization": "Bearer "},
         "prefix": {"Authorization": "Bearer file-ke"}, "longer": {"X-Api-Key": "file-keyy"},
         "scheme": {"Authorization": "Basic file-key"}, "bare": {"Authorization": "file-key"},
         "comment": {"X-Api-Key": "# comment"}, "both": {"X-Api-Key": "file-key,env-key"}}


def ask(server, path, method=None, **more):
    method = method or PRIVATE.get(path, "GET")
    body = BODIES.get(path) if method == "POST" else None
    return requests.request(method, server.url + path, json=body, timeout=limit(20), **more)


# ---- keys ----


@pytest.mark.parametrize("path", PRIVATE)
@pytest.mark.parametrize("name", WRONG)
def test_a_route_without_its_key_is_401(locked, path, name):
    reply = ask(locked, path, headers=WRONG[name])
    message = check_error(reply.status_code, reply.content, 401, "invalid_api_key")
    assert reply.headers["WWW-Authenticate"] == "Bearer"
    assert "file-ke" not in message


@pytest.mark.parametrize("path", PRIVATE)
@pytest.mark.parametrize("name", KEYS)
def test_a_route_with_its_key_is_served(locked, path, name):
    assert ask(locked, path, headers=KEYS[name]).status_code == 200


@pytest.mark.parametrize("path", PUBLIC)
def test_probes_need_no_key(locked, path):
    assert ask(locked, path).status_code == 200
    assert requests.get(locked.monitor_url + path, timeout=limit(20)).status_code == 200


def test_an_outsider_cannot_tell_which_routes_exist(locked):
    for path in ("/nothing", "/v1/models/nobody", "/v1/completions/"):
        assert ask(locked, path).status_code == 401
    assert ask(locked, "/v1/completions", "GET").status_code == 401
    assert ask(locked, "/nothing", headers=KEYS["bearer"]).status_code == 404


def test_keys_are_in_neither_log_nor_metrics(locked):
    ask(locked, "/load", headers={"Authorization": "Bearer secret-attempt"})
    assert locked.metrics().get("request_rejections_total", reason="auth") > 0
    for secret in ("secret-attempt", "file-key", "env-key"):
        assert secret not in locked.log()


# ---- routes and methods ----


def test_health_routes_say_ok(server):
    for path in ("/live", "/ready", "/health", "/ping"):
        reply = ask(server, path)
        assert reply.status_code == 200 and reply.json() == {"status": "ok"}
    assert set(ask(server, "/version").json()) == {"version"}
    assert ask(server, "/metrics").headers["Content-Type"].startswith("text/plain; version=0.0.4")


def test_load_counts_sequences_and_pages(server):
    load = ask(server, "/load").json()
    assert set(load) == {"running", "waiting", "preempted", "kv_pages_total", "kv_pages_used",
                         "kv_pages_cached"}
    assert load["running"] == load["waiting"] == load["kv_pages_used"] == 0
    assert load["kv_pages_total"] > 0


def test_tokenizer_info_names_the_control_tokens(server):
    info = ask(server, "/tokenizer_info").json()
    assert info == {"tokenizer_class": "sentencepiece", "add_bos_token": True, "vocab_size": 4096,
                    "model_max_length": 2048, "bos_token": "<s>", "bos_token_id": 1,
                    "eos_token": "</s>", "eos_token_id": 2}


def test_the_methods_that_requests_may_name_are_listed():
    with Server("--kv-request-methods", "--kv-compression", "int8", "--kv-routing-k", 3) as choosing:
        known = ask(choosing, "/debug/kv/methods").json()
        assert known["request_methods"] is True
        assert known["methods"]["compression"] == "int8" and known["numbers"]["routing_k"] == 3
        names = known["names"]
        assert {"none", "int4", "int8"} <= set(names["codec"]) and "adakv" in names["allocator"]
        assert "flexgen" not in names["scheduling"] and "lora" not in names["codec"]  # no tiers, no bases
        for key, n_each in (("routing", "routing"), ("scheduling", "scheduling"), ("compression", "codec")):
            for name in names[n_each]:
                number = known["routing_numbers"].get(name) if key == "routing" else None
                kv = {key: name, **({number: 0.5} if number else {})}
                reply = choosing.post("/v1/completions", {"prompt": "a", "max_tokens": 1, "kv": kv})
                assert reply.status_code == 200, (kv, reply.text)
        for name in names["selection"]:
            kv = {"compression": name + ",none", "budget": 0.5}
            assert choosing.post("/v1/completions", {"prompt": "a", "max_tokens": 1, "kv": kv}).ok, kv


def test_without_the_flag_a_server_lists_its_own_methods_alone(server):
    known = ask(server, "/debug/kv/methods").json()
    assert known["request_methods"] is False
    assert known["names"]["codec"] == ["none"]


# ---- the page ----

PAGE = {"/": "text/html; charset=utf-8", "/page/page.css": "text/css; charset=utf-8",
        "/page/app.js": "text/javascript; charset=utf-8", "/page/icon.svg": "image/svg+xml"}


@pytest.mark.parametrize("path", PAGE)
def test_the_page_is_public_and_strict(locked, path):
    reply = ask(locked, path)
    assert reply.status_code == 200 and reply.headers["Content-Type"] == PAGE[path]
    assert reply.headers["Cache-Control"] == "no-cache"
    assert reply.headers["X-Content-Type-Options"] == "nosniff"
    policy = reply.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'self';") and "unsafe" not in policy
    assert requests.get(locked.monitor_url + path, timeout=limit(20)).status_code == 404
    assert ask(locked, path, "POST").status_code == 401


@pytest.mark.parametrize("path", PAGE)
def test_a_page_that_the_browser_has_is_304(server, path):
    with Connection(server.port) as connection:
        fresh = connection.ask("GET", path)
        tag = fresh.headers["etag"]
        for tags in (tag, f'"other", W/{tag}', "*"):
            connection.send(request_bytes("GET", path, headers=[f"If-None-Match: {tags}"]))
            known = connection.read_reply(is_head=True)  # it has no body either
            assert known.status == 304 and known.headers["etag"] == tag
        connection.send(request_bytes("GET", path, headers=['If-None-Match: "other"']))
        again = connection.read_reply()
        assert again.status == 200 and again.body == fresh.body and len(again.body) > 100
        assert connection.ask("HEAD", path).status == 200
        assert connection.ask("GET", "/live").status == 200  # nothing was left in between


def test_the_page_asks_for_nothing_from_elsewhere(server):
    for name in re.findall(r'(?:href|src)="([^"]*)"', ask(server, "/").text):
        assert name.startswith(("/", "#")) and not name.startswith("//")
        assert name.startswith("#") or ask(server, name).status_code == 200, name


def test_without_the_dashboard_there_is_no_page():
    with Server("--no-dashboard") as bare:
        for path in PAGE:
            reply = ask(bare, path)
            check_error(reply.status_code, reply.content, 404, "not_found")


def test_models_say_how_long_a_context_is(server):
    models = ask(server, "/v1/models").json()
    assert models["object"] == "list"
    (model,) = models["data"]
    assert model["id"] == "storyteller" and model["object"] == "model"
    assert model["max_model_len"] == 2048
    assert ask(server, "/v1/models/storyteller").json() == model
    reply = ask(server, "/v1/models/nobody")
    check_error(reply.status_code, reply.content, 404, "model_not_found", "model")


@pytest.mark.parametrize("path", ["//", "/nothing", "/page", "/page/nothing", "/page/../live", "/v1/completions/", "/v1//completions", "/V1/models", "/v1/completion", "/v1/models/",
                                  "/v1/%63ompletions", "/live%00", "/v1/chat/completion", "/../etc/passwd"])
def test_an_unknown_path_is_404(server, path):
    with Connection(server.port) as connection:
        reply = connection.ask("GET", path)
    check_error(reply.status, reply.body, 404, "not_found")


@pytest.mark.parametrize("path", [*PRIVATE, *PUBLIC])
def test_a_wrong_method_is_405_and_names_the_right_one(server, path):
    right = PRIVATE.get(path, "GET")
    allowed = {"GET", "HEAD"} if right == "GET" else {right}
    for method in ("GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        if method in allowed:
            continue
        reply = requests.request(method, server.url + path, timeout=limit(20))
        check_error(reply.status_code, reply.content, 405, "method_not_allowed")
        assert {m.strip() for m in reply.headers["Allow"].split(",")} == allowed
        assert not [h for h in reply.headers if h.lower().startswith("access-control-")]


@pytest.mark.parametrize("path", [*(p for p in PRIVATE if PRIVATE[p] == "GET"), *PUBLIC])
def test_head_is_get_without_the_body(server, path):
    with Connection(server.port) as connection:
        head = connection.ask("HEAD", path)
        got = connection.ask("GET", path)  # on the same connection: no body was left in between
    assert head.status == got.status == 200
    assert head.headers["content-type"] == got.headers["content-type"]
    if path != "/metrics":
        assert head.headers["content-length"] == got.headers["content-length"]


def test_a_query_does_not_change_the_route(server):
    assert ask(server, "/live?a=b&c=%00").status_code == 200


def test_the_monitor_serves_probes_and_nothing_else(server):
    for path, method in PRIVATE.items():
        reply = requests.request(method, server.monitor_url + path, timeout=limit(20))
        check_error(reply.status_code, reply.content, 404, "not_found")


def test_a_connection_is_kept_alive_over_errors(server):
    with Connection(server.port) as connection:
        for _ in range(3):
            assert connection.ask("POST", "/tokenize", b"{").status == 400
            assert connection.ask("GET", "/nothing").status == 404
            assert connection.ask("POST", "/tokenize", b'{"prompt": "a"}').status == 200


def test_pipelined_requests_are_answered_in_order(server):
    request = b'POST /tokenize HTTP/1.1\r\nHost: t\r\nContent-Length: 15\r\n\r\n{"prompt": "a"}'
    with Connection(server.port) as connection:
        connection.send(request + b"GET /version HTTP/1.1\r\nHost: t\r\n\r\n" + request)
        assert "tokens" in connection.read_reply().json()
        assert "version" in connection.read_reply().json()
        assert "tokens" in connection.read_reply().json()


def test_a_body_may_come_in_chunks(server):
    with Connection(server.port) as connection:
        connection.send(b"POST /tokenize HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n"
                        b"5\r\n{\"pro\r\na\r\nmpt\": \"a\"}\r\n0\r\n\r\n")
        assert connection.read_reply().json()["count"] > 0


def test_an_old_client_gets_a_stream_that_ends_with_the_connection(server):
    body = b'{"prompt": "a", "max_tokens": 4, "stream": true}'
    with Connection(server.port) as connection:
        connection.send(b"POST /v1/completions HTTP/1.0\r\nHost: t\r\nContent-Length: %d\r\n\r\n%s"
                        % (len(body), body))
        head = connection.read_head()
        assert head.status == 200 and "transfer-encoding" not in head.headers
        assert connection.read_until(b"data: [DONE]\n\n")
