#!/usr/bin/env python3
"""The cells of `bench/gpu.sh` as one table: gpu_table.py OUT > cells.md

Reads OUT/cell.SHAPE.CONTEXT.SETTING.json, what `pikv bench --json` printed, or what went wrong instead of it."""
import json
import sys
from pathlib import Path


def rows_of(path):
    _, shape, context, setting, _ = path.name.split(".")
    head = f"| {shape} | {context} | {setting} "
    lines = path.read_text(errors="replace").splitlines()
    cells = [json.loads(line) for line in lines if line.startswith("{")]
    if not cells:
        yield f"{head}| - | {lines[-1] if lines else 'nothing was printed'} | | | | |"
        return
    bandwidth = cells[0]["bandwidth_bytes_per_second"]
    for cell in cells[1:]:
        if cell["case"] != "decode":
            continue
        total = cell["weight_bytes_per_step"] + cell["kv_bytes_per_step"]
        yield (f"{head}| {cell['batch']} | {cell['tokens_per_second']:.1f} | {cell['step_seconds'] * 1e3:.3f} "
               f"| {total * 1e-9:.3f} | {bandwidth * 1e-9:.0f} | {cell['share_of_bound']:.0%} |")


def main():
    cells = sorted(Path(sys.argv[1]).glob("cell.*.json"))
    if not cells:
        return
    print("\n| shape | context | setting | batch | tokens/s | ms/step | GB/step | GB/s measured | share of the bound |")
    print("|---|---:|---|---:|---:|---:|---:|---:|---:|")
    for path in cells:
        for row in rows_of(path):
            print(row)


if __name__ == "__main__":
    main()
