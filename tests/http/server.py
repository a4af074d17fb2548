"""Starts the server for a test and checks how it ends.

The binary is PIKV_BIN (build/dev/pikv if unset). Every server gets port 0, so tests run side by side; the
real ports are read from the log. PIKV_SLOW=1 stretches the time limits for sanitizer builds. A server that
leaves with another code than the expected one, or whose log holds a sanitizer's report, fails the test.

PIKV_TEST_DEVICE=cuda puts it on a GPU.

PIKV_TEST_RANKS=local:4 gives every server 4 ranks in its process, mpi:2 starts it under mpirun: the same tests, the
same answers.
"""

import os
import pathlib
import re
import signal
import subprocess
import tempfile
import time

import requests

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARY = os.environ.get("PIKV_BIN", str(ROOT / "build/dev/pikv"))
TRANSPORT, _, N_RANKS = os.environ.get("PIKV_TEST_RANKS", "local:1").partition(":")
DEVICE = os.environ.get("PIKV_TEST_DEVICE")
CHAT_TEMPLATE = ROOT / "tests/http/chat/inst.jinja"  # the default model has none
SLOWNESS = 8 if os.environ.get("PIKV_SLOW") == "1" else 1
REPORTS = ("ERROR: AddressSanitizer", "ERROR: LeakSanitizer", "WARNING: ThreadSanitizer",
           "runtime error:", "Assertion `", "Sanitizer:DEADLYSIGNAL")
SAMPLE = re.compile(r"^([a-z0-9_:]+)(?:\{(.*)\})? (\S+)$")


def limit(seconds):
    """A bound on waiting; never a statement about speed."""
    return seconds * SLOWNESS


def wait_until(is_true, seconds, what):
    """Polls until is_true() gives something true, and returns that."""
    end = time.monotonic() + limit(seconds)
    while True:
        value = is_true()
        if value:
            return value
        assert time.monotonic() < end, f"not within {limit(seconds)} s: {what}"
        time.sleep(0.01)


def clean_environment(extra=None):
    """Ours without the PIKV_* variables that would change settings."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PIKV_")}
    return {**kept, **(extra or {})}


def shared(args):
    """Memory counts per rank: what a test gives to one is dealt to all."""
    args = list(map(str, args))
    for i, word in enumerate(args[:-1]):
        if word in ("--kv-cache-memory-bytes", "--kv-host-bytes", "--kv-disk-bytes"):
            number, unit = re.fullmatch(r"(\d+)(\w*)", args[i + 1]).groups()
            factor = {"": 1, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}[unit]
            args[i + 1] = str(int(number) * factor // int(N_RANKS))
    return args


def serve_words(args):
    """The words that start `pikv serve` with as many ranks as PIKV_TEST_RANKS says."""
    words = [BINARY, "serve", "--port", "0", *shared(args)]
    if TRANSPORT == "mpi":
        return ["mpirun", "--allow-run-as-root", "--oversubscribe", "-np", N_RANKS, *words]
    if int(N_RANKS) > 1 and "--ranks" not in args:
        words += ["--ranks", N_RANKS]
    if DEVICE and "--device" not in args:
        words += ["--device", DEVICE]
    return words


def rank_0_of(launcher):
    """The process of rank 0 among the children of mpirun."""
    children = pathlib.Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    for child in map(int, children):
        try:
            environment = pathlib.Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"OMPI_COMM_WORLD_RANK=0" in environment:
            return child
    return None


def run_command(*words, env=None, seconds=20):
    """`pikv WORDS` to its end: (code, stdout, stderr)."""
    done = subprocess.run([BINARY, *map(str, words)], cwd=ROOT, env=clean_environment(env),
                          capture_output=True, text=True, timeout=limit(seconds), check=False)
    for report in REPORTS:
        assert report not in done.stderr, done.stderr
    return done.returncode, done.stdout, done.stderr


def parse_metrics(text):
    """{(name, frozenset of label pairs without model_name): value}"""
    values = {}
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        name, labels, value = SAMPLE.match(line).groups()
        pairs = re.findall(r'([a-z_]+)="((?:[^"\\]|\\.)*)"', labels or "")
        values[name, frozenset(p for p in pairs if p[0] != "model_name")] = float(value)
    return values


class Metrics:
    """One scrape."""

    def __init__(self, text):
        self.values = parse_metrics(text)

    def get(self, name, **labels):
        return self.values["pikv_" + name, frozenset(labels.items())]

    def sum(self, name, **labels):
        """Over all samples of a family that carry these labels."""
        wanted = frozenset(labels.items())
        return sum(v for (n, pairs), v in self.values.items()
                   if n == "pikv_" + name and wanted <= pairs)


class Server:
    """`pikv serve` in a process of its own. Use as a context: leaving it stops and checks the server."""

    def __init__(self, *args, env=None, waits="ready", code=0):
        self.code = code
        self._is_stopping = False
        self._log = tempfile.TemporaryFile()
        self.process = subprocess.Popen(serve_words(args), cwd=ROOT, env=clean_environment(env),
                                        stdout=self._log, stderr=subprocess.STDOUT)
        try:
            self.port = self._find_port("main")
            self.monitor_port = self._find_port("monitor") if "--no-monitor" not in args else 0
            if waits == "ready":
                wait_until(lambda: self._log_says(r" ready model="), 60, "ready")
        except BaseException:
            self.kill()
            raise
        self.url = f"http://127.0.0.1:{self.port}"
        self.monitor_url = f"http://127.0.0.1:{self.monitor_port}"

    def log(self):
        return os.pread(self._log.fileno(), 1 << 26, 0).decode("utf-8", "replace")

    def _log_says(self, pattern):
        found = re.search(pattern, self.log())
        assert found or self.process.poll() is None, "the server has ended:\n" + self.log()
        return found

    def _find_port(self, name):
        pattern = rf"listening name={name} url=http://[^ \n]*:(\d+)"
        return int(wait_until(lambda: self._log_says(pattern), 20, f"{name} listens").group(1))

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        if kind is None:
            self.stop()
        else:
            self.kill()
            print(self.log()[-4000:])

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def terminate(self, number=signal.SIGTERM):
        self._is_stopping = True
        self.send_signal(number)

    def send_signal(self, number):
        """To the process that serves, which mpirun is not."""
        rank_0 = rank_0_of(self.process.pid) if TRANSPORT == "mpi" else self.process.pid
        if rank_0 is not None:
            os.kill(rank_0, number)

    def wait(self, seconds=45):
        """Until the process has ended by itself; its exit code."""
        try:
            code = self.process.wait(limit(seconds))
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        for report in REPORTS:
            assert report not in self.log(), self.log()[-20000:]
        return code

    def stop(self):
        if not self._is_stopping:
            self.terminate()
        code = self.wait()
        assert code == self.code, f"exit code {code}:\n{self.log()[-4000:]}"

    # ---- requests ----

    def post(self, path, body=None, **more):
        """`body` is what is sent as JSON; data=bytes sends those instead."""
        if "data" not in more:
            more["json"] = body
        return requests.post(self.url + path, timeout=limit(60), **more)

    def get(self, path, **more):
        return requests.get(self.url + path, timeout=limit(20), **more)

    def complete(self, prompt, **fields):
        """A completion that must succeed, at temperature 0 unless told otherwise: the document."""
        reply = self.post("/v1/completions", {"prompt": prompt, "temperature": 0, **fields})
        assert reply.status_code == 200, reply.text
        return reply.json()

    def text(self, prompt, **fields):
        return self.complete(prompt, **fields)["choices"][0]["text"]

    def chat(self, messages, **fields):
        """A chat that must succeed, at temperature 0 unless told otherwise: the document. A text is a user's."""
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        reply = self.post("/v1/chat/completions", {"messages": messages, "temperature": 0, **fields})
        assert reply.status_code == 200, reply.text
        return reply.json()

    def tokenize(self, text, special=True):
        reply = self.post("/tokenize", {"prompt": text, "add_special_tokens": special})
        assert reply.status_code == 200, reply.text
        return reply.json()["tokens"]

    def metrics(self):
        """From the monitor listener, so that a crowded server answers too."""
        return Metrics(requests.get(self.monitor_url + "/metrics", timeout=limit(20)).text)

    def wait_idle(self, seconds=10):
        """Until nothing runs or waits and no page is in use."""
        def is_idle():
            m = self.metrics()
            return (m.get("kv_blocks", state="used") == 0 and m.get("requests_running") == 0 and
                    m.get("requests_waiting") == 0 and m.get("kv_sequences_open") == 0)
        wait_until(is_idle, seconds, "an idle engine without pages in use")
