#!/usr/bin/env python3
"""Compares our reading of tokenizer.json with the tokenizers library, and of tokenizer.model with SentencePiece: ids of a
text, and the text of those ids.

    ninja -C build/release tokenize_records
    python tools/compare_tokenizers.py --program build/release/tokenize_records --lines 100000 [--text FILE ...]
    python tools/compare_tokenizers.py --program build/release/tokenize_records --folder DIR [DIR ...] --lines 1000

For every family of tools/tokenizer_families.py (or for each DIR, by its tokenizer.json if it has one, else by its
tokenizer.model; names of control pieces are tokens there, and what lies between two is a text of its own, which is
`legacy` of transformers) the lines are: of the files given, sentences
in several languages, source code, and generated ones of odd Unicode; and with --characters every character there is, in
a few surroundings. Differences are printed; the exit status says whether there were any. In decoded text a run of U+FFFD
counts as one: the library writes one for each byte that falls back, we write one for each broken character.
"""

import argparse
import lzma
import random
import re
import struct
import subprocess
import sys
import tempfile
import unicodedata
from pathlib import Path

from make_tokenizer_goldens import CODE, FOREIGN, texts
from sentencepiece import SentencePieceProcessor
from tokenizer_families import FAMILIES, build
from tokenizers import Tokenizer

BLOCKS = [(0x20, 0x7e), (0, 0x1f), (0x80, 0xff), (0x100, 0x24f), (0x250, 0x2ff), (0x300, 0x36f), (0x370, 0x3ff),
          (0x400, 0x52f), (0x530, 0x5ff), (0x600, 0x6ff), (0x900, 0xdff), (0xe00, 0xeff), (0x1000, 0x11ff),
          (0x1780, 0x18ff), (0x1ab0, 0x1aff), (0x1dc0, 0x1fff), (0x2000, 0x206f), (0x2070, 0x218f), (0x2190, 0x2bff),
          (0x2c00, 0x2e7f), (0x3000, 0x30ff), (0x3130, 0x33ff), (0x4e00, 0x9fff), (0xa000, 0xabff), (0xac00, 0xd7a3),
          (0xe000, 0xf8ff), (0xf900, 0xfaff), (0xfb00, 0xfdff), (0xfe00, 0xfe6f), (0xff00, 0xffff), (0x10000, 0x10fff),
          (0x11000, 0x11fff), (0x1d000, 0x1dfff), (0x1e000, 0x1efff), (0x1f000, 0x1faff), (0x20000, 0x2a6df),
          (0xe0000, 0xe01ff), (0x10fff0, 0x10ffff)]
SPACES = " \t\n\r\x0b\x0c\x85\xa0\u1680\u180e\u2000\u2009\u200a\u200b\u2028\u2029\u202f\u205f\u3000\ufeff"
GLUE = ["'", "'s", "'S", "'ſ", "'ll", "'LL", "'re", "'K", " ", "  ", "\n", "\r\n", "\n\n", "\t", "1", "42", "1234567",
        "½", "Ⅷ", "٣", "the", "The", "THE", "ß", "İ", "ǅ", "é", "e\u0301", "ق", "日本", "ひら", "カナ", "한국", "…", "。",
        "-", "--", "/", "//", "@", "_", ".", "\u200d", "\ufe0f", "👍🏽", "▁", "▁▁", "x", "q", "~~", "ＡＢＣ", "²"]


def odd_line(rng, names):
    """Words of one block each, glued by what patterns look at."""
    parts = []
    for _ in range(rng.randrange(1, 9)):
        kind = rng.random()
        if kind < 0.35:
            low, high = rng.choice(BLOCKS)
            parts.append("".join(chr(rng.randrange(low, high + 1)) for _ in range(rng.randrange(1, 6))))
        elif kind < 0.5:
            parts.append("".join(rng.choice(SPACES) for _ in range(rng.randrange(1, 5))))
        elif kind < 0.6:
            parts.append(rng.choice(names))
        else:
            parts.append(rng.choice(GLUE))
    return "".join(parts)


def mixed_line(rng, sources, names):
    """Pieces of real lines, sometimes with a token's name or odd characters between."""
    line = rng.choice(rng.choice(sources))
    if rng.random() < 0.3:
        line += rng.choice(["", " ", "\n"]) + rng.choice(rng.choice(sources))
    if rng.random() < 0.15:
        cut = rng.randrange(len(line) + 1)
        line = line[:cut] + odd_line(rng, names) + line[cut:]
    return line


def read_lines(path):
    raw = path.read_bytes()
    if path.suffix == ".xz":
        raw = lzma.decompress(raw)
    return [line for line in raw.decode("utf-8", "replace").split("\n") if line]


def without_surrogates(text):
    return "".join(c for c in text if not 0xd800 <= ord(c) < 0xe000)


def make_lines(count, files, names, seed=1):
    rng = random.Random(seed)
    root = Path(__file__).resolve().parent.parent
    code = [line for pattern in ("*/*.c", "tools/*.py", "tests/*/*.py", "docs/*.md") for path in sorted(root.glob(pattern))
            for line in read_lines(path)]
    sources = [read_lines(path) for path in files] + [code, FOREIGN + CODE, texts()]
    lines = texts() + [odd_line(rng, names) for _ in range(count // 2)]
    while len(lines) < count:
        lines.append(mixed_line(rng, sources, names))
    return [without_surrogates(line) for line in lines]


def every_character():
    points = [c for c in range(0x110000) if not 0xd800 <= c < 0xe000 and unicodedata.category(chr(c)) not in ("Cn", "Co")]
    points += range(0xe000, 0xe010)
    points = [c for c in points if not 0x4e10 <= c < 0x9f00 and not 0xac20 <= c < 0xd780 and not 0x17010 <= c < 0x18700
              and not 0x20010 <= c < 0x2a600 and not 0x2a800 <= c < 0x31300] # alike by the thousand
    for around in ("a%sb", " %s1", "'%s x", "\n%s\u0301", "1 %s%s."):
        for begin in range(0, len(points), 16): # many to a line, set apart by what no pattern joins
            yield "\x07\n".join(around.replace("%s", chr(c)) for c in points[begin:begin + 16])


# ---- both sides ----------------------------------------------------------------------------------------------


def ours(program, folder, lines):
    """(ids, decoded, decoded with special tokens) of each line; ids None where we refuse."""
    with tempfile.TemporaryFile() as questions:
        for line in lines:
            raw = line.encode("utf-8")
            questions.write(struct.pack("<I", len(raw)) + raw)
        questions.seek(0)
        answers = subprocess.run([program, str(folder)], stdin=questions, stdout=subprocess.PIPE, check=True).stdout
    at = 0

    def number():
        nonlocal at
        at += 4
        return struct.unpack_from("<I", answers, at - 4)[0]

    def text():
        nonlocal at
        n = number()
        at += n
        return answers[at - n:at].decode("utf-8")

    for _ in lines:
        n_ids = number()
        if n_ids == 0xffffffff:
            yield None, "", ""
            continue
        ids = list(struct.unpack_from(f"<{n_ids}I", answers, at))
        at += 4 * n_ids
        yield ids, text(), text()


def squeeze(text):
    return re.sub("\ufffd+", "\ufffd", text)


class Pieces:
    """tokenizer.model as if it were a tokenizer of the other library, as far as compare() asks."""

    def __init__(self, path):
        self.processor = SentencePieceProcessor(model_file=str(path))
        n = self.processor.get_piece_size()
        self.special = {self.processor.id_to_piece(i): i for i in range(n)
                        if self.processor.is_control(i) or self.processor.is_unknown(i)}
        names = sorted(map(re.escape, self.special), key=len, reverse=True)
        self.cut = re.compile("(" + "|".join(names) + ")")

    def names(self):
        return list(self.special)

    def encode_batch(self, lines):
        for line in lines:
            ids = []
            for part in self.cut.split(line):
                ids += [self.special[part]] if part in self.special else self.processor.encode(part)
            yield ids

    def decode(self, ids, skip):
        return self.processor.decode(ids) if skip else None  # it does not show control pieces

    def id_to_token(self, i):
        return self.processor.id_to_piece(i)


class Tokens:
    """tokenizer.json."""

    def __init__(self, path):
        self.tokenizer = Tokenizer.from_file(str(path))

    def names(self):
        return [token.content for token in self.tokenizer.get_added_tokens_decoder().values()]

    def encode_batch(self, lines):
        return (encoding.ids for encoding in self.tokenizer.encode_batch(lines, add_special_tokens=False))

    def decode(self, ids, skip):
        return self.tokenizer.decode(ids, skip_special_tokens=skip)

    def id_to_token(self, i):
        return self.tokenizer.id_to_token(i)


def open_folder(folder):
    path = folder / "tokenizer.json"
    return Tokens(path) if path.exists() else Pieces(folder / "tokenizer.model")


def compare(program, folder, name, tokenizer, lines, n_shown):
    n_ids = n_texts = 0
    for begin in range(0, len(lines), 20000):
        part = lines[begin:begin + 20000]
        theirs = tokenizer.encode_batch(part)
        for line, expected_ids, (ids, hidden, shown) in zip(part, theirs, ours(program, folder, part)):
            if ids != expected_ids:
                n_ids += 1
                if n_ids <= n_shown:
                    print(f"{name}: {line[:300]!r}\n  library {[tokenizer.id_to_token(i) for i in expected_ids][:60]}\n"
                          f"  ours    {[tokenizer.id_to_token(i) for i in ids or []][:60]}")
                continue
            for skip, text in ((True, hidden), (False, shown)):
                expected = tokenizer.decode(ids, skip)
                if expected is not None and squeeze(expected) != squeeze(text):
                    n_texts += 1
                    if n_texts <= n_shown:
                        print(f"{name}: {line[:300]!r} skip={skip}\n  library {expected[:300]!r}\n  ours    {text[:300]!r}")
    print(f"{name}: {len(lines)} lines, {n_ids} with other ids, {n_texts} with another text", flush=True)
    return n_ids + n_texts


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", required=True, help="tests/model/tokenize_records.c, built")
    parser.add_argument("--lines", type=int, default=100000)
    parser.add_argument("--text", type=Path, nargs="*", default=[], help="files of lines, .xz too")
    parser.add_argument("--folder", type=Path, nargs="+", help="tokenizer.json or tokenizer.model instead of families")
    parser.add_argument("--only", nargs="*", help="families")
    parser.add_argument("--characters", action="store_true", help="every character instead of lines")
    parser.add_argument("--show", type=int, default=3)
    args = parser.parse_args()
    n_differences = 0
    for name in args.folder or args.only or FAMILIES:
        with tempfile.TemporaryDirectory() as made:
            folder = name if args.folder else Path(made)
            if not args.folder:
                (folder / "tokenizer.json").write_text(build(name), encoding="utf-8")
            tokenizer = open_folder(folder)
            names = tokenizer.names() + [content[:-1] for content in tokenizer.names()]
            lines = list(every_character()) if args.characters else make_lines(args.lines, args.text, names)
            n_differences += compare(args.program, folder, name, tokenizer, lines, args.show)
    sys.exit(1 if n_differences else 0)


if __name__ == "__main__":
    main()
