#!/usr/bin/env python3
"""Writes the small tokenizer.json files of tests/golden and what the tokenizers library makes of many texts.

Each fixture is a folder tokenizer-json-NAME/, one for each family of tools/tokenizer_families.py, with tokenizer.json
and cases.json:

    {"cases":        [{"text": ..., "ids": [...], "decoded": ..., "shown": ...}, ...],    encode, then decode those ids
     "plain_cases":  [{"text": ..., "ids": [...], "decoded": ..., "shown": ...}, ...],    names of special tokens as text
     "decode_cases": [{"ids": [...], "decoded": ..., "shown": ...}, ...],                 ids as a model may sample them
     "fragments": [...], "blocks": [[first, last], ...], "n_lines": ..., "digest": ...}   many generated lines

`decoded` leaves special tokens out, `shown` has them. The digest is that of the ids and texts of n_lines lines, which
tests/model/test_tokenizer_json.c makes in the same way from the fragments and blocks.

    python tools/make_tokenizer_json_goldens.py --out tests/golden
"""

import argparse
import json
import random
from pathlib import Path

from compare_tokenizers import BLOCKS, GLUE, SPACES, odd_line, without_surrogates
from make_tokenizer_goldens import CODE, FOREIGN, dump, texts
from tokenizer_families import FAMILIES, build
from tokenizers import Tokenizer

N_LINES = 1000
MASK = (1 << 64) - 1


class Numbers:
    """SplitMix64 (Steele, Lea, Flood, 2014)."""

    def __init__(self, seed):
        self.state = seed

    def below(self, n):
        self.state = (self.state + 0x9e3779b97f4a7c15) & MASK
        z = self.state
        z = ((z ^ (z >> 30)) * 0xbf58476d1ce4e5b9) & MASK
        z = ((z ^ (z >> 27)) * 0x94d049bb133111eb) & MASK
        return (z ^ (z >> 31)) % n


def generated_line(numbers, fragments, blocks):
    """Up to 12 parts, each a fragment or a few characters of one block."""
    parts = []
    for _ in range(1 + numbers.below(12)):
        if numbers.below(3) > 0:
            parts.append(fragments[numbers.below(len(fragments))])
            continue
        low, high = blocks[numbers.below(len(blocks))]
        for _ in range(1 + numbers.below(4)):
            parts.append(chr(low + numbers.below(high - low + 1)))
    return "".join(parts)


class Digest:
    """FNV-1a of 64 bits."""

    def __init__(self):
        self.value = 0xcbf29ce484222325

    def add(self, data):
        value = self.value
        for byte in data:
            value = ((value ^ byte) * 0x100000001b3) & MASK
        self.value = value


def digest_of(tokenizer, fragments, blocks):
    """U+FFFD is left out of the texts: how many stand for broken bytes is ours to say."""
    numbers, digest = Numbers(1), Digest()
    for _ in range(N_LINES):
        ids = tokenizer.encode(generated_line(numbers, fragments, blocks), add_special_tokens=False).ids
        digest.add(b"".join(i.to_bytes(4, "little") for i in ids))
        digest.add(tokenizer.decode(ids).replace("\ufffd", "").encode("utf-8") + b"\n")
    return f"{digest.value:016x}"


def with_decoded(tokenizer, case):
    case["decoded"] = tokenizer.decode(case["ids"], skip_special_tokens=True)
    case["shown"] = tokenizer.decode(case["ids"], skip_special_tokens=False)
    return case


def sampled_ids(tokenizer, rng):
    """Ids of all kinds, special tokens between the bytes of a character too."""
    size = tokenizer.get_vocab_size()
    added = sorted(tokenizer.get_added_tokens_decoder())
    broken = [tokenizer.encode(text, add_special_tokens=False).ids for text in ("😀", "漢字", "é", " a", "▁")]
    lists = [[], [0], [1], [2], [0, 0], added, added[:1] * 3]
    for ids in broken:
        lists += [ids[:cut] + added[:1] + ids[cut:] for cut in range(len(ids) + 1)]
        lists += [ids[:cut] + ids for cut in range(1, len(ids))]
    lists += [[rng.randrange(size) for _ in range(rng.randrange(1, 12))] for _ in range(40)]
    return lists


def make_fixture(name):
    description = build(name)
    tokenizer = Tokenizer.from_str(description)
    rng = random.Random(3)
    names = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    names += [f" {n}  x" for n in names] + [f"a{n}b" for n in names] + [n[:-1] for n in names] + ["".join(names)]
    lines = texts() + FOREIGN + CODE + names + [odd_line(rng, names) for _ in range(60)]
    lines = [without_surrogates(line) for line in lines]
    cases = [with_decoded(tokenizer, {"text": line, "ids": tokenizer.encode(line, add_special_tokens=False).ids})
             for line in lines]
    decode_cases = [with_decoded(tokenizer, {"ids": ids}) for ids in sampled_ids(tokenizer, rng)]
    # Of bytes that fall back the library gives up a whole run where one is broken, characters that are whole too. A
    # stream cannot know; tokenizer-bpe has such cases.
    if '"ByteFallback"' in description:
        decode_cases = [case for case in decode_cases if "\ufffd" not in case["decoded"] + case["shown"]]
    tokenizer.encode_special_tokens = True
    plain_cases = [with_decoded(tokenizer, {"text": line, "ids": tokenizer.encode(line, add_special_tokens=False).ids})
                   for line in names]
    tokenizer.encode_special_tokens = False
    fragments = GLUE + list(SPACES) + names[:6] + FOREIGN[:4] + ["return x;", "aa", "Aa", "aA", "AA"]
    blocks = [list(block) for block in BLOCKS]
    return description, {"cases": cases, "plain_cases": plain_cases, "decode_cases": decode_cases, "fragments": fragments, "blocks": blocks,
                         "n_lines": N_LINES, "digest": digest_of(tokenizer, fragments, blocks)}


def write_fixture(folder, name):
    description, cases = make_fixture(name)
    plain = {key: cases.pop(key) for key in ("n_lines", "digest")}
    text = dump(cases)
    text = text[:-len("\n}\n")] + "".join(f",\n{json.dumps(key)}: {json.dumps(value)}" for key, value in plain.items())
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(description, encoding="utf-8", newline="\n")
    (folder / "cases.json").write_text(text + "\n}\n", encoding="utf-8", newline="\n")
    print(f"{folder.name}: {len(description)} bytes, {len(cases['cases'])} texts, {len(cases['decode_cases'])} id lists")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("tests/golden"), help="folder of the fixtures")
    args = parser.parse_args()
    for name in FAMILIES:
        write_fixture(args.out / f"tokenizer-json-{name}", name)


if __name__ == "__main__":
    main()
