"""Promises of tools/lookup_text.py: it reads service/eval/task_words.h as a C compiler does, and what it trains can be
answered from what it says.

The compiler is the judge of the first: each macro of the header is expanded by its preprocessor.
"""
import os
import random
import re
import subprocess
import sys
import types

import pytest

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
HEADER = os.path.join(ROOT, "service", "eval", "task_words.h")
sys.path.insert(0, os.path.join(ROOT, "tools"))
try:
    import numpy  # noqa: F401
except ImportError:  # it is for training; nothing that is tested here calls it
    sys.modules["numpy"] = types.ModuleType("numpy")

import lookup_text  # noqa: E402

WORDS = lookup_text.W


def preprocess(text):
    done = subprocess.run([os.environ.get("PIKV_CC", "cc"), "-E", "-P", "-I", ROOT, "-x", "c", "-"],
                          input='#include "service/eval/task_words.h"\n' + text, capture_output=True, text=True, check=True)
    return done.stdout


def macros():
    """Names of the header's macros: lists and strings."""
    with open(HEADER, encoding="utf-8") as f:
        names = re.findall(r"^\s*#\s*define\s+(\w+)(\(\w+\))?[ \t]+\S", f.read(), flags=re.M)
    lists = [name for name, argument in names if argument]
    return lists, [name for name, argument in names if not argument]


class PlainRandom:
    """What Facts and filler_sentence need of a numpy generator."""

    def __init__(self, seed):
        self.source = random.Random(seed)

    def permutation(self, items):
        return self.source.sample(list(items), len(items))

    def random(self, n=None):
        return self.source.random() if n is None else [self.source.random() for _ in range(n)]

    def integers(self, low, high=None, n=None):
        low, high = (0, low) if high is None else (low, high)
        draw = lambda: self.source.randrange(low, high)
        return draw() if n is None else [draw() for _ in range(n)]

    def choice(self, items, n=None, replace=True, p=None):
        items = list(range(items)) if isinstance(items, int) else items
        assert n is None or not replace
        return self.source.choices(items, weights=p)[0] if n is None else self.source.sample(items, n)


def test_every_list_is_read_as_the_compiler_reads_it():
    lists, _ = macros()
    assert len(lists) >= 7
    for name in lists:
        expanded = preprocess("#define PRINT(item) item\nBEGIN %s(PRINT)\n" % name).split("BEGIN")[1]
        assert re.findall(r'"([^"]*)"', expanded) == WORDS[name], name
        assert len(set(WORDS[name])) == len(WORDS[name]) >= 2, name


def test_every_sentence_is_read_as_the_compiler_reads_it():
    _, sentences = macros()
    assert len(sentences) >= 7
    for name in sentences:
        expanded = preprocess("BEGIN %s\n" % name).split("BEGIN")[1].strip()
        assert expanded == '"%s"' % WORDS[name], name


def test_every_number_is_read_as_the_compiler_reads_it():
    body = re.search(r"enum\s*\{(.*?)\}", preprocess(""), flags=re.S).group(1)
    numbers = {name: int(value) for name, value in re.findall(r"(\w+)\s*=\s*(\d+)", body)}
    assert numbers == {name: value for name, value in WORDS.items() if isinstance(value, int)}
    assert numbers


def test_the_reader_finds_nothing_that_is_not_in_the_header():
    lists, sentences = macros()
    assert {name for name, value in WORDS.items() if not isinstance(value, int)} == set(lists) | set(sentences)


def test_people_of_facts_and_of_filler_are_different():
    assert not set(WORDS["TASK_PEOPLE"]) & set(WORDS["TASK_WALKERS"])


def as_pattern(form, *names):
    """The sentences that a form can make of words from these lists."""
    parts = [re.escape(part) for part in form.split("%s")]
    assert len(parts) == len(names) + 1, form
    groups = ["([0-9]+)" if name is None else "(%s)" % "|".join(WORDS[name]) for name in names]
    return re.compile("".join(a + b for a, b in zip(parts, groups + [""])))


PEOPLE, THINGS, ANIMALS = "TASK_PEOPLE", "TASK_THINGS", "TASK_ANIMALS"
FACTS = [as_pattern(WORDS["TASK_NUMBER"], THINGS, PEOPLE, None),
         as_pattern(WORDS["TASK_NUMBER_NOW"], THINGS, PEOPLE, None),
         as_pattern(WORDS["TASK_FRIEND"], PEOPLE, PEOPLE),
         as_pattern(WORDS["TASK_OWN_NUMBER"], PEOPLE, None),
         as_pattern(WORDS["TASK_SAW"], PEOPLE, ANIMALS)]
COUNT = as_pattern(WORDS["TASK_COUNT"], PEOPLE, ANIMALS, None)
FILLERS = [as_pattern(form, "TASK_WALKERS", "TASK_PLACES", "TASK_QUALITIES") for form in WORDS["TASK_FILLERS"]]


def told(seed, n_facts):
    facts = lookup_text.Facts(PlainRandom(seed), n_facts)
    return facts, [text for _, text in sorted(facts.sentences, key=lambda s: s[0])]


@pytest.mark.parametrize("n_facts", [2, 8, 32])
def test_every_fact_and_filler_is_made_of_the_headers_words(n_facts):
    for seed in range(50):
        for text in told(seed, n_facts)[1]:
            assert any(pattern.fullmatch(text) for pattern in FACTS), text
        filler = lookup_text.filler_sentence(PlainRandom(seed))
        assert any(pattern.fullmatch(filler) for pattern in FILLERS), filler


def check_question(kind, sentence, said):
    """The answer is what the passage says, and nothing else."""
    if kind == "count":
        person, animal, n = COUNT.fullmatch(sentence).groups()
        assert said.count(WORDS["TASK_SAW"] % (person, animal)) == int(n)
        assert 1 <= int(n) <= WORDS["TASK_COUNT_MAX"]
    elif kind == "chain":
        friend, number = re.fullmatch(r"(.*?\.) (.*)", sentence).groups()
        assert friend in said and number in said
    else:
        pattern = FACTS[1] if kind == "now" else FACTS[0]
        thing, person, digits = pattern.fullmatch(sentence).groups()
        of_key = [m.groups() for m in map(pattern.fullmatch, said) if m and m.groups()[:2] == (thing, person)]
        assert of_key[-1] == (thing, person, digits)
        assert kind == "now" or len(of_key) == 1
        assert len(digits) == WORDS["TASK_DIGITS"]


@pytest.mark.parametrize("n_facts", [2, 8, 32])
def test_every_answer_follows_from_the_passage(n_facts):
    kinds = set()
    for seed in range(50):
        facts, said = told(seed, n_facts)
        for kind, stem, answer in facts.questions:
            assert answer.startswith(" ") and answer.endswith(".") and not stem.endswith(" ")
            check_question(kind, stem + answer, said)
            kinds.add(kind)
    assert kinds == {"number", "grid", "chain", "now", "count"}
