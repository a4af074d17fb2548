#!/usr/bin/env python3
"""Writes what transformers makes of the chat templates and snippets of tests/golden/chat.

Read are the templates NAME.jinja, which are our own and use what each family's published one uses, and snippets.txt,
one template a line. Written are

    contexts.json   {"snippets": {...}, "conversations": {"name": {...}, ...}}     what they are rendered over
    snippets.json   [{"template": ..., "text": ...}, ...]
    NAME.json       {"name of the conversation": {"text": ...}, ...}

where "text" is null if rendering (or compiling) fails, with "raised" if raise_exception was called. The time is
always 2026-11-22 10:11:12. Two runs write the same bytes (versions: tools/requirements.txt).

    python tools/make_chat_goldens.py --out tests/golden/chat
"""

import argparse
import json
from datetime import datetime
from pathlib import Path

import jinja2
from compare_chat_templates import SYSTEM, USER, contexts
from transformers.utils import chat_template_utils

NOW = datetime(2026, 11, 22, 10, 11, 12)

SNIPPET_CONTEXT = {
    "user": {"name": "Ann", "age": 41, "address": {"city": "Bern", "zip": 3011}},
    "people": [{"name": "Ann", "age": 41, "address": {"city": "Bern"}},
               {"name": "Bob", "age": 30, "address": {"city": "Köln"}},
               {"name": "Cyd", "age": 30, "address": {}}],
    "shadow": {"items": [1, 2], "keys": 3},
    "numbers": [3, 1, 2, 5, 4],
    "nested": [[1, 2], ["a", "b"]],
    "items": ["x"],
    "text": "hello",
    "unicode": "aé日🙂",
    "number": 7,
    "none_value": None,
    "messages": [SYSTEM, USER, {"role": "assistant", "content": "Fine, thanks."}, {"role": "user", "content": "Bye"}],
}


class FixedTime(datetime):
    @classmethod
    def now(cls, tz=None):
        return NOW


def render(source, context):
    """{"text": ...} and, if the template raised it, {"raised": ...}."""
    try:
        return {"text": chat_template_utils._compile_jinja_template(source).render(**context)}
    except jinja2.exceptions.TemplateError as error:
        raised = type(error) is jinja2.exceptions.TemplateError
        return {"text": None, "raised": str(error)} if raised else {"text": None}
    except Exception:  # whatever a template may do
        return {"text": None}


def snippets(path):
    for line in path.read_text(encoding="utf-8").split("\n"):
        if line and not line.startswith("# "):
            yield line.replace("⏎", "\n")


def write(path, value):
    path.write_text(json.dumps(value, ensure_ascii=True, indent=0) + "\n", encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("tests/golden/chat"))
    out = parser.parse_args().out
    chat_template_utils.datetime = FixedTime
    conversations = dict(contexts())
    write(out / "contexts.json", {"snippets": SNIPPET_CONTEXT, "conversations": conversations})
    write(out / "snippets.json",
          [{"template": s, **render(s, SNIPPET_CONTEXT)} for s in snippets(out / "snippets.txt")])
    for template in sorted(out.glob("*.jinja")):
        source = template.read_text(encoding="utf-8")
        write(out / f"{template.stem}.json", {name: render(source, c) for name, c in conversations.items()})


if __name__ == "__main__":
    main()
