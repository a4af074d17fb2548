"""docs/operations.md, word by word: its shell commands are run, the rest is compared with what it talks about."""

import re
import socket
import subprocess

import pytest
import requests
import yaml

from server import BINARY, ROOT, Server, clean_environment, limit, run_command

TEXT = (ROOT / "docs/operations.md").read_text()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.M | re.S)


def two_free_ports():
    while True:
        with socket.create_server(("127.0.0.1", 0)) as first:
            port = first.getsockname()[1]
            try:
                with socket.create_server(("127.0.0.1", port + 1)):
                    return port
            except OSError:
                continue


@pytest.mark.parametrize("block", blocks("sh"))
def test_commands_do_what_they_are_there_for(block):
    """With this build instead of the release, whose making is `make run`'s own test, and on free ports."""
    port = two_free_ports()
    script = re.sub(r"^tools/(setup|build)\.sh .*\n", "", block, flags=re.M)
    script = script.replace("build/release/pikv", BINARY)
    script = script.replace(":8000", f":{port}").replace(":8001", f":{port + 1}")
    done = subprocess.run(["bash", "-e", "-c", script], cwd=ROOT, capture_output=True, text=True, check=False,
                          timeout=limit(120), env=clean_environment({"PIKV_PORT": str(port)}))
    assert done.returncode == 0, done.stderr
    if "curl" in block:
        assert "data: [DONE]" in done.stdout and "pikv_generation_tokens_total" in done.stdout
        assert "drained" in done.stderr
    if "--print-config" in block:
        assert "port: 9000" in done.stdout and "max-num-seqs: 8" in done.stdout


def test_there_are_commands_to_run():
    assert len(blocks("sh")) == 3 and len(blocks("text")) == 2


def test_paths_exist():
    words = set(re.findall(r"(?<![\w/.-])((?:docker|docs|tools|tests|configs|models)/[\w./-]*\w)", TEXT))
    words |= {str((ROOT / "docs" / link).resolve().relative_to(ROOT)) for link in
              re.findall(r"\]\((?!http)([^)#]+)", TEXT)}
    missing = {word for word in words if not (ROOT / word).exists()}
    assert len(words) > 8 and not missing, missing


def test_flags_exist():
    known = run_command("serve", "--help")[1] + run_command("plan", "--help")[1]
    known += run_command("healthcheck", "--help")[1] + run_command("eval", "--help")[1]
    outside = "\n".join(blocks("text"))  # docker's and kubectl's own
    own = re.findall(r"(?<![\w-])--[a-z][a-z-]+", re.sub(r"^```text.*?^```", "", TEXT, flags=re.M | re.S))
    others = {"--gpus", "--build-arg", "--max-num-seqs"} | set(re.findall(r"--[a-z-]+", outside))
    for flag in set(own) - others:
        can_be_off = f"--[no-]{flag.removeprefix('--no-')} "
        assert can_be_off in known or re.search(rf"{flag}\b", known.replace("--[no-]", "--")), flag
    assert len(set(own) - others) > 15


def test_metrics_exist():
    named = set(re.findall(r"\bpikv_[a-z_]+", TEXT))
    with Server() as server:
        text = requests.get(server.monitor_url + "/metrics", timeout=limit(20)).text
    assert named and all(f"\n{name}" in text for name in named), named


def test_alerts_are_as_severe_as_their_rules():
    groups = yaml.safe_load((ROOT / "configs/prometheus/alerts.yml").read_text())["groups"]
    severities = {rule["alert"]: rule["labels"]["severity"] for group in groups for rule in group["rules"]}
    told = dict(re.findall(r"^### (Pikv\w+)\n\n(\w+);", TEXT, re.M))
    assert {name: word.lower() for name, word in told.items()} == severities


def test_the_image_and_its_user_are_those_of_the_file():
    file = (ROOT / "docker/Dockerfile").read_text()
    for user in re.findall(r"[Uu]ser (\d+)", TEXT):
        assert f"USER {user}:" in file
    version = re.search(r"image\.version=\"([\d.]+)\"", file).group(1)
    assert set(re.findall(r"pikv:([\d.]+\d)", TEXT)) == {version}


def test_limits_are_answered_as_the_table_says():
    rows = dict(re.findall(r"^\| [^|]+ \| `(--[a-z-]+)` \| ([^|]+) \|$", TEXT, re.M))
    assert len(rows) == 9
    with Server("--max-body-bytes", 2048, "--max-choices", 2, "--max-model-len", 64) as server:
        for body, flag in (({"prompt": "x" * 4000}, "--max-body-bytes"), ({"prompt": "x", "n": 3}, "--max-choices"),
                           ({"prompt": "x", "max_tokens": 65}, "--max-model-len")):
            assert rows[flag].startswith(str(server.post("/v1/completions", body).status_code)), flag
