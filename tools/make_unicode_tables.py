#!/usr/bin/env python3
"""Writes service/jinja/jinja_unicode_sets.c and jinja_unicode_cases.c: what Python's str knows of characters.

Templates are rendered as Python does, so Python is asked, character by character (versions: tools/requirements.txt;
CPython 3.11 to 3.13 have Unicode 14 to 15.1, and differ only in characters that newer ones have added).

    python tools/make_unicode_tables.py
"""

import unicodedata
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / "service/jinja"
CHARACTERS = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]

SETS = {
    "unprintable": lambda c: not c.isprintable(),
    "alpha": str.isalpha,
    "upper": str.isupper,
    "lower": str.islower,
    "title": lambda c: unicodedata.category(c) == "Lt",
    "decimal": str.isdecimal,
    "digit": str.isdigit,
    "numeric": str.isnumeric,
    # between a letter and a final sigma they do not count; found by asking for the sigma
    "ignorable": lambda c: ("A" + c + "Σ").lower()[-1] == "ς" and (" " + c + "Σ").lower()[-1] == "σ",
}


def runs(codes):
    """(first, how many, step) of as few ascending runs as a greedy search finds; steps are 1 or 2."""
    out = []
    at = 0
    while at < len(codes):
        step = codes[at + 1] - codes[at] if at + 1 < len(codes) else 1
        step = step if step in (1, 2) else 1
        end = at + 1
        while end < len(codes) and codes[end] - codes[end - 1] == step and end - at < 65535:
            end += 1
        if step == 2 and end - at == 2:  # two that are not neighbours are better apart
            end = at + 1
        out.append((codes[at], end - at, step))
        at = end
    return out


def table(out, declaration, rows):
    """Rows of C initialisers, as many to a line as fit."""
    out.append(f"{declaration} = {{")
    line = "   "
    for row in rows:
        if len(line) + len(row) + 2 > 100:
            out.append(line)
            line = "   "
        line += f" {row},"
    out += [line, "};", ""]


def head(what):
    return [f"/* {what} Written by tools/make_unicode_tables.py (Unicode {unicodedata.unidata_version}):",
            " * do not edit. */", '#include "service/jinja/jinja_unicode.h"', "", "/* clang-format off */"]


def write_sets():
    out = head("Sets of characters: where a run begins, how many there are, and the step.")
    for name, is_in in SETS.items():
        rows = [f"{{0x{a:X}, {n}, {s}}}" for a, n, s in runs([ord(c) for c in CHARACTERS if is_in(c)])]
        out.append(f"const uint32_t jinja_{name}_runs_n = {len(rows)};")
        table(out, f"const jinja_run_of_chars jinja_{name}_runs[]", rows)
    (FOLDER / "jinja_unicode_sets.c").write_text("\n".join(out).rstrip() + "\n", encoding="utf-8")


def write_cases():
    out = head("What characters become: runs with one distance, and those that become several.")
    for name, change in (("upper", str.upper), ("title", str.title), ("lower", str.lower)):
        single, several = {}, []
        for c in CHARACTERS:
            to = change(c)
            if name == "title" and to == c.upper():
                continue  # only where it differs
            if len(to) > 1:
                several.append([ord(c), *map(ord, to), 0][:4])
            elif to != c or name == "title":
                single.setdefault(ord(to) - ord(c), []).append(ord(c))
        rows = sorted((a, n, s, d) for d, codes in single.items() for a, n, s in runs(codes))
        out.append(f"const uint32_t jinja_{name}_cases_n = {len(rows)};")
        table(out, f"const jinja_case_run jinja_{name}_cases[]",
              [f"{{0x{a:X}, {n}, {s}, {d}}}" for a, n, s, d in rows])
        out.append(f"const uint32_t jinja_{name}_several_n = {len(several)};")
        table(out, f"const uint32_t jinja_{name}_several[][4]",
              ["{" + ", ".join(f"0x{x:X}" for x in row) + "}" for row in several])
    (FOLDER / "jinja_unicode_cases.c").write_text("\n".join(out).rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_sets()
    write_cases()
