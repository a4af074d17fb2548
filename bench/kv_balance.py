#!/usr/bin/env python3
"""How evenly ranks share the KV cache, by placement: bench/kv_balance.py PIKV MODEL TEXT [--ranks 4]

Serves MODEL over ranks of one process, once for each placement, reads prompts of 2000 tokens out of TEXT into
it (they stay behind in the prefix cache), and prints what every rank then has in its pages: bytes by the
allocator's count, rings apart, and entries. "of a share" is the fullest rank over an equal share.
"""

import argparse
import json
import re
import subprocess
import time
import urllib.request

PLACEMENTS = [("block", ["--kv-placement", "block"]),
              ("hash", ["--kv-placement", "hash"]),
              ("expert, without EPLB", ["--kv-placement", "expert", "--no-kv-eplb"]),
              ("expert, with EPLB", ["--kv-placement", "expert"])]
PROMPT_TOKENS, REPORT_SECONDS = 2000, 2.5


def post(url, body):
    data = json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=600) as reply:
        return json.load(reply)


def by_rank(metrics, name, n_ranks):
    found = dict(re.findall(rf'^pikv_{name}\{{.*rank="(\d+)"\}} (\S+)$', metrics, re.MULTILINE))
    return [float(found[str(rank)]) for rank in range(n_ranks)]


def start(words):
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        ready = re.search(r" ready .*url=(\S+)", line)
        if ready:
            return process, ready.group(1)
    raise SystemExit(f"no server: {' '.join(words)}")


def measure(arguments, flags, text):
    words = [arguments.pikv, "serve", arguments.model, "--port", "0", "--no-monitor", "--ranks",
             str(arguments.ranks), "--kv-cache-memory-bytes", "256Mi", "--log-level", "info", *flags]
    process, url = start(words)
    try:
        tokens = post(url + "/tokenize", {"prompt": text, "add_special_tokens": False})["tokens"]
        n_prompts = min(arguments.prompts, len(tokens) // PROMPT_TOKENS)
        for i in range(n_prompts):
            prompt = tokens[i * PROMPT_TOKENS:(i + 1) * PROMPT_TOKENS]
            post(url + "/v1/completions", {"prompt": prompt, "max_tokens": 1})
        time.sleep(REPORT_SECONDS)
        with urllib.request.urlopen(url + "/metrics", timeout=60) as reply:
            metrics = reply.read().decode()
    finally:
        process.terminate()
        process.communicate()
    return {name: by_rank(metrics, "rank_kv_" + name, arguments.ranks)
            for name in ("slab_bytes", "slots")}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pikv")
    parser.add_argument("model")
    parser.add_argument("text")
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--prompts", type=int, default=20)
    arguments = parser.parse_args()
    with open(arguments.text, encoding="utf-8") as file:
        text = file.read(arguments.prompts * PROMPT_TOKENS * 8)
    print("| placement | entries by rank | of a share | bytes by rank | of a share |\n|---|---|---:|---|---:|")
    for name, flags in PLACEMENTS:
        found = measure(arguments, flags, text)
        cells = []
        for values in (found["slots"], found["slab_bytes"]):
            cells.append(", ".join(f"{value:.0f}" for value in values))
            cells.append(f"{max(values) * len(values) / max(sum(values), 1):.3f}")
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
