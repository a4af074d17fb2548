#!/usr/bin/env python3
"""Runs an unpacked image as its configuration says, and checks what it promises: part of docker/test.sh.

    check_image.py IMAGE.json FOLDER [--stored-bytes TEXT] [--host-network]

IMAGE.json is `buildah inspect --type image`, FOLDER the mounted root. Needs root, for namespaces. Standard library only."""

import argparse
import contextlib
import http.client
import json
import os
import pathlib
import re
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
IMAGE_BYTES_MAX = 120_000_000  # without the model
ENDLESS = {"max_tokens": 2000, "ignore_eos": True, "stream": True, "temperature": 0}

# Read-only root with its own /proc, a /dev of four devices, and nothing else that can be written; then the user of the
# image with no capabilities, as process 1. $1: root, $2: model to mount or "", then UID, GID, the working folder.
INSIDE = r"""
set -eu
root=$1; model=$2; uid=$3; gid=$4; folder=$5; shift 5
mount --bind "$root" "$root"
cd "$root"
mount -t proc proc proc
mount -t tmpfs -o mode=755,nosuid,size=64k tmpfs dev
for node in null:3 zero:5 random:8 urandom:9; do mknod -m 666 "dev/${node%:*}" c 1 "${node#*:}"; done
mount -o remount,ro dev
if [ -n "$model" ]; then
    mount -t tmpfs -o mode=755 tmpfs models
    mkdir models/mine
    mount --bind "$model" models/mine
    mount -o remount,ro,bind models/mine
    mount -o remount,ro models
fi
mount -o remount,ro,bind "$root"
exec chroot . setpriv --reuid "$uid" --regid "$gid" --clear-groups --no-new-privs --bounding-set=-all --inh-caps=-all \
    env --chdir="$folder" "$@"
"""


def wait_until(is_true, seconds, what):
    end = time.monotonic() + seconds
    while not (value := is_true()):
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.02)
    return value


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


class Image:
    """What the configuration says."""

    def __init__(self, about, folder):
        document = json.loads(pathlib.Path(about).read_text())
        self.folder = pathlib.Path(folder)
        self.document = document["Docker"]
        self.config = self.document["config"]
        self.history = [entry.get("created_by", "") for entry in self.document["history"]]
        self.env = dict(pair.split("=", 1) for pair in self.config["Env"])
        self.uid, _, self.gid = self.config["User"].partition(":")
        self.model = self.config["WorkingDir"] + "/models/storyteller"
        self.ports = sorted(int(port.split("/")[0]) for port in self.config["ExposedPorts"])


class Container:
    """One start of the image. `env` and `words` are what `docker run -e ... IMAGE WORDS` would add."""

    def __init__(self, image, *words, env=None, model=None, ports=None):
        self.image = image
        self.port, self.monitor_port = ports or image.ports
        self.env = {**image.env, **(env or {})}
        if ports:
            self.env.update(PIKV_PORT=str(ports[0]), PIKV_MONITOR_PORT=str(ports[1]))
        self.log_file = tempfile.TemporaryFile()
        entry = [f"{k}={v}" for k, v in self.env.items()] + image.config["Entrypoint"] + list(words)
        self.process = subprocess.Popen(
            ["unshare", "--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child", "env", "-i",
             f"PATH={os.environ['PATH']}", "sh", "-c", INSIDE, "sh", str(image.folder), str(model or ""), image.uid,
             image.gid, image.config["WorkingDir"], "-i", *entry],
            stdout=self.log_file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if self.process.poll() is None:
            for child in self.children():  # process 1, and its namespace with it: unshare waits for that
                os.kill(child, signal.SIGKILL)
            self.process.wait()
        if kind is not None:
            print(self.log(), file=sys.stderr)

    def log(self):
        return os.pread(self.log_file.fileno(), 1 << 24, 0).decode()

    def children(self):
        here = self.process.pid
        return [int(child) for child in pathlib.Path(f"/proc/{here}/task/{here}/children").read_text().split()]

    def pid(self):
        """Process 1, by the number it has here, once it is the server."""
        assert self.process.poll() is None, "it has ended"
        with contextlib.suppress(OSError):
            for child in self.children():
                if os.readlink(f"/proc/{child}/exe").endswith("/pikv"):
                    return child
        return None

    def wait_pid(self):
        return wait_until(self.pid, 20, "the server is process 1")

    def wait(self, seconds=60):
        return self.process.wait(seconds)

    def run(self, words, **more):
        """A second process in the container, as `docker exec` would start it, or a health check."""
        enter = ["nsenter", "--target", str(self.wait_pid()), "--mount", "--pid", "--root", "--ipc", "--uts",
                 f"--setuid={self.image.uid}", f"--setgid={self.image.gid}", "env", "-i",
                 f"--chdir={self.image.config['WorkingDir']}"]
        return subprocess.run(enter + [f"{k}={v}" for k, v in self.env.items()] + list(words), capture_output=True,
                              text=True, timeout=60, check=False, **more)

    def is_healthy(self):
        kind, *words = self.image.config["Healthcheck"]["Test"]
        assert kind == "CMD", "the health check wants a shell"
        return self.run(words).returncode == 0

    def wait_healthy(self):
        wait_until(self.is_healthy, 60, "healthy")

    def get(self, path, port=None):
        connection = http.client.HTTPConnection("127.0.0.1", port or self.port, timeout=30)
        connection.request("GET", path)
        reply = connection.getresponse()
        return reply.status, reply.read().decode()

    def post(self, body):
        """The open reply: streams are read by the caller."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        return connection.getresponse()


def events(text):
    frames = text.split("\n\n")
    assert frames[-2:] == ["data: [DONE]", ""], "the stream has no proper end: " + text[-300:]
    return [json.loads(frame.removeprefix("data: ")) for frame in frames[:-2]]


# ---- the image as it lies there --------------------------------------------------------------------


def all_files(folder):
    for base, folders, names in os.walk(folder):
        for name in folders + names:
            path = os.path.join(base, name)
            yield "/" + os.path.relpath(path, folder), os.lstat(path)


def check_configuration(image, options):
    config = image.config
    assert config["Entrypoint"] == ["pikv", "serve"] and not config.get("Cmd"), config
    assert re.fullmatch(r"[1-9]\d*", image.uid) and re.fullmatch(r"[1-9]\d*", image.gid), config["User"]
    assert image.env["PIKV_HOST"] == "0.0.0.0"
    assert config["StopSignal"] in ("SIGTERM", "15")
    assert {"title", "version", "licenses"} <= {key.rpartition(".")[2] for key in config["Labels"]}
    printed = "\n".join(image.history) + json.dumps(config)
    assert not re.search(r"(?i)password|token=|secret|BEGIN [A-Z ]*KEY", printed)
    assert "maintainer" not in printed.lower() and not image.document.get("author")
    return f"user {config['User']}, entrypoint {' '.join(config['Entrypoint'])}"


def check_size(image, options):
    sizes, model_bytes, seen = 0, 0, set()
    for path, about in all_files(image.folder):
        if not stat.S_ISREG(about.st_mode) or about.st_ino in seen:
            continue
        seen.add(about.st_ino)
        sizes += about.st_size
        model_bytes += about.st_size if path.startswith(image.model + "/") else 0
    assert model_bytes > 1_000_000, "there is no model inside"
    number, unit = re.fullmatch(r"([0-9.]+) ([A-Za-z]+)", options.stored_bytes).groups()
    stored = float(number) * {"KB": 1e3, "MB": 1e6, "GB": 1e9}[unit] - model_bytes
    rest = max(sizes - model_bytes, stored)
    assert rest <= IMAGE_BYTES_MAX, f"{rest / 1e6:.1f} MB without the model"
    return f"{rest / 1e6:.1f} MB without the model, which has {model_bytes / 1e6:.1f} MB"


def check_contents(image, options):
    """Nothing that only a build needs, and nothing that the user could change."""
    left = re.compile(r"^/(src|work|root/.+|var/lib/apt/lists/.+|var/cache/apt/.+|var/log/.+|usr/include/.+"
                      r"|usr/bin/([a-z0-9_-]*-)?(gcc|g\+\+|cc|c\+\+|ld|as|make|cmake|ninja|git|python3?|curl|wget)(-[0-9.]+)?"
                      r"|.*/\.git|.*\.(a|deb|o|whl|safetensors\.index)|.*/CMakeLists\.txt)$")
    own = re.compile(r"^/(root/\.(bashrc|profile)|var/(log|cache)/[a-z]+)$")  # of the base
    found = [path for path, about in all_files(image.folder)
             if left.match(path) and not own.match(path) and not stat.S_ISDIR(about.st_mode)]
    assert not found, f"left over: {found[:20]}"
    loose = [path for path, about in all_files(image.folder) if not stat.S_ISLNK(about.st_mode) and
             (about.st_uid == int(image.uid) or (about.st_mode & stat.S_IWOTH and not about.st_mode & stat.S_ISVTX))
             and not stat.S_ISCHR(about.st_mode)]
    assert not loose, f"the user may write: {loose[:20]}"
    linked = subprocess.run(["chroot", str(image.folder), "ldd", "/usr/bin/pikv"], capture_output=True, text=True,
                            check=True).stdout
    assert "not found" not in linked and "cuda" not in linked, linked
    return "no compiler, source, cache or log; nothing that the user owns"


# ---- the image as it runs ----------------------------------------------------------------------------


def status_of(pid):
    lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def is_heard(pid, number):
    """To process 1 the kernel delivers only what it has asked for: blocked for sigwait, or caught."""
    status = status_of(pid)
    return (int(status["SigBlk"], 16) | int(status["SigCgt"], 16)) >> (number - 1) & 1


def check_process(image, options):
    with Container(image, ports=options.ports) as container:
        container.wait_healthy()
        status = status_of(container.wait_pid())
        assert status["NSpid"].split()[-1] == "1", status["NSpid"]
        assert set(status["Uid"].split()) == {image.uid} and set(status["Gid"].split()) == {image.gid}
        assert status["Groups"].strip() == ""
        assert {int(status[name], 16) for name in ("CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb")} == {0}
        assert status["NoNewPrivs"].strip() == "1"
        for number in (signal.SIGTERM, signal.SIGINT):
            assert is_heard(container.wait_pid(), number), f"{number.name} would be lost"
        for path in ("/x", "/models/x", "/tmp/x", "/dev/x"):  # /tmp is open to everybody in the image
            touched = container.run(["touch", path])
            assert re.search("Read-only file system" if path != "/dev/x" else "Permission|Read-only", touched.stderr), \
                touched
        os.kill(container.wait_pid(), signal.SIGTERM)
        assert container.wait() == 0, "idle, and not drained"
        assert "drained" in container.log()
        return f"process 1, uid {image.uid}, no capabilities, read-only root; SIGTERM when idle: code 0"


def check_service(image, options):
    with Container(image, ports=options.ports) as container:
        container.wait_healthy()
        reply = container.post({"prompt": "Once upon a time", "max_tokens": 24, "temperature": 0})
        document = json.loads(reply.read())
        assert reply.status == 200 and document["model"] == "storyteller", document
        text = document["choices"][0]["text"]
        assert text.strip() and document["usage"]["completion_tokens"] == 24, document
        status, metrics = container.get("/metrics", container.monitor_port)
        assert status == 200
        made = re.search(r"^pikv_generation_tokens_total(?:\{.*\})? (\d+)$", metrics, re.M)
        assert made and int(made.group(1)) == 24, metrics[:2000]
        for path in ("/live", "/ready"):
            assert container.get(path, container.monitor_port)[0] == 200
        assert container.is_healthy()
        return f'"Once upon a time{text[:40]}...", {metrics.count("# TYPE")} families of metrics'


def check_drain(image, options):
    """SIGTERM in the middle of a stream: the stream comes to its end, and then the process."""
    with Container(image, ports=options.ports) as container:
        container.wait_healthy()
        reply = container.post({**ENDLESS, "prompt": "Once upon a time", "n": 4, "max_tokens": 500})
        begun = reply.read1(100).decode()
        assert begun.startswith("data: "), begun
        os.kill(container.wait_pid(), signal.SIGTERM)
        wait_until(lambda: "stopping:" in container.log(), 10, "it says that it stops")
        assert container.process.poll() is None, "it did not wait for the stream"
        assert not container.is_healthy(), "ready while it drains"
        refused = container.post({"prompt": "x"})
        assert refused.status == 503 and refused.getheader("Retry-After"), refused.status
        ends = [event["choices"][0]["finish_reason"] for event in events(begun + reply.read().decode())]
        assert ends.count("length") == 4, ends
        assert container.wait() == 0
        return "SIGTERM in a stream: 4 choices finished, new requests 503, code 0"


def check_impatience(image, options):
    """A time limit ends streams with an error, a second signal ends everything."""
    with Container(image, "--shutdown-timeout", "1", ports=options.ports) as container:
        container.wait_healthy()
        reply = container.post({**ENDLESS, "prompt": "Once upon a time", "n": 32})
        begun = reply.read1(100).decode()
        os.kill(container.wait_pid(), signal.SIGTERM)
        assert events(begun + reply.read().decode())[-1]["error"]["code"] == "draining"
        assert container.wait() == 0
    with Container(image, ports=options.ports) as container:
        container.wait_healthy()
        reply = container.post({**ENDLESS, "prompt": "Once upon a time", "n": 32})
        reply.read1(100)
        os.kill(container.wait_pid(), signal.SIGTERM)
        wait_until(lambda: "stopping:" in container.log(), 10, "it says that it stops")
        os.kill(container.wait_pid(), signal.SIGTERM)
        assert container.wait() == 1
    with Container(image, ports=options.ports) as container:
        pid = container.wait_pid()
        wait_until(lambda: is_heard(pid, signal.SIGTERM), 10, "SIGTERM is heard")
        os.kill(pid, signal.SIGTERM)  # before it has loaded, or just then
        assert container.wait() == 0
    return "after --shutdown-timeout an error ends the stream, code 0; a second SIGTERM: code 1"


def check_settings(image, options):
    """A mounted model, flags, and what Kubernetes adds to the environment."""
    port = free_port()
    links = {"PIKV_SERVICE_HOST": "10.0.0.1", "PIKV_PORT_8000_TCP": "tcp://10.0.0.1:8000"}
    if not options.ports:
        links["PIKV_PORT"] = "tcp://10.0.0.1:8000"
    with Container(image, "/models/mine", "--port", str(port), model=ROOT / "models/storyteller", env=links,
                   ports=options.ports) as container:
        container.port = port
        container.wait_healthy()  # by the port that only the server's flags name
        assert json.loads(container.get("/v1/models")[1])["data"][0]["id"] == "mine"
        assert "enableServiceLinks" in container.log()
        os.kill(container.wait_pid(), signal.SIGTERM)
        assert container.wait() == 0
    for words, code, named in ((["--no-such-flag"], 2, "no-such-flag"), (["/models/absent"], 1, "/models/absent"),
                               (["--kv-disk-path", "/tmp", "--kv-disk-bytes", "1Mi"], 2, "Read-only")):
        with Container(image, *words, ports=options.ports) as container:
            assert container.wait() == code, (words, container.log())
            assert named in container.log(), container.log()
    return "a model under /models, flags that the health check knows, codes 2 and 1 for mistakes"


CHECKS = (check_configuration, check_size, check_contents, check_process, check_service, check_drain,
          check_impatience, check_settings)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("about")
    parser.add_argument("folder")
    parser.add_argument("--stored-bytes", default="0 KB", help='what the storage says, as "98.7 MB"')
    parser.add_argument("--host-network", action="store_true", help="share the ports of this machine")
    options = parser.parse_args()
    image = Image(options.about, options.folder)
    options.ports = (free_port(), free_port()) if options.host_network else None
    for check in CHECKS:
        print(f"{check.__name__.removeprefix('check_'):14} {check(image, options)}", flush=True)


if __name__ == "__main__":
    main()
