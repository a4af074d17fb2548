"""Clients talk to servers that the harness in tests/http starts."""

import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "http"))

from server import CHAT_TEMPLATE, Server  # noqa: E402


@pytest.fixture(scope="session")
def server():
    with Server("--served-model-name", "teller", "storyteller", "--chat-template",
                CHAT_TEMPLATE) as started:
        yield started
