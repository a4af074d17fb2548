"""Look-up text: passages that scatter facts in filler, and questions about them.

The words and sentences are those of service/eval/task_words.h, which this module reads, so that what is trained here is
what `pikv eval --tasks` asks.  A Passage holds facts of every kind, so that each has many questions:

    number     The number of the lamp of Anna is 4821.           one person, one thing
    grid       the same with people and things that several facts share
    chain      The friend of Anna is Peter.  ...  The number of Peter is 4821.
    now        a number that was said before is said anew, up to three times; the last one counts
    count      Anna saw a bird.  said 0 to 6 times

Texts are made of pieces (text, weight): weight 1 where the text follows from what stands before it.
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
ANSWER_WEIGHT = 4


class Facts:
    """The facts of one passage: sentences in the order in which they must appear, and questions (stem, answer)."""

    def __init__(self, rng, n_facts):
        self.rng = rng
        self.sentences, self.questions = [], []       # sentences: (order key, text)
        people = list(rng.permutation(W["TASK_PEOPLE"]))
        self.things = list(rng.permutation(W["TASK_THINGS"]))
        kinds = [self.number, self.grid, self.chain, self.now, self.count]
        costs = [1, 1, 2, 2, 2]
        while n_facts > 0 and len(people) >= 4:
            which = int(rng.choice(5, p=[0.35, 0.2, 0.15, 0.15, 0.15]))
            used = kinds[which](people, n_facts)
            n_facts -= max(used, costs[which])

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
        who = [people.pop() for _ in range(2)]
        what = [self.things.pop() for _ in range(2)]
        cells = [(t, p) for t in what for p in who][:max(2, min(4, n_facts))]
        for thing, person in cells:
            sentence = W["TASK_NUMBER"] % (thing, person, self.digits())
            self.say(sentence)
            self.ask("grid", sentence)
        self.things = what + self.things
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
        person = people.pop()
        animal = self.rng.choice(W["TASK_ANIMALS"])
        n = int(self.rng.integers(1, min(W["TASK_COUNT_MAX"], max(2, n_facts)) + 1))
        for _ in range(n):
            self.say(W["TASK_SAW"] % (person, animal))
        self.ask("count", W["TASK_COUNT"] % (person, animal, n))
        return n


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
    gaps = rng.multinomial(max(room, 0), rng.dirichlet(np.ones(len(said) + 1)))
    real = rng.random() < 0.5
    for i, gap in enumerate(gaps):
        ids += filler_stream(gap) if real else make_filler(rng, gap, encode)
        weights += [1 if real else 0] * int(gap)
        if i < len(said):
            ids += said[i]
            weights += [0] * len(said[i])
    ids += head
    weights += [0] * len(head)
    for kind, whole, n_stem in asked:
        spans.append((kind, len(ids) + n_stem, len(ids) + len(whole)))
        ids += whole
        weights += [0] * n_stem + [ANSWER_WEIGHT] * (len(whole) - n_stem)
    return ids[:n_tokens], weights[:n_tokens], [s for s in spans if s[2] <= n_tokens]


def make_filler(rng, n_tokens, encode):
    ids = []
    while len(ids) < n_tokens:
        ids += encode(filler_sentence(rng))
    return ids[:n_tokens] if len(ids) - n_tokens < 6 else ids[len(ids) - n_tokens:]
