"""The examples of the documents, run as they stand, against a server on another port."""

import json
import os
import re
import subprocess
import sys

import pytest

from server import CHAT_TEMPLATE, ROOT, Server, clean_environment, limit

ADDRESS = re.compile(r"(?:http://)?(?:localhost|127\.0\.0\.1):8000")


def examples():
    """Blocks of sh and python that talk to a server; `lm_eval` has a test of its own."""
    for name in ("README.md", "docs/api.md"):
        text = (ROOT / name).read_text()
        for match in re.finditer(r"```(sh|python)\n(.*?)```", text, re.DOTALL):
            language, body = match.groups()
            if ADDRESS.search(body) and "lm_eval" not in body:
                line = text[:match.start()].count("\n") + 2
                yield pytest.param(language, body, id=f"{name}:{line}")


@pytest.fixture(scope="module")
def free():
    with Server("--kv-request-methods", "--chat-template", CHAT_TEMPLATE) as started:
        yield started


@pytest.mark.parametrize("language, body", list(examples()))
def test_an_example_works(free, language, body):
    body = ADDRESS.sub(free.url, body)
    if language == "sh":  # a refusal shall fail, and its reason be seen
        body = body.replace("curl ", "curl -sS --fail-with-body ")
    words = {"sh": ["bash", "-ec", body], "python": [sys.executable, "-c", body]}[language]
    path = os.path.dirname(sys.executable) + ":" + os.environ["PATH"]
    done = subprocess.run(words, cwd=ROOT, env=clean_environment({"PATH": path}), capture_output=True,
                          text=True, timeout=limit(60), check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip() != ""
    if "curl" in body and "stream" not in body and "/metrics" not in body:
        assert "error" not in json.loads(done.stdout)
