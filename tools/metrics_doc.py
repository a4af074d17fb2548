#!/usr/bin/env python3
"""The tables of docs/metrics.md, made from what a server shows.

`tools/metrics_doc.py build/dev/pikv` starts that binary so that every family is there (two ranks, vLLM's
names, one request behind it), reads /metrics and writes the part of docs/metrics.md between its marks anew.
`--check` only says whether the file is as it would be written: 0, or 1.
"""

import argparse
import json
import os
import pathlib
import re
import subprocess
import sys
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[1]
FILE = ROOT / "docs/metrics.md"
BEGIN, END = "<!-- tables: tools/metrics_doc.py -->\n", "<!-- end of tables -->\n"
WORDS = ("serve", "models/storyteller", "--port", "0", "--ranks", "2", "--threads", "1", "--metrics-compat", "vllm")
TIMEOUT_S = 240

# A family goes under the first heading whose pattern its name, without the prefix, begins with.
SECTIONS = [
    ("vLLM's names", r"vllm:"),
    ("Process", r"process_|build_info|cache_config_info|ready|model_load|memory_bytes|engine_steps"),
    ("Latency, lengths and steps", r"time_to|inter_token|e2e_|request_(?!rejections)|batch_tokens|step_seconds"),
    ("Requests and tokens", r"requests_|request_rej|prompt_|generation_|preemptions|client_|http_"),
    ("Prefix cache", r"prefix_cache_|kv_evicted_blocks"),
    ("KV cache: shards", r"kv_shard_|kv_expert_packings"),
    ("KV cache: tiers", r"kv_tier_|kv_demoted|kv_promoted|kv_disk|kv_lost"),
    ("KV cache: compression", r"kv_encoded"),
    ("KV cache: scheduling", r"kv_entries|kv_pages|kv_score"),
    ("KV cache: routing", r"kv_decode|kv_unread|kv_step_unread|kv_read"),
    ("KV cache: room", r"kv_"),
    ("Experts", r"moe_"),
    ("Ranks", r"rank_|comm_|expert_"),
]
ORDER = ["Requests and tokens", "Latency, lengths and steps", "KV cache: room", "Prefix cache",
         "KV cache: shards", "KV cache: tiers", "KV cache: compression", "KV cache: scheduling",
         "KV cache: routing", "Experts", "Ranks", "Process", "vLLM's names"]
# Labels whose values are a closed set that does not depend on model or machine.
CLOSED = {"outcome", "reason", "kind", "state", "part", "tier", "op", "stat", "phase", "collective",
          "source", "finished_reason", "sleep_state"}
EVERYWHERE = {"model_name", "engine", "le"}
SAMPLE = re.compile(r"^([a-zA-Z0-9_:]+)(?:\{(.*)\})? \S+$")
LABEL = re.compile(r'([a-z_]+)="((?:[^"\\]|\\.)*)"')


class Family:
    """What a page says of one name."""

    def __init__(self, name, text):
        self.name, self.help, self.type = name, text, ""
        self.labels = {}  # name: its values, in order
        self.edges = []

    def section(self):
        for heading, pattern in SECTIONS:
            if re.match(pattern, self.name.removeprefix("pikv_")):
                return heading
        sys.exit(f"metrics_doc.py: no section for {self.name}")

    def row(self):
        labels = [f"`{label}`: {', '.join(values)}" if label in CLOSED else f"`{label}`"
                  for label, values in self.labels.items() if label not in EVERYWHERE]
        return f"| `{self.name}` | {self.type} | {'; '.join(labels)} | {self.help} |\n"


def families_of(page):
    """All families of a page, in its order."""
    families, family = {}, None
    for line in page.splitlines():
        if line.startswith("# HELP "):
            _, _, name, text = line.split(" ", 3)
            family = families[name] = Family(name, text)
        elif line.startswith("# TYPE "):
            family.type = line.split(" ")[3]
        else:
            for label, value in LABEL.findall(SAMPLE.match(line).group(2) or ""):
                values = family.labels.setdefault(label, [])
                if value not in values:
                    values.append(value)
    for family in families.values():
        family.edges = [e for e in family.labels.get("le", []) if e != "+Inf"]
    return list(families.values())


def tables_of(page):
    """The generated part: a table for each section, then the edges of histograms."""
    families = families_of(page)
    out = []
    for heading in ORDER:
        rows = [f.row() for f in families if f.section() == heading]
        out += [f"### {heading}\n\n| name | type | labels | |\n|---|---|---|---|\n", *rows, "\n"]
    out.append("### Buckets\n\nUpper edges; the last bucket, `+Inf`, is everywhere.\n\n")
    by_edges = {}
    for family in families:
        if family.edges:
            by_edges.setdefault(" ".join(family.edges), []).append(f"`{family.name}`")
    out += [f"- {', '.join(names)}: {edges}\n" for edges, names in by_edges.items()]
    return "".join(out)


def wait_for_line(process, pattern):
    """The first line of the log, from where it was left, that has the pattern."""
    line = ""
    for line in process.stderr:
        found = re.search(pattern, line)
        if found:
            return found
    sys.exit(f"metrics_doc.py: the server did not start: {line}")


def fetch(url, body=None):
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as reply:
        return reply.read().decode()


def page_of(binary):
    """/metrics of a server of this binary that has answered a request and heard from all of its ranks."""
    plain = {key: value for key, value in os.environ.items() if not key.startswith("PIKV_")}
    with subprocess.Popen([binary, *WORDS], cwd=ROOT, env=plain, stderr=subprocess.PIPE, text=True) as process:
        try:
            port = wait_for_line(process, r"listening name=main url=http://\S*:(\d+)")[1]
            monitor = wait_for_line(process, r"listening name=monitor url=http://\S*:(\d+)")[1]
            wait_for_line(process, r" ready model=")
            body = json.dumps({"prompt": "Once upon a time", "max_tokens": 8}).encode()
            fetch(f"http://127.0.0.1:{port}/v1/completions", body)
            end = time.monotonic() + TIMEOUT_S
            while time.monotonic() < end:
                page = fetch(f"http://127.0.0.1:{monitor}/metrics")
                if 'pikv_rank_kv_slots{model_name="storyteller",rank="1"}' in page:
                    return page
                time.sleep(0.05)
            sys.exit("metrics_doc.py: rank 1 did not report")
        finally:
            process.terminate()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("binary", help="pikv, as it was built")
    parser.add_argument("--check", action="store_true", help="write nothing, say whether the file is right")
    args = parser.parse_args()
    text = FILE.read_text()
    head, rest = text.split(BEGIN)
    tail = rest.split(END)[1]
    new = head + BEGIN + "\n" + tables_of(page_of(pathlib.Path(args.binary).resolve())) + "\n" + END + tail
    if not args.check:
        FILE.write_text(new)
    elif new != text:
        sys.exit(f"{FILE.relative_to(ROOT)} is not what the server shows; tools/metrics_doc.py {args.binary} writes it")


if __name__ == "__main__":
    main()
