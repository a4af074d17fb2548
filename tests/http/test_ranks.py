"""A server over several processes: one answer, one life, one end.

Ranks find each other over TCP by RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, as torchrun and Kubernetes set
them. A rank that is killed, stopped or cut off ends the whole group within seconds: one clear line on every
survivor, an exit code that is not 0, and for clients an error instead of silence.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from server import BINARY, REPORTS, ROOT, SLOWNESS, Server, clean_environment, limit, run_command, wait_until
from wire import Connection, completion_bytes, sse_events

STORY = "Once upon a time there was a little girl"
ENDLESS = {"max_tokens": 1900, "ignore_eos": True}
LONG_PROMPT = [5 + i % 4000 for i in range(2000)]
SLOW = ("--max-num-batched-tokens", 1, "--max-num-seqs", 1)  # seconds of prefill for LONG_PROMPT
TIMEOUT_S = 3 if SLOWNESS == 1 else 8  # --rank-timeout: what a stopped rank costs
END_S = TIMEOUT_S + 7  # ten seconds from the loss to the last process's end


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Group:
    """`pikv serve` as n processes, rank 0 first. Use as a context."""

    def __init__(self, n, *args, waits=True, env_of=None, prefix_of=None, host="127.0.0.1"):
        port = free_port()
        self.logs = [tempfile.TemporaryFile() for _ in range(n)]
        self.ranks = []
        for rank in range(n):
            env = {"RANK": str(rank), "WORLD_SIZE": str(n), "MASTER_ADDR": host,
                   "MASTER_PORT": str(port), **((env_of or {}).get(rank, {}))}
            words = [*(prefix_of(rank) if prefix_of else []), BINARY, "serve", "--host", host,
                     "--port", "0", "--rank-timeout", str(TIMEOUT_S), *map(str, args)]
            self.ranks.append(subprocess.Popen(words, cwd=ROOT, env=clean_environment(env),
                                               stdout=self.logs[rank], stderr=subprocess.STDOUT))
        if waits:
            wait_until(lambda: self.says(0, r" ready model="), 60, "ready")
            self.port = int(re.search(r"name=main url=http://[^ \n]*:(\d+)", self.log(0)).group(1))
            self.url = f"http://{host}:{self.port}"

    def log(self, rank):
        return os.pread(self.logs[rank].fileno(), 1 << 24, 0).decode("utf-8", "replace")

    def says(self, rank, pattern):
        found = re.search(pattern, self.log(rank))
        assert found or self.ranks[rank].poll() is None, f"rank {rank} has ended:\n" + self.log(rank)
        return found

    def text(self, prompt, **fields):
        reply = requests.post(self.url + "/v1/completions", timeout=limit(60),
                              json={"prompt": prompt, "temperature": 0, **fields})
        assert reply.status_code == 200, reply.text
        return reply.json()["choices"][0]["text"]

    def metrics(self):
        return requests.get(self.url + "/metrics", timeout=limit(20)).text

    def wait(self, rank, seconds=END_S):
        code = self.ranks[rank].wait(limit(seconds))
        for report in REPORTS:
            assert report not in self.log(rank), self.log(rank)[-20000:]
        return code

    def errors(self, rank):
        return [line for line in self.log(rank).splitlines() if " error " in line]

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        for process in self.ranks:
            if process.poll() is None:
                process.kill()
                process.wait()
        if kind is not None:
            for rank in range(len(self.ranks)):
                print(f"--- rank {rank}\n{self.log(rank)[-3000:]}")


def plain_text(prompt, **fields):
    with Server("--ranks", 1) as server:
        return server.text(prompt, **fields)


# ---- one answer ----


def test_processes_answer_as_one_rank_and_leave_together():
    expected = plain_text(STORY, max_tokens=64)
    with Group(3) as group:
        assert group.text(STORY, max_tokens=64) == expected
        assert group.text(STORY, max_tokens=64) == expected  # from the prefix cache
        for rank in range(3):
            assert f'pikv_rank_weight_bytes{{model_name="storyteller",rank="{rank}"}}' in \
                group.metrics()
        group.ranks[0].send_signal(signal.SIGTERM)
        assert [group.wait(rank) for rank in range(3)] == [0, 0, 0]
        assert all(not group.errors(rank) for rank in range(3))


def test_a_request_that_runs_is_finished_when_all_are_told_to_stop():
    with Group(2, "--shutdown-timeout", 600) as group:  # however slow the machine
        client = Connection(group.port)
        client.start_stream(STORY, **ENDLESS)
        for process in group.ranks:
            process.send_signal(signal.SIGTERM)
        events = sse_events(client.read_rest_of_stream())
        assert events[-1]["choices"][0]["finish_reason"] == "length"
        assert [group.wait(rank, 60) for rank in range(2)] == [0, 0]
        assert "rank 0 decides when this one ends" in group.log(1)


def test_experts_move_while_requests_run_and_no_token_changes():
    prompts = [STORY, "The king had a daughter who", [7 * i % 4000 for i in range(300)]]
    fields = {"max_tokens": 150, "ignore_eos": True}
    with Server("--ranks", 1) as alone:
        expected = [alone.text(prompt, **fields) for prompt in prompts]
    with Server("--ranks", 3, "--expert-placement-strategy", "eplb", "--num-redundant-experts", 2,
                "--eplb-step-interval", 20, "--eplb-min-imbalance", 1) as server:
        for _ in range(2):
            with ThreadPoolExecutor(3) as pool:
                assert list(pool.map(lambda p: server.text(p, **fields), prompts)) == expected
        wait_until(lambda: server.metrics().get("expert_rebalances_total") > 0, 10, "a report")
        metrics = server.metrics()
    assert metrics.get("expert_moves_total") > 0
    assert metrics.sum("rank_expert_choices_total") > 0
    assert 1 <= metrics.get("rank_expert_imbalance_ratio") < 3


@pytest.mark.parametrize("flags,named", [
    (("--num-redundant-experts", 1), "num-redundant-experts: 1"),
    (("--ranks", 2, "--num-redundant-experts", 9), "num-redundant-experts: 9"),
    (("--ranks", 65), "ranks: 65"),
    (("--ranks", 3, "--kv-shards", 2), "kv-shards: 2 is less than the number of ranks, 3"),
    (("--enable-expert-parallel",), "enable-expert-parallel"),
])
def test_flags_that_make_no_sense_are_refused_by_name(flags, named):
    code, _, err = run_command("serve", "--port", 0, "--no-monitor", *flags)
    assert code == 2 and named in err, err


@pytest.mark.parametrize("kv", [
    {"scheduling": "snapkv", "budget": 0.5},
    {"scheduling": "kvzip", "budget": 0.5},
    {"compression": "chunkkv,int4", "budget": 0.5},
    {"compression": "svd"},
    {"scheduling": "keydiff", "budget": 0.5, "rewrite": "merge,rerotate"},
], ids=str)
def test_a_request_over_ranks_has_its_own_methods_beside_others(kv):
    with Server("--ranks", 3, "--kv-request-methods", "--kv-page-tokens", 16, "--kv-window", 16) as server:
        asked = {"max_tokens": 30, "ignore_eos": True}
        alone = server.text(STORY * 3, kv=kv, cache_salt="a", **asked)
        with ThreadPoolExecutor(3) as pool:
            beside = [pool.submit(server.text, STORY * 3, kv=own, cache_salt=f"b{i}", **asked)
                      for i, own in enumerate([kv, {}, kv])]
            texts = [each.result() for each in beside]
        assert texts[0] == alone and texts[2] == alone
        server.wait_idle()
        assert server.metrics().get("kv_used_bytes") == 0


def test_every_rank_is_on_the_metrics():
    with Server("--ranks", 4) as server:
        server.text(STORY, max_tokens=200, ignore_eos=True)
        wait_until(lambda: all(server.metrics().get("rank_kv_slab_bytes", rank=str(rank)) > 0 for rank in range(4)),
                   10, "every rank's report")
        metrics = server.metrics()
        for rank in map(str, range(4)):
            assert metrics.get("rank_weight_bytes", rank=rank) > 0
            assert metrics.get("rank_kv_budget_bytes", rank=rank) > 0
            assert metrics.get("rank_kv_slab_bytes", rank=rank) > 0
            for kind in ("all_gather", "all_reduce"):
                assert metrics.get("comm_calls_total", rank=rank, collective=kind) > 0
                assert metrics.get("comm_bytes_total", rank=rank, collective=kind) > 0
                assert metrics.get("comm_seconds_total", rank=rank, collective=kind) > 0
        done = subprocess.run(["promtool", "check", "metrics"], text=True, timeout=60, check=False,
                              input=server.get("/metrics").text, capture_output=True)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# ---- coming together ----


def test_ready_only_when_every_rank_is():
    with Group(2) as group:
        assert requests.get(group.url + "/ready", timeout=limit(20)).status_code == 200
    port = free_port()
    env = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with Server(env=env, waits="listening") as lonely:
        assert lonely.get("/live").status_code == 200
        ready = lonely.get("/ready")
        assert (ready.status_code, ready.json()) == (503, {"status": "loading"})
        lonely.terminate()
        assert lonely.wait() == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="an /etc/hosts of its own needs root")
def test_rank_0_waits_for_its_own_name_as_a_new_pod_must(tmp_path):
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 localhost\n203.0.113.7 late.pikv\n")  # that of its predecessor
    own = f'mount --bind {hosts} /etc/hosts && exec "$0" "$@"'
    env = {"MASTER_ADDR": "late.pikv"}
    with Group(2, waits=False, env_of={0: env, 1: env},
               prefix_of=lambda rank: ["unshare", "--mount", "sh", "-c", own]) as group:
        wait_until(lambda: group.says(0, "waiting cause="), 20, "it waits")
        hosts.write_text("127.0.0.1 localhost\n127.0.0.1 late.pikv\n")
        wait_until(lambda: group.says(0, r" ready model="), 60, "ready")


def test_a_rank_that_nobody_meets_gives_up():
    env = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    code, _, err = run_command("serve", "--rank-open-timeout", 1, env=env)
    assert code == 1
    assert re.search(r"rank 1 ends: .*127\.0\.0\.1", err), err


def test_ranks_without_gpus_have_no_collectives_of_gpus():
    code, _, err = run_command("serve", "--ranks", 2, "--rank-collectives", "nccl")
    assert code == 1
    assert "nccl: rank 0 has no " in err, err


@pytest.mark.parametrize("name,value", [("PIKV_KV_PAGE_TOKENS", "16"), ("PIKV_ISA", "ref"),
                                        ("PIKV_MODEL", "tests/golden/mixtral-base-f32")])
def test_ranks_that_differ_end_at_once_and_say_so(name, value):
    with Group(2, waits=False, env_of={1: {name: value}}) as group:
        assert [group.wait(rank, 30) for rank in range(2)] == [2, 2]
        for rank in range(2):
            assert len(group.errors(rank)) == 1
            assert "differ in version, settings or model" in group.errors(rank)[0]


def test_a_rank_that_cannot_load_ends_the_others_with_its_reason():
    with Group(2, waits=False, env_of={1: {"PIKV_KV_CACHE_MEMORY_BYTES": "1Ki"},
                                       0: {"PIKV_KV_CACHE_MEMORY_BYTES": "1Ki"}}) as group:
        assert all(group.wait(rank, 30) != 0 for rank in range(2))
        for rank in range(2):
            assert len(group.errors(rank)) == 1, group.log(rank)
            assert "kv-cache-memory-bytes" in group.errors(rank)[0]


def test_a_warm_up_that_fails_ends_every_rank_with_its_cause(tmp_path):
    model = tmp_path / "model"
    shutil.copytree(ROOT / "models/storyteller", model)
    with open(model / "model.safetensors", "r+b") as file:
        n_header = int.from_bytes(file.read(8), "little")
        begin, end = json.loads(file.read(n_header))["model.norm.weight"]["data_offsets"]
        file.seek(8 + n_header + begin)
        file.write(b"\xc0\x7f" * ((end - begin) // 2))  # NaN in bf16
    with Group(2, "--model", model, waits=False) as group:
        for rank in range(2):
            assert group.wait(rank, 30) == 1, f"rank {rank}"
            assert len(group.errors(rank)) == 1, group.log(rank)
            assert "warm-up" in group.errors(rank)[0], group.log(rank)


@pytest.mark.parametrize("env,named", [
    ({"WORLD_SIZE": "2"}, "RANK"),
    ({"WORLD_SIZE": "2", "RANK": "2", "MASTER_ADDR": "x"}, "RANK"),
    ({"WORLD_SIZE": "two"}, "WORLD_SIZE"),
    ({"WORLD_SIZE": "2", "RANK": "1"}, "MASTER_ADDR"),
    ({"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "x", "MASTER_PORT": "70000"}, "MASTER_PORT"),
    ({"LWS_GROUP_SIZE": "2", "LWS_WORKER_INDEX": "1"}, "LWS_LEADER_ADDRESS"),
    ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "x", "PIKV_RANKS": "3"}, "ranks: 3"),
])
def test_a_launch_that_makes_no_sense_is_refused_by_name(env, named):
    code, _, err = run_command("serve", env=env)
    assert code == 2
    assert named in err, err


# ---- the end ----


def stop_here(process):
    process.send_signal(signal.SIGSTOP)


def kill_here(process):
    process.kill()


LOSSES = {"killed": kill_here, "stopped": stop_here}


def check_survivors(group, lost):
    for rank in range(len(group.ranks)):
        if rank == lost:
            continue
        assert group.wait(rank) == 1, f"rank {rank}"
        assert len(group.errors(rank)) == 1, group.log(rank)
        assert f"rank {lost} is lost" in group.errors(rank)[0], group.errors(rank)


@pytest.mark.parametrize("lost", [0, 1, 2])
@pytest.mark.parametrize("loss", LOSSES)
def test_a_lost_rank_ends_an_idle_group(loss, lost):
    with Group(3) as group:
        time.sleep(0.2)
        LOSSES[loss](group.ranks[lost])
        check_survivors(group, lost)


@pytest.mark.parametrize("lost", [0, 1, 2])
@pytest.mark.parametrize("loss", LOSSES)
def test_a_lost_rank_ends_a_group_that_decodes(loss, lost):
    with Group(3) as group:
        client = Connection(group.port)
        client.start_stream(STORY, **ENDLESS)
        LOSSES[loss](group.ranks[lost])
        check_survivors(group, lost)
        if lost != 0:
            events = sse_events(client.read_rest_of_stream())
            assert "could not finish this request" in events[-1]["error"]["message"]


@pytest.mark.parametrize("lost", [0, 1, 2])
@pytest.mark.parametrize("loss", LOSSES)
def test_a_lost_rank_ends_a_group_that_reads_a_prompt(loss, lost):
    with Group(3, *SLOW) as group:
        client = Connection(group.port)
        client.send(completion_bytes(LONG_PROMPT, max_tokens=5))
        wait_until(lambda: "pikv_requests_running" in group.metrics() and re.search(
            r"pikv_requests_running\{[^}]*\} 1", group.metrics()), 20, "it runs")
        LOSSES[loss](group.ranks[lost])
        check_survivors(group, lost)
        if lost != 0:
            reply = client.read_reply()
            assert reply.status == 500 and "could not finish" in reply.json()["error"]["message"]


# ---- two machines, in miniature ----


def namespaces_allowed():
    if os.geteuid() != 0 or not shutil.which("ip"):
        return False
    done = subprocess.run(["ip", "netns", "add", f"pikv-probe-{os.getpid()}"], capture_output=True,
                          check=False)
    subprocess.run(["ip", "netns", "del", f"pikv-probe-{os.getpid()}"], capture_output=True,
                   check=False)
    return done.returncode == 0


class Link:
    """Two network namespaces, a pair of virtual interfaces between them."""

    def __init__(self):
        self.names = [f"pikv-{os.getpid()}-{side}" for side in "ab"]
        self.addresses = ["10.77.0.1", "10.77.0.2"]

    def ip(self, *words, side=None):
        where = ["ip"] if side is None else ["ip", "-n", self.names[side]]
        subprocess.run([*where, *words], check=True, capture_output=True, timeout=20)

    def __enter__(self):
        for name in self.names:
            self.ip("netns", "add", name)
        self.ip("link", "add", "eth0", "netns", self.names[0], "type", "veth", "peer", "name",
                "eth0", "netns", self.names[1])
        for side in range(2):
            self.ip("addr", "add", self.addresses[side] + "/24", "dev", "eth0", side=side)
            self.ip("link", "set", "eth0", "up", side=side)
            self.ip("link", "set", "lo", "up", side=side)
        return self

    def __exit__(self, kind, value, trace):
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)

    def prefix(self, side):
        return ["ip", "netns", "exec", self.names[side]]

    def curl(self, url, body):
        done = subprocess.run([*self.prefix(1), "curl", "-sS", "-H", "Content-Type: application/json",
                               "-d", json.dumps(body), url], capture_output=True, text=True,
                              timeout=limit(60), check=True)
        return json.loads(done.stdout)


@pytest.mark.skipif(not namespaces_allowed(), reason="network namespaces are not allowed here")
def test_two_namespaces_serve_together_and_a_cut_link_ends_both():
    expected = plain_text(STORY, max_tokens=24)
    with Link() as link:
        with Group(2, host=link.addresses[0], prefix_of=link.prefix) as group:
            reply = link.curl(group.url + "/v1/completions",
                              {"prompt": STORY, "max_tokens": 24, "temperature": 0})
            assert reply["choices"][0]["text"] == expected
            link.ip("link", "set", "eth0", "down", side=1)
            for rank in range(2):
                assert group.wait(rank) == 1
                assert len(group.errors(rank)) == 1, group.log(rank)
                assert f"rank {1 - rank} is lost" in group.errors(rank)[0]
