#!/usr/bin/env python3
"""Load on a running server, in the manner of `vllm bench serve`: same requests, same reading of the streams, same
numbers, so that results can stand beside each other. Needs Python alone.

    bench/serve_load.py --base-url http://localhost:8000 --num-prompts 200 --request-rate 20
    bench/serve_load.py --random-input-len 512 --random-output-len 64 --max-concurrency 8 --ignore-eos --json load.json

Prompts are random token ids, of one length each (--random-range-ratio varies it), made from --seed; the requests of a
rate arrive as a Poisson process, or all at once without one. TTFT is from sending to the first chunk with a choice, ITL
between two chunks, TPOT a request's time behind its first token over the tokens behind it.
"""

import argparse
import http.client
import json
import random
import statistics
import sys
import threading
import time
import urllib.parse
from dataclasses import dataclass, field

PERCENTILES = (50, 90, 99)


@dataclass
class Outcome:
    """One request, in seconds."""
    n_prompt: int = 0
    n_output: int = 0
    ttft: float = 0.0
    itl: list = field(default_factory=list)
    latency: float = 0.0
    error: str = ""


def lines_of(reply):
    """What a stream says, one `data:` line at a time."""
    rest = b""
    while piece := reply.read1(65536):
        *lines, rest = (rest + piece).split(b"\n")
        yield from (line.strip() for line in lines)
    yield rest.strip()


def read_stream(reply, outcome, began):
    """Fills the outcome as vLLM's client does: every line is a comment, JSON or [DONE]."""
    last = None
    for line in lines_of(reply):
        if not line or line.startswith(b":"):
            continue
        text = line.removeprefix(b"data: ")
        if text == b"[DONE]":
            break
        event = json.loads(text)
        if "error" in event:
            raise ValueError(event["error"]["message"])
        now = time.perf_counter()
        if event.get("choices"):
            if last is None:
                outcome.ttft = now - began
            else:
                outcome.itl.append(now - last)
            last = now
        elif event.get("usage"):
            outcome.n_output = event["usage"]["completion_tokens"]
    if last is None:
        raise ValueError("a stream without a token")
    outcome.latency = last - began


def send(args, prompt):
    outcome = Outcome(n_prompt=len(prompt))
    url = urllib.parse.urlsplit(args.base_url)
    body = {"model": args.model, "prompt": prompt, "temperature": args.temperature,
            "repetition_penalty": 1.0, "max_tokens": args.random_output_len, "logprobs": None,
            "stream": True, "stream_options": {"include_usage": True}, **json.loads(args.extra_body)}
    if args.ignore_eos:
        body["ignore_eos"] = True
    headers = {"Content-Type": "application/json"}
    if args.api_key:
        headers["Authorization"] = "Bearer " + args.api_key
    kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
    connection = kind(url.hostname, url.port, timeout=args.timeout)
    began = time.perf_counter()
    try:
        connection.request("POST", args.endpoint, json.dumps(body), headers)
        reply = connection.getresponse()
        if reply.status != 200:
            raise ValueError(f"{reply.status}: {reply.read(500).decode('utf-8', 'replace')}")
        read_stream(reply, outcome, began)
    except (OSError, ValueError, http.client.HTTPException) as fault:
        outcome.error = str(fault) or type(fault).__name__
    finally:
        connection.close()
    return outcome


def make_prompts(args, chance):
    low, high = (round(args.random_input_len * (1 + sign * args.random_range_ratio)) for sign in (-1, 1))
    first = 259  # behind the control tokens and single bytes of a SentencePiece model
    return [[chance.randrange(first, args.vocab_size) for _ in range(chance.randint(max(1, low), high))]
            for _ in range(args.num_prompts)]


def run(args):
    """All outcomes, and how long it took."""
    chance = random.Random(args.seed)
    prompts = make_prompts(args, chance)
    outcomes = [None] * len(prompts)
    places = threading.Semaphore(args.max_concurrency or len(prompts))

    def work(i):
        with places:
            outcomes[i] = send(args, prompts[i])

    began = time.perf_counter()
    threads = []
    for i in range(len(prompts)):
        threads.append(threading.Thread(target=work, args=(i,)))
        threads[-1].start()
        if args.request_rate > 0:
            time.sleep(chance.expovariate(args.request_rate))
    for thread in threads:
        thread.join()
    return outcomes, time.perf_counter() - began


def spread(name, values):
    """Milliseconds."""
    values = sorted(value * 1e3 for value in values)
    if not values:
        return {}
    found = {f"mean_{name}_ms": statistics.fmean(values), f"median_{name}_ms": statistics.median(values)}
    for p in PERCENTILES[1:]:
        found[f"p{p}_{name}_ms"] = values[min(len(values) - 1, round(p / 100 * (len(values) - 1)))]
    return found


def summarise(outcomes, seconds):
    good = [o for o in outcomes if not o.error]
    n_output = sum(o.n_output for o in good)
    n_prompt = sum(o.n_prompt for o in good)
    return {
        "duration": seconds, "completed": len(good), "failed": len(outcomes) - len(good),
        "total_input_tokens": n_prompt, "total_output_tokens": n_output,
        "request_throughput": len(good) / seconds, "output_throughput": n_output / seconds,
        "total_token_throughput": (n_prompt + n_output) / seconds,
        **spread("ttft", [o.ttft for o in good]),
        **spread("tpot", [(o.latency - o.ttft) / (o.n_output - 1) for o in good if o.n_output > 1]),
        **spread("itl", [gap for o in good for gap in o.itl]),
        **spread("e2el", [o.latency for o in good]),
        "errors": sorted({o.error for o in outcomes if o.error})[:5],
    }


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base-url", default="http://localhost:8000")
    parser.add_argument("--endpoint", default="/v1/completions")
    parser.add_argument("--model", default=None, help="served name; none: whatever is served")
    parser.add_argument("--num-prompts", type=int, default=100)
    parser.add_argument("--random-input-len", type=int, default=256)
    parser.add_argument("--random-output-len", type=int, default=64)
    parser.add_argument("--random-range-ratio", type=float, default=0.0, help="of the input's length")
    parser.add_argument("--vocab-size", type=int, default=4096, help="ids are drawn below it")
    parser.add_argument("--request-rate", type=float, default=0.0, help="requests a second; 0: all at once")
    parser.add_argument("--max-concurrency", type=int, default=0, help="0: no bound")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--ignore-eos", action="store_true")
    parser.add_argument("--extra-body", default="{}", help='JSON, as \'{"kv": {"compression": "int4"}}\'')
    parser.add_argument("--api-key", default="")
    parser.add_argument("--timeout", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", help="file for the numbers")
    return parser.parse_args()


def main():
    args = parse_args()
    result = summarise(*run(args))
    for name, value in result.items():
        print(f"{name.replace('_', ' '):<24}{value:>12.2f}" if isinstance(value, float) else
              f"{name.replace('_', ' '):<24}{value!s:>12}")
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(result, file, indent=2)
    return 1 if result["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
