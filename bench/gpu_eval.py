#!/usr/bin/env python3
"""`pikv eval --json` of one device beside that of another: gpu_eval.py CPU.json GPU.json

Prints a row for each setting, and fails where the losses of a setting are further apart than LIMIT."""
import json
import sys
from pathlib import Path

LIMIT = 0.002  # of the first's nll


def main():
    first, second = (json.loads(Path(path).read_text()) for path in sys.argv[1:3])
    if [row["config"] for row in first] != [row["config"] for row in second] or not first:
        sys.exit("the two files have other settings")
    print("| setting | nll | on the GPU | apart | KV read/step |\n|---|---:|---:|---:|---:|")
    worst = 0
    for a, b in zip(first, second):
        apart = abs(b["nll"] - a["nll"]) / a["nll"]
        worst = max(worst, apart)
        print(f"| {a['config']} | {a['nll']:.5f} | {b['nll']:.5f} | {apart:.4%} "
              f"| {b['read_bytes_per_step'] / a['read_bytes_per_step']:.3f} |")
    if worst > LIMIT:
        sys.exit(f"a loss is {worst:.2%} apart, more than {LIMIT:.1%}")


if __name__ == "__main__":
    main()
