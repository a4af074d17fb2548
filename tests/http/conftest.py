"""Servers that tests share. A test that changes or ends its server starts one of its own."""

import pytest

from server import CHAT_TEMPLATE, Server


@pytest.fixture(scope="module")
def server():
    """The default model with default settings."""
    with Server() as started:
        yield started


@pytest.fixture(scope="module")
def chatting():
    """The same with a chat template. The model tells stories all the same."""
    with Server("--chat-template", CHAT_TEMPLATE) as started:
        yield started


@pytest.fixture(scope="module")
def locked(tmp_path_factory):
    """A server that wants one of two keys, from a file and from the environment's list."""
    path = tmp_path_factory.mktemp("keys") / "keys"
    path.write_text("# comment\nfile-key\n")
    with Server("--api-key-file", path, env={"PIKV_API_KEY": "env-key"}) as started:
        yield started
