"""Look-up text: passages that scatter facts in filler, and questions about them.

The words and sentences are those of service/eval/task_words.h, which this module reads, so that what is trained here is
what `pikv eval --tasks` asks.  A Passage holds facts of every kind, so that each has many questions:

    number     The number of the lamp of Anna is 4821.           one person, one thing
    grid       the same with people and things that several facts share
    chain      The friend of Anna is Peter.  ...  The number of Peter is 4821.
    now        a number that was said before is said anew, up to three times; the last one counts
    count      Anna saw a bird.  said 0 to 6 times

Filler is real text or sentences of the list.  Half of the passages hold facts of one kind alone.
"""
import os
import re

import numpy as np

HEADER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "service", "eval", "task_words.h")


def read_words(path=HEADER):
    """{macro name: list of strings, or one string, or number}."""
    with open(path, encoding="utf-8") as f:
        text = re.sub(r"/\*.*?\*/", "", f.read(), flags=re.S).replace("\\\n", " ")
    words = {}
    for name, body in re.findall(r"^#define (TASK_\w+)\(X\)(.*)$", text, flags=re.M):
        words[name] = re.findall(r'X\("([^"]*)"\)', body)
    for name, value in re.findall(r'^#define (TASK_\w+)\s+"([^"]*)"', text, flags=re.M):
        words[name] = value
    for name, value in re.findall(r"^\s+(TASK_\w+) = (\d+)", text, flags=re.M):
        words[name] = int(value)
    return words


W = read_words()
FILLER, ANSWER = 1, 2           # weights: real text between facts, and what is asked for; 0 is not trained on


class Facts:
    """The facts of one passage: sentences in the order in which they must appear, and questions (stem, answer)."""

    def __init__(self, rng, n_facts):
        self.rng = rng
        self.sentences, self.questions = [], []       # sentences: (order key, text)
        people = list(rng.permutation(W["TASK_PEOPLE"]))
        self.things = list(rng.permutation(W["TASK_THINGS"]))
        kinds = [self.number, self.grid, self.chain, self.now, self.count]
        draw = lambda weights: kinds[rng.choice(len(kinds), p=weights)]
        only = draw([0.4, 0.15, 0.15, 0.15, 0.15]) if rng.random() < 0.5 else None
        names = 1 if only == self.number else 4        # that the next fact may need
        while n_facts > 0 and min(len(people), len(self.things)) >= names:
            n_facts -= (only or draw([0.35, 0.2, 0.15, 0.15, 0.15]))(people, n_facts)

    def digits(self):
        return "".join(str(d) for d in self.rng.integers(0, 10, W["TASK_DIGITS"]))

    def say(self, text, at=None):
        self.sentences.append((self.rng.random() if at is None else at, text))

    def ask(self, kind, sentence, n_answer_words=1):
        """The last words of the sentence are the answer."""
        words = sentence.split(" ")
        self.questions.append((kind, " ".join(words[:-n_answer_words]), " " + " ".join(words[-n_answer_words:])))

    def number(self, people, _):
        sentence = W["TASK_NUMBER"] % (self.things.pop(), people.pop(), self.digits())
        self.say(sentence)
        self.ask("number", sentence)
        return 1

    def grid(self, people, n_facts):
        side = 2 + (n_facts >= 8) + (n_facts >= 14)
        n_people, n_things = (int(n) for n in self.rng.integers(2, side + 1, 2))
        who = [people.pop() for _ in range(n_people)]
        what = [self.things.pop() for _ in range(n_things)]
        cells = [(t, p) for t in what for p in who]
        for thing, person in cells:
            sentence = W["TASK_NUMBER"] % (thing, person, self.digits())
            self.say(sentence)
            self.ask("grid", sentence)
        return len(cells)

    def chain(self, people, _):
        a, b = people.pop(), people.pop()
        friend, number = W["TASK_FRIEND"] % (a, b), W["TASK_OWN_NUMBER"] % (b, self.digits())
        self.say(friend)
        self.say(number)
        self.ask("chain", friend + " " + number, len(number.split(" ")) + 1)
        return 2

    def now(self, people, n_facts):
        key = (self.things.pop(), people.pop())
        n = int(self.rng.integers(2, max(3, min(4, n_facts) + 1)))
        for i, at in enumerate(sorted(self.rng.random(n))):
            sentence = W["TASK_NUMBER_NOW" if i else "TASK_NUMBER"] % (*key, self.digits())
            self.say(sentence, at)
        self.ask("now", sentence)
        return n

    def count(self, people, n_facts):
        person, total = people.pop(), 0
        for animal in self.rng.choice(W["TASK_ANIMALS"], int(self.rng.integers(1, 3)), replace=False):
            n = int(self.rng.integers(1, min(W["TASK_COUNT_MAX"], max(2, n_facts)) + 1))
            for _ in range(n):
                self.say(W["TASK_SAW"] % (person, animal))
            self.ask("count", W["TASK_COUNT"] % (person, animal, n))
            total += n
        return total


def filler_sentence(rng):
    pick = lambda name: W[name][rng.integers(len(W[name]))]
    return pick("TASK_FILLERS") % (pick("TASK_WALKERS"), pick("TASK_PLACES"), pick("TASK_QUALITIES"))


def make_window(rng, n_tokens, encode, filler_stream, n_facts):
    """Ids and weights, [n_tokens] each, of a passage of facts in filler and its questions with answers; and where
    the answers are: (kind, first, end).

    encode(text) gives ids as they stand behind a space; filler_stream(n) gives n tokens of real text."""
    facts = Facts(rng, n_facts)
    line = lambda text: encode("\n" + text)[1:]        # without the piece of the space before
    head = line(W["TASK_QUESTIONS"])
    said = [encode(text) for _, text in sorted(facts.sentences, key=lambda s: s[0])]
    room = n_tokens - len(head) - sum(map(len, said))
    asked = []
    for i in rng.permutation(len(facts.questions)):     # questions that leave no room for the passage are dropped
        kind, stem, answer = facts.questions[i]
        whole, part = line(stem + answer), line(stem)
        if len(whole) <= room - (n_tokens // 8 if asked else 0):
            asked.append((kind, whole, len(part)))
            room -= len(whole)
    ids, weights, spans = [], [], []
    if rng.random() < 0.5:
        gaps = rng.multinomial(max(room, 0), rng.dirichlet(np.ones(len(said) + 1)))
        for i, gap in enumerate(gaps):
            ids += filler_stream(int(gap))
            weights += [FILLER] * int(gap)
            if i < len(said):
                ids += said[i]
                weights += [0] * len(said[i])
    else:
        ids = mix(rng, said, max(room, 0), encode)
        weights = [0] * len(ids)
    ids += head
    weights += [0] * len(head)
    for kind, whole, n_stem in asked:
        spans.append((kind, len(ids) + n_stem, len(ids) + len(whole)))
        ids += whole
        weights += [0] * n_stem + [ANSWER] * (len(whole) - n_stem)
    return ids[:n_tokens], weights[:n_tokens], [s for s in spans if s[2] <= n_tokens]


def mix(rng, said, room, encode):
    """The facts in their order among `room` tokens of filler sentences; the first sentence may be cut."""
    filler, n = [], 0
    while n < room:
        filler.append(encode(filler_sentence(rng)))
        n += len(filler[-1])
    if filler:
        filler[0] = filler[0][n - room:]
    places = 1 + rng.permutation(len(filler) + len(said) - 1)[:len(said)] if filler else np.arange(len(said))
    facts, others = iter(said), iter(filler)
    is_fact = np.isin(np.arange(len(filler) + len(said)), places)
    return [i for fact in is_fact for i in next(facts if fact else others)]


def make_packed(rng, n_tokens, encode, filler_stream):
    """As make_window, of short passages one behind the other: many questions, each close to its fact."""
    ids, weights, spans = [], [], []
    while len(ids) < n_tokens:
        n_facts = int(rng.integers(1, 5))
        n = min(n_tokens - len(ids), n_facts * 32 + int(rng.integers(24)))
        more, w, s = make_window(rng, n, encode, filler_stream, n_facts)
        spans += [(kind, first + len(ids), end + len(ids)) for kind, first, end in s]
        ids += more + encode("\n")[-1:] * (n - len(more))
        weights += w + [0] * (n - len(w))
    return ids, weights, spans
