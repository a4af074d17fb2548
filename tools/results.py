#!/usr/bin/env python3
"""Writes docs/results.md and docs/results.svg: what each setting of the KV cache holds, reads and loses.

    python3 tools/results.py build/release/pikv models/storyteller --corpus DIR

Settings are the lines of configs/results.txt. They run through `pikv eval --compare`, so each row sees the same inputs:
windows of DIR/valid.txt[.xz] at every length of --lengths, whose second half goes through decode steps, and look-up
questions at the same lengths, but for REPLAY_ROOM of the model's positions: methods that read a prompt again need them.
Without --corpus only the questions are asked. The page is written as a whole, and only when everything has run.
"""

import argparse
import hashlib
import json
import lzma
import os
import pathlib
import platform
import re
import subprocess
import sys
import tempfile

import plot_eval

# One shard, a ring so small that a method shows at 2048 tokens, and entries as the model's weights are.
BASE = ["--kv-cache-dtype", "bf16", "--kv-window", "32", "--kv-shards", "1"]
SEED = 1
REPLAY_ROOM = 128  # positions behind a question
MOST_LOST, MOST_FORGOTTEN = 0.01, 0.95  # what the best may lose, as shares of the first row's
PART = "<|book|>"  # lines that only part the books are not text

HEAD = """# Methods of the KV cache, measured

Written by `make results CORPUS=DIR` (tools/results.py); do not edit. The model is {model}, weights {weights}:
{positions} positions at most, so nothing here speaks of long contexts, where routing saves most. A difference of the
NLL whose interval holds 0 is none that was seen; a share of right answers has the interval of its {samples} questions,
about {points:.0f} points to each side near one half. Speed is measured elsewhere (docs/performance.md).

Protocol: `{base}`, no prefix cache; {machine}.
{text}
Look-up: {samples} questions at each length, seed {seed}, greedy answers, exact match. Behind a question the model has
{room} positions or more, which methods that read a prompt again take.

- **KV B/token**: bytes of the cache by its allocator - pages, page tables, ring, staging - over the tokens held at the end.
- **read B/step**: bytes that attention reads for one sequence in one decode step, boxes of pages included.
- **NLL**: nats per token over the scored tokens; the difference to the first row in %, with its paired 95 % interval.
- **look-up**: share of right answers, and in brackets that share over the first row's.
- **pages read**, **certificate**: of the pages behind the ring, and the mean bound of the attention mass that was not read;
  only where routing leaves pages out.
"""


def fail(message):
    sys.exit(f"results.py: {message}")


# ---- settings -------------------------------------------------------------------------------------


def read_list(path):
    """[(name, settings)]"""
    rows = []
    for number, line in enumerate(pathlib.Path(path).read_text(encoding="utf-8").splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        name, colon, settings = (part.strip() for part in line.partition(":"))
        if not colon or not name or not settings or set(";|") & set(line):
            raise ValueError(f"line {number} is not NAME: SETTINGS")
        if name in [known for known, _ in rows]:
            raise ValueError(f"line {number}: {name} is there already")
        rows.append((name, settings))
    if not rows:
        raise ValueError("no settings")
    return rows


# ---- measuring ------------------------------------------------------------------------------------


def read_text(folder):
    for name, opener in (("valid.txt", open), ("valid.txt.xz", lzma.open)):
        path = pathlib.Path(folder) / name
        if path.is_file():
            with opener(path, "rt", encoding="utf-8") as file:
                return "".join(line for line in file if line.rstrip("\n") != PART)
    raise FileNotFoundError(f"{folder} has neither valid.txt nor valid.txt.xz")


def positions_of(model):
    config = json.loads((pathlib.Path(model) / "config.json").read_text(encoding="utf-8"))
    return config["max_position_embeddings"]


def contexts_of(args):
    """Tokens of the questions."""
    most = positions_of(args.model) - REPLAY_ROOM
    return sorted({min(length, most) for length in args.lengths})


def evaluate(args, settings, words, work):
    """The rows of one run of `pikv eval`."""
    out = pathlib.Path(work) / "rows.json"
    command = [args.pikv, "eval", args.model, *BASE, *words, "--threads", str(args.threads), "--compare",
               ";".join(s for _, s in settings), "--json", str(out)]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
    if done.returncode != 0:
        sys.exit(done.returncode if done.returncode > 0 else 1)  # it has said why
    rows = json.loads(out.read_text(encoding="utf-8"))
    for row, (name, _) in zip(rows, settings, strict=True):
        row["config"] = name
    return rows


def measure(args, settings):
    """{"text": {length: rows}, "tasks": rows}"""
    measured = {"text": {}}
    lengths, contexts = sorted(args.lengths), contexts_of(args)
    with tempfile.TemporaryDirectory() as work:
        if args.corpus:
            text = pathlib.Path(work) / "text.txt"
            text.write_text(read_text(args.corpus), encoding="utf-8")
            for length in lengths:  # as many tokens at every length
                n_windows = args.windows * lengths[-1] // length
                print(f"== text, {n_windows} windows of {length} tokens, {len(settings)} rows", file=sys.stderr)
                measured["text"][length] = evaluate(args, settings, ["--text", str(text), "--window", str(length),
                                                                     "--max-windows", str(n_windows)], work)
        print(f"== look-up, {args.samples} questions at {contexts}, {len(settings)} rows", file=sys.stderr)
        measured["tasks"] = evaluate(args, settings, ["--tasks", "lookup", "--context", ",".join(map(str, contexts)),
                                                      "--samples", str(args.samples), "--seed", str(SEED)], work)
    return measured


# ---- the page -------------------------------------------------------------------------------------


def share(value, whole):
    return "-" if value is None or not whole else f"{value / whole:.3f}"


def bytes_cell(row, first, key):
    value = row[key]
    return "-" if value is None else f"{value:,.0f} ({share(value, first[key])})"


def difference_cell(row, first):
    if row["nll_difference"] is None or not first["nll"]:
        return "-"
    mean, half = (100 * row[key] / first["nll"] for key in ("nll_difference", "nll_difference_ci95"))
    return f"{mean:+.3f} ± {half:.3f}" if row["n_windows"] > 1 else f"{mean:+.3f}"  # one window has no interval


def lookup_cell(row, first, length):
    value, whole = (r["accuracy_by_task"]["lookup"][str(length)] for r in (row, first))
    return "-" if value is None else f"{value:.3f} ({share(value, whole)})"


def routing_cells(row):
    if row["settings"]["kv-routing"] == "full":
        return ["", ""]
    return ["-" if row[key] is None else f"{row[key]:.{digits}f}"
            for key, digits in (("pages_read_share", 3), ("certificate_mean", 4))]


def table(measured, contexts):
    """Rows of cells, the header first; questions have these lengths. Bytes are those of the longest text; without a text, of the questions."""
    costs = measured["text"][max(measured["text"])] if measured["text"] else measured["tasks"]
    header = ["setting", "KV B/token (of full)", "read B/step (of full)"]
    for length in measured["text"]:
        header += [f"NLL {length}", "difference, %"]
    header += [f"look-up {length} (of full)" for length in contexts] + ["pages read", "certificate"]
    rows = [header]
    for i, cost in enumerate(costs):
        cells = [cost["config"]]
        cells += [bytes_cell(cost, costs[0], key) for key in ("resident_bytes_per_token", "read_bytes_per_step")]
        for texts in measured["text"].values():
            nll = texts[i]["nll"]
            cells += ["-" if nll is None else f"{nll:.5f}", difference_cell(texts[i], texts[0])]
        cells += [lookup_cell(measured["tasks"][i], measured["tasks"][0], length) for length in contexts]
        rows.append(cells + routing_cells(cost))
    return rows


def markdown(rows):
    lines = ["| " + " | ".join(cells) + " |" for cells in rows]
    lines.insert(1, "|---|" + "---:|" * (len(rows[0]) - 1))
    return "\n".join(lines)


def keeps_lookup(measured, i, contexts):
    first, row = (measured["tasks"][k]["accuracy_by_task"]["lookup"] for k in (0, i))
    return all(row[str(c)] is not None and row[str(c)] >= MOST_FORGOTTEN * (first[str(c)] or 0) for c in contexts)


def best_at(measured, contexts, factor):
    """One line: of the settings with so many times fewer bytes, the one that loses least."""
    texts = measured["text"][max(measured["text"])]
    whole, nll = texts[0]["resident_bytes_per_token"], texts[0]["nll"]
    if not whole or not nll:
        return f"- {factor}x: not measured"

    def said(i):
        cells = [f"{lookup_cell(measured['tasks'][i], measured['tasks'][0], c).split()[0]} at {c}" for c in contexts]
        return (f"{texts[i]['config']}, {whole / texts[i]['resident_bytes_per_token']:.1f}x, NLL "
                f"{100 * texts[i]['nll_difference'] / nll:+.2f} %, look-up {' and '.join(cells)}")

    known = [i for i, row in enumerate(texts) if row["resident_bytes_per_token"] and row["nll_difference"] is not None]
    fewer = [i for i in known if texts[i]["resident_bytes_per_token"] * factor <= whole]
    good = [i for i in fewer
            if texts[i]["nll_difference"] <= MOST_LOST * nll and keeps_lookup(measured, i, contexts)]
    if good:
        return f"- {factor}x: {said(min(good, key=lambda i: texts[i]['nll_difference']))}"
    if fewer:
        return f"- {factor}x: none within these limits; least is lost by {said(min(fewer, key=lambda i: texts[i]['nll_difference']))}"
    smallest = min(known, key=lambda i: texts[i]["resident_bytes_per_token"], default=None)
    return f"- {factor}x: not reached" + ("" if smallest is None else f"; the smallest is {said(smallest)}")


def best(measured, contexts):
    if not measured["text"]:
        return ""
    lines = "\n".join(best_at(measured, contexts, factor) for factor in (3, 4, 8))
    return (f"Fewer bytes at {max(measured['text'])} tokens, ring and metadata included, for at most {100 * MOST_LOST:.0f} % NLL "
            f"and at least {100 * MOST_FORGOTTEN:.0f} % of the look-ups:\n\n{lines}\n\n")


def text_protocol(measured):
    if not measured["text"]:
        return "No text was given, so there is no NLL, and bytes are those of the questions."
    said = [f"{rows[0]['n_windows']} of {length} tokens ({rows[0]['n_tokens']} scored)"
            for length, rows in measured["text"].items()]
    return (f"Text: windows spread over the held-out text, {' and '.join(said)};\n"
            "the first half of a window is a prompt, the second half goes through decode steps and is scored. Bytes are\n"
            "those of the longest windows.")


def machine():
    try:
        model = re.search(r"^model name\s*: (.*)$", pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.M)[1]
    except (OSError, TypeError):
        model = platform.machine()
    return f"{model}, {os.cpu_count()} processors"


def weights_of(model):
    """The beginning of the SHA-256 of all weight files, which says whether the page still fits the model."""
    digest = hashlib.sha256()
    for path in sorted(pathlib.Path(model).glob("*.safetensors")):
        digest.update(path.read_bytes())
    return "sha256 " + digest.hexdigest()[:16]


def page(args, settings, measured, svg_name):
    low, high = plot_eval.wilson(0.5, args.samples)
    head = HEAD.format(model=args.model, weights=weights_of(args.model), positions=positions_of(args.model),
                       samples=args.samples, points=50 * (high - low), base=" ".join(BASE), machine=machine(),
                       text=text_protocol(measured), seed=SEED, room=REPLAY_ROOM)
    listed = "\n".join(f"- {name}: `{words}`" for name, words in settings)
    return (f"{head}\n{markdown(table(measured, contexts_of(args)))}\n\n{best(measured, contexts_of(args))}"
            f"![Loss against bytes read per decode step]({svg_name})\n\nSettings, from configs/results.txt:\n\n{listed}\n")


def picture(measured, lengths):
    """Loss against bytes read, since methods that hold everything and read a part save only these."""
    with_accuracy = not measured["text"]
    rows = measured["tasks"] if with_accuracy else measured["text"][max(lengths)]
    points, _ = plot_eval.points_of(rows, "read_bytes_per_step", with_accuracy)
    quality = "right answers" if with_accuracy else f"NLL in windows of {max(lengths)} tokens, difference to the first row"
    unit = "share of right answers" if with_accuracy else "nats per token"
    return plot_eval.draw(points, plot_eval.X_TITLES["read_bytes_per_step"], unit, f"{quality}, with 95 % intervals")


# ---- the command ----------------------------------------------------------------------------------


def count(text):
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return value


def arguments(argv):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pikv")
    parser.add_argument("model")
    parser.add_argument("--corpus", help="folder of valid.txt or valid.txt.xz")
    parser.add_argument("--settings", default="configs/results.txt")
    parser.add_argument("--lengths", type=lambda text: [count(n) for n in text.split(",")], default=[1024, 2048])
    parser.add_argument("--windows", type=count, default=16, help="of the longest length; more of shorter ones")
    parser.add_argument("--samples", type=count, default=100, help="questions at each length")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("-o", "--out", default="docs/results.md", help="the page; the picture gets .svg")
    return parser.parse_args(argv)


def main(argv=None):
    args = arguments(argv)
    out = pathlib.Path(args.out)
    try:
        settings = read_list(args.settings)
        measured = measure(args, settings)
        svg = out.with_suffix(".svg")
        text = page(args, settings, measured, svg.name)
        svg.write_text(picture(measured, args.lengths), encoding="utf-8")
        out.write_text(text, encoding="utf-8")
    except (OSError, ValueError) as error:
        fail(f"{args.settings}: {error}" if isinstance(error, ValueError) else error)
    print(f"written: {out} and {out.with_suffix('.svg')}", file=sys.stderr)


if __name__ == "__main__":
    main()
