"""The words of the command line: settings from four sources, exit codes, --check, healthcheck."""

import json
import os
import re
import shutil
import socket

import pytest

from server import ROOT, Server, run_command, wait_until
from wire import Connection

MODEL = ROOT / "models/storyteller"


def settings(*words, env=None):
    """What --print-config says, as {key: text}."""
    code, out, err = run_command("serve", *words, "--print-config", env=env)
    assert code == 0, err
    lines = [line for line in out.splitlines() if line and not line.lstrip().startswith("#")]
    return {line.split(":", 1)[0]: line.split(":", 1)[1].split(" #")[0].strip().strip('"')
            for line in lines if not line.startswith(" ")}


def copy_model(to, **changes):
    """The default model with another config.json; its weights are linked."""
    for name in ("model.safetensors", "tokenizer.model", "generation_config.json"):
        (to / name).symlink_to(MODEL / name)
    config = {**json.loads((MODEL / "config.json").read_text()), **changes}
    (to / "config.json").write_text(json.dumps(config))
    return to


# ---- four sources ----


def test_flags_beat_environment_beats_file_beats_defaults(tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text("max-num-seqs: 3\nhost: 127.0.0.9\nlog-level: warn\n")
    assert settings()["max-num-seqs"] == "32"
    from_file = settings("--config", file)
    assert from_file["max-num-seqs"] == "3" and from_file["host"] == "127.0.0.9"
    env = {"PIKV_MAX_NUM_SEQS": "5", "PIKV_LOG_LEVEL": "debug"}
    both = settings("--config", file, env=env)
    assert (both["max-num-seqs"], both["log-level"], both["host"]) == ("5", "debug", "127.0.0.9")
    every = settings("--config", file, "--max-num-seqs", 7, env=env)
    assert (every["max-num-seqs"], every["log-level"], every["host"]) == ("7", "debug", "127.0.0.9")
    named = settings(env={"PIKV_CONFIG": str(file)})
    assert named["max-num-seqs"] == "3"


def test_printed_settings_are_a_file_that_gives_the_same_settings(tmp_path):
    words = ("--port", 0, "--max-num-seqs", 4, "--kv-cache-memory-bytes", "3Mi", "--no-monitor",
             "--served-model-name", "one", "two: #3", "--kv-window", 64)
    code, out, _ = run_command("serve", *words, "--print-config")
    assert code == 0
    file = tmp_path / "printed.yaml"
    file.write_text(out)
    assert run_command("serve", "--config", file, "--print-config") == (0, out, "")


def test_names_from_other_servers_are_understood():
    assert settings("-m", "elsewhere")["model"] == settings("elsewhere")["model"]
    assert settings("--block-size", 16)["kv-page-tokens"] == "16"
    assert settings("-tp", 1)["tensor-parallel-size"] == "1"
    assert settings("--max-model-len", "auto")["max-model-len"] == "0"


@pytest.mark.parametrize("words,named", [
    (("--no-such-flag",), "no-such-flag"),
    (("--port", "99999"), "port"),
    (("--port", "http"), "port"),
    (("--port",), "port"),
    (("--max-num-seqs", "0"), "max-num-seqs"),
    (("--max-num-seqs", "-1"), "max-num-seqs"),
    (("--log-level", "loud"), "log-level"),
    (("--kv-lazy-threshold", "1.5"), "kv-lazy-threshold"),
    (("--monitor-port", "x"), "monitor-port"),
    (("--tensor-parallel-size", "2"), "tensor-parallel-size"),
    (("--enable-expert-parallel",), "enable-expert-parallel"),
    (("--config", "no-such-file.yaml"), "no-such-file.yaml"),
    (("--served-model-name", ""), "served-model-name"),
    (("one", "two"), "two"),
])
def test_a_bad_setting_is_named_and_the_code_is_2(words, named):
    code, out, err = run_command("serve", *words)
    assert code == 2 and out == ""
    assert err.startswith("pikv serve: ") and named in err and err.count("\n") == 1


@pytest.mark.parametrize("words,named", [
    (("--max-num-batched-tokens", "1"), "max-num-batched-tokens"),
    (("--kv-scheduling", "nonsense"), "kv-scheduling"),
    (("--isa", "nonsense"), "isa"),
    (("--kv-sink", "64", "--kv-page-tokens", "4"), "kv-sink"),
    (("--kv-cache-memory-bytes", "1"), "kv-cache-memory-bytes"),
    (("--kv-disk-bytes", "1Gi"), "kv-disk-path"),
    (("--kv-disk-path", "/no/such/folder", "--kv-disk-bytes", "1Gi"), "kv-disk-path"),
    (("--max-model-len", "100000"), "max_position_embeddings"),
])
def test_a_setting_that_does_not_suit_the_model_is_2_as_well(words, named):
    code, out, err = run_command("serve", "--port", 0, *words)
    assert code == 2 and out == "" and named in err


NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}  # wherever this runs


def test_without_a_gpu_cuda_is_refused_and_auto_takes_the_cpu():
    code, out, err = run_command("serve", "--port", 0, "--device", "cuda", env=NO_GPU)
    assert code != 0 and "cuda: " in err + out
    with Server("--device", "auto", env=NO_GPU) as server:
        assert re.search(r"device: the CPU is used cause=\"cuda: ", server.log()), server.log()
        assert re.search(r"opened model=.* device=(ref|avx)", server.log()), server.log()


def test_check_tells_a_bad_setting_from_a_bad_model():
    code, out, err = run_command("serve", "--check", "--isa", "nonsense")
    assert code == 2 and out == "" and "isa" in err


@pytest.mark.parametrize("text,named", [
    ("no-such-key: 1\n", "no-such-key"), ("port: 1\nport: 2\n", "port"), ("port: [1\n", "yaml"),
    ("port: {a: 1}\n", "bad.yaml:1:"), ("config: other.yaml\n", "config"), ("a: &x 1\nb: *x\n", "yaml"),
    ("- port\n", "yaml"), ("port: 1\n---\nport: 2\n", "yaml"), ("port: 70000\n", "port")])
def test_a_bad_file_is_refused_with_its_name(tmp_path, text, named):
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    code, _, err = run_command("serve", "--config", file)
    assert code == 2 and err.count("\n") == 1
    assert named in err, err


def test_a_bad_variable_is_named():
    code, _, err = run_command("serve", env={"PIKV_MAX_NUM_SEQS": "many"})
    assert code == 2 and ("PIKV_MAX_NUM_SEQS" in err or "max-num-seqs" in err)
    code, _, err = run_command("serve", env={"PIKV_NO_SUCH_THING": "1"})
    assert code == 2 and "no-such-thing" in err


SERVICE_LINKS = {"PIKV_SERVICE_HOST": "10.0.0.1", "PIKV_SERVICE_PORT": "8000",
                 "PIKV_SERVICE_PORT_HTTP": "8000", "PIKV_PORT": "tcp://10.0.0.1:8000",
                 "PIKV_PORT_8000_TCP": "tcp://10.0.0.1:8000", "PIKV_PORT_8000_TCP_PROTO": "tcp",
                 "PIKV_PORT_8000_TCP_PORT": "8000", "PIKV_PORT_8000_TCP_ADDR": "10.0.0.1"}


def test_what_kubernetes_says_of_a_service_called_pikv_is_ignored_and_said():
    assert settings(env=SERVICE_LINKS)["port"] == "8000"
    assert settings(env={**SERVICE_LINKS, "PIKV_MONITOR_PORT": "9001"})["monitor-port"] == "9001"
    with Server(env=SERVICE_LINKS) as server:
        said = [line for line in server.log().splitlines() if "enableServiceLinks" in line]
        assert len(said) == 1 and "variables=8" in said[0]
        assert run_command("healthcheck", "--port", server.port, env=SERVICE_LINKS)[0] == 0
    code, _, err = run_command("generate", "models/storyteller", "-p", "x", "-n", 1, env=SERVICE_LINKS)
    assert code == 0, err
    code, _, err = run_command("serve", env={"PIKV_PORT": "http://10.0.0.1:8000"})
    assert code == 2 and "port" in err


def test_help_and_version_are_for_everyone():
    assert run_command("--version")[1].startswith("pikv ")
    for words in (("--help",), ("serve", "--help"), ("generate", "--help"), ("bench", "--help"),
                  ("eval", "--help"), ("healthcheck", "--help")):
        code, out, err = run_command(*words)
        assert code == 0 and out and err == ""
    assert "--max-num-seqs" in run_command("serve", "--help")[1]
    for words in ((), ("dance",)):
        code, out, err = run_command(*words)
        assert code == 2 and out == "" and err


# ---- models ----


def test_the_document_of_flags_says_what_there_is():
    rows = [row.split("|") for row in (ROOT / "docs/flags.md").read_text().splitlines() if row.startswith("| `--")]
    known = dict(re.findall(r"^  --(?:\[no-\])?([a-z-]+) .*?(?:\n {20}.*?)?(?:\(default (.*)\))?$", run_command("serve", "--help")[1], re.M))
    assert len(rows) > 25
    for _, flags, defaults, *_ in rows:
        names = [name.removeprefix("no-") for name in re.findall(r"--([a-z-]+)", flags)]
        assert set(names) <= set(known), flags
        for name, value in zip(names, defaults.split(", ")):
            if re.fullmatch(r"\d+|[a-z0-9.]+", value.strip()) and value.strip() not in ("none", "all", "on", "off"):
                assert known[name] == value.strip(), (name, known[name], value)


def test_a_sound_model_is_checked():
    code, out, err = run_command("serve", "--check", seconds=60)
    assert code == 0 and "sound" in out and err == ""


def test_check_and_serve_refuse_what_is_not_a_model(tmp_path):
    cut = tmp_path / "cut"
    cut.mkdir()
    copy_model(cut)
    (cut / "model.safetensors").unlink()
    data = (MODEL / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(data[:len(data) // 2])
    wrong = tmp_path / "wrong"
    wrong.mkdir()
    copy_model(wrong, hidden_size=128)
    no_tokenizer = tmp_path / "no_tokenizer"
    no_tokenizer.mkdir()
    copy_model(no_tokenizer)
    (no_tokenizer / "tokenizer.model").unlink()
    crowded = ROOT / "tests/golden/mixtral-base-f32"  # 96 tokens, with a tokenizer of 500
    too_many = tmp_path / "too_many"
    shutil.copytree(crowded, too_many)
    shutil.copy(ROOT / "tests/golden/tokenizer-bpe/tokenizer.model", too_many)
    code, _, err = run_command("generate", too_many, "-p", "x", "-n", 1, seconds=60)
    assert code == 1 and "500 pieces" in err, err
    for folder, named in ((tmp_path / "missing", "missing"), (tmp_path, str(tmp_path)),
                          (cut, "model.safetensors"), (wrong, "embed_tokens"),
                          (no_tokenizer, "tokenizer.model"), (too_many, "500 pieces")):
        for words in (("--check",), ("--port", 0)):
            code, out, err = run_command("serve", folder, *words, seconds=60)
            assert code == 1 and out == "", (folder, words)
            assert named in err, err


def test_check_finds_a_value_that_is_no_number(tmp_path):
    copy_model(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    shutil.copy(MODEL / "model.safetensors", tmp_path / "model.safetensors")
    with open(tmp_path / "model.safetensors", "r+b") as file:
        file.seek(-2, 2)
        file.write(b"\xc0\x7f")  # a NaN in bf16
    code, _, err = run_command("serve", tmp_path, "--check", seconds=60)
    assert code == 1 and err


def test_an_api_key_file_without_a_key_is_refused(tmp_path):
    empty = tmp_path / "keys"
    empty.write_text("# nothing\n\n")
    for path in (empty, tmp_path / "missing"):
        code, _, err = run_command("serve", "--port", 0, "--api-key-file", path)
        assert code in (1, 2) and "api-key-file" in err


# ---- healthcheck ----


def free_port():
    """Free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def test_healthcheck_says_whether_the_server_is_ready():
    with Server() as server:
        assert run_command("healthcheck", "--port", server.port)[0] == 0
        assert run_command("healthcheck", env={"PIKV_PORT": str(server.port)})[0] == 0
        assert run_command("healthcheck", "--port", server.monitor_port)[0] == 0
        port = server.port
    code, _, err = run_command("healthcheck", "--port", port)
    assert code == 1 and str(port) in err
    assert run_command("healthcheck", "--port", 0)[0] == 1
    assert run_command("healthcheck", "--port", "x")[0] == 2


def test_healthcheck_takes_the_words_of_the_process_that_it_asks_about():
    with Server() as server:
        pid = server.process.pid
        code, _, err = run_command("healthcheck", "--pid", pid)  # it got --port 0
        assert code == 1 and "port is 0" in err
    port = free_port()
    with Server("--port", port, "--monitor-port", 0) as server:
        assert run_command("healthcheck", "--pid", server.process.pid) == (0, "", "")
        pid = server.process.pid
    code, _, err = run_command("healthcheck", "--pid", pid)
    assert code == 1 and str(pid) in err
    code, _, err = run_command("healthcheck", "--pid", os.getpid())
    assert code == 1 and "no `pikv serve`" in err
    assert run_command("healthcheck", "--pid", "one")[0] == 2
    assert run_command("healthcheck", "--pid")[0] == 2


def test_healthcheck_of_a_full_server_is_the_word_of_its_monitor():
    port = free_port()
    with Server("--port", port, "--monitor-port", 0, "--max-connections", 2) as server:
        ports = ("--port", port, "--monitor-port", server.monitor_port)
        idle = [Connection(port) for _ in range(2)]
        wait_until(lambda: run_command("healthcheck", *ports, "--no-monitor")[0] == 1, 10, "it is full")
        assert run_command("healthcheck", *ports)[0] == 0
        for connection in idle:
            connection.close()


def test_healthcheck_of_a_rank_without_http_says_so():
    place = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    code, out, _ = run_command("healthcheck", env=place)
    assert code == 0 and "rank 1" in out
