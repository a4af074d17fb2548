"""A Dockerfile as data: stages, instructions, and what .dockerignore leaves of a folder. Enough for ours."""

import json
import pathlib
import re
from dataclasses import dataclass, field


@dataclass
class Instruction:
    line: int
    word: str  # upper case
    text: str  # continuation lines joined, comments within left out
    ignored: tuple = ()  # rules of hadolint that the comment above it switches off

    def exec_form(self):
        """The list of an exec form; None for a shell form."""
        found = re.search(r"\[.*\]$", self.text)
        return json.loads(found.group()) if found and not self.text.startswith("&&") else None

    def flags(self):
        return dict(re.findall(r"--([a-z-]+)=(\S+)", self.text))

    def words(self):
        return [word for word in self.text.split() if not word.startswith("--")]


@dataclass
class Stage:
    base: str
    name: str
    instructions: list = field(default_factory=list)

    def all(self, word):
        return [i for i in self.instructions if i.word == word]

    def last(self, word):
        found = self.all(word)
        assert found, f"stage {self.name} has no {word}"
        return found[-1]

    def pairs(self, word):
        """ENV and LABEL as a dictionary."""
        text = " ".join(i.text for i in self.all(word))
        return {k: v.strip('"') for k, v in re.findall(r'([\w.]+)=("[^"]*"|\S*)', text)}


class Dockerfile:
    """`arguments` are the ARGs ahead of the first stage; `stages` have them filled in."""

    def __init__(self, text):
        self.arguments, self.stages = {}, []
        for instruction in read_instructions(text):
            if instruction.word == "FROM":
                base, *alias = instruction.words()
                name = re.sub(r"\$\{(\w+)\}", lambda m: self.arguments[m.group(1)], base)
                assert not alias or alias[0].upper() == "AS", instruction
                self.stages.append(Stage(name, alias[1] if alias else ""))
            elif self.stages:
                self.stages[-1].instructions.append(instruction)
            else:
                assert instruction.word == "ARG", f"{instruction.word} ahead of a stage"
                name, _, value = instruction.text.partition("=")
                self.arguments[name] = value

    def stage(self, name):
        return next(stage for stage in self.stages if stage.name == name)

    def names(self):
        return [stage.name for stage in self.stages if stage.name]


KNOWN = ("ADD ARG CMD COPY ENTRYPOINT ENV EXPOSE FROM HEALTHCHECK LABEL ONBUILD RUN SHELL STOPSIGNAL USER VOLUME "
         "WORKDIR").split()


def read_instructions(text):
    ignored, begun = (), None
    for number, line in enumerate(text.splitlines(), 1):
        comment = re.match(r"\s*#\s*(hadolint ignore=(.*))?", line)
        if comment:
            ignored = tuple(comment.group(2).split(",")) if comment.group(1) else ignored
        elif begun is None and line.strip():
            word, _, rest = line.strip().partition(" ")
            assert word in KNOWN, f"line {number}: {word} is no instruction"
            begun = Instruction(number, word, rest.strip(), ignored)
            ignored = ()
        elif begun is not None:
            begun.text += " " + line.strip()
        if begun is not None and not comment:
            if begun.text.endswith("\\"):
                begun.text = begun.text[:-1].strip()
            else:
                yield begun
                begun = None
    assert begun is None, "the last line goes on"


class Ignore:
    """.dockerignore: the last pattern that fits decides; one that fits a folder fits all in it."""

    def __init__(self, text):
        lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
        self.patterns = [(line.lstrip("!").strip("/"), line.startswith("!")) for line in lines]

    def leaves_out(self, path):
        parts = pathlib.PurePosixPath(path).parts
        prefixes = ["/".join(parts[:n]) for n in range(1, len(parts) + 1)]
        out = False
        for pattern, is_exception in self.patterns:
            if any(fits(pattern, prefix) for prefix in prefixes):
                out = not is_exception
        return out


def fits(pattern, path):
    """`*` within a name, `**/` any folders, none too."""
    regex = "".join(r"(?:.*/)?" if part == "**/" else ".*" if part == "**" else "[^/]*" if part == "*" else
                    "[^/]" if part == "?" else re.escape(part)
                    for part in re.split(r"(\*\*/|\*\*|\*|\?)", pattern))
    return re.fullmatch(regex, path) is not None
