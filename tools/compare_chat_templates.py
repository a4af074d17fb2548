#!/usr/bin/env python3
"""Compares pikv's rendering of chat templates with that of transformers, on every template of a folder.

    python tools/compare_chat_templates.py DIRECTORY [--render build/dev/jinja_render] [--verbose]

Each file *.jinja of DIRECTORY is rendered over several conversations (with and without tools, reasoning, documents
and a generation prompt) by jinja_render, which CMake builds beside the tests, and by transformers (versions:
tools/requirements.txt). Says for each template how many texts are the same, and what was refused; exit status 1
if any text differs, or if only one of the two fails.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from datetime import datetime
from pathlib import Path

from transformers.utils import chat_template_utils

TOOLS = [
    {"type": "function", "function": {
        "name": "get_weather", "description": "The weather of a place, now.",
        "parameters": {"type": "object", "required": ["place"], "properties": {
            "place": {"type": "string", "description": "City & country, e.g. \"Zürich\""},
            "unit": {"type": "string", "enum": ["celsius", "fahrenheit"], "default": "celsius"},
            "days": {"type": "integer", "description": "How many"},
            "tags": {"type": "array", "items": {"type": "string"}}}},
        "return": {"type": "object", "properties": {"t": {"type": "number"}}}}},
    {"type": "function", "function": {
        "name": "noop", "description": "Does nothing", "parameters": {"type": "object", "properties": {}}}},
]
CALL = {"id": "call00001", "type": "function",
        "function": {"name": "get_weather", "arguments": {"place": "Köln <DE>", "days": 2, "f": 1.5, "x": None}}}
SYSTEM = {"role": "system", "content": "Be brief; say \"yes\"."}
USER = {"role": "user", "content": "  Hallo, wörld! <b>&'\n\n日本 🙂 "}
ANSWER = {"role": "assistant", "content": "Fine."}
THOUGHT = {"role": "assistant", "content": "<think>\nhm, let me see\n</think>\n\nDone.", "reasoning_content": "why not"}
CALLING = {"role": "assistant", "content": "", "tool_calls": [CALL]}
TOOL = {"role": "tool", "tool_call_id": "call00001", "name": "get_weather", "content": "{\"t\": 12.5}"}
PARTS = {"role": "user", "content": [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]}

CONVERSATIONS = {
    "user": [USER],
    "system": [SYSTEM, USER],
    "turns": [SYSTEM, USER, ANSWER, {"role": "user", "content": "And?"}],
    "no-system turns": [USER, ANSWER, {"role": "user", "content": ""}],
    "answered": [USER, ANSWER],
    "thought": [USER, THOUGHT, {"role": "user", "content": "ok"}, THOUGHT],
    "calling": [USER, CALLING],
    "called": [SYSTEM, USER, CALLING, TOOL],
    "called, answered": [SYSTEM, USER, CALLING, TOOL, ANSWER, {"role": "user", "content": "again"}],
    "two calls": [USER, {"role": "assistant", "content": None, "tool_calls": [CALL, {**CALL, "id": "call00002"}]},
                  TOOL, {**TOOL, "tool_call_id": "call00002"}],
    "arguments as text": [USER, {"role": "assistant", "content": "so", "tool_calls": [
        {**CALL, "function": {"name": "noop", "arguments": "{\"a\": 1}"}}]}, TOOL],
    "parts": [SYSTEM, PARTS, ANSWER],
    "developer": [{"role": "developer", "content": "Rules."}, USER],
    "odd role": [{"role": "critic", "content": "Hm."}, USER],
    "two users": [USER, USER],
    "nothing": [],
}

OPTIONS = {
    "plain": {},
    "generation prompt": {"add_generation_prompt": True},
    "tools": {"tools": TOOLS, "add_generation_prompt": True},
    "no thinking": {"add_generation_prompt": True, "enable_thinking": False, "thinking": False,
                    "reasoning_effort": "low"},
    "thinking": {"add_generation_prompt": True, "enable_thinking": True, "thinking": True,
                 "documents": [{"title": "A", "text": "Text of A"}, {"title": "B", "text": "of B"}]},
}


def contexts():
    for conversation, messages in CONVERSATIONS.items():
        for option, values in OPTIONS.items():
            yield f"{conversation}, {option}", {
                "messages": messages, "tools": None, "documents": None, "add_generation_prompt": False,
                "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>", **values}


def expect(source, context):
    """What transformers makes of it; None if it fails."""
    try:
        return chat_template_utils._compile_jinja_template(source).render(**context)
    except Exception:  # whatever a template may do: each kind of error counts the same
        return None


def render(program, template, context, folder):
    """(exit status, text or words)."""
    path = folder / "context.json"
    path.write_text(json.dumps(context, ensure_ascii=False), encoding="utf-8")
    done = subprocess.run([program, template, path], capture_output=True, check=False)
    text = done.stdout if done.returncode == 0 else done.stderr
    return done.returncode, text.decode("utf-8", "replace").rstrip("\n" if done.returncode else "")


def compare(program, template, folder, verbose):
    """Counts of one template (same, both fail, differs, refused), and why it was refused."""
    source = template.read_bytes().decode("utf-8")
    counts = Counter()
    for name, context in contexts():
        before = datetime.now().strftime("%d %H:%M")
        expected = expect(source, context)
        status, text = render(program, template, context, folder)
        if status == 3 and expected is not None:
            return Counter(refused=1), text
        same = text == expected if status == 0 else expected is None
        if not same and before != datetime.now().strftime("%d %H:%M"):
            continue  # a minute ended between the two
        counts["same" if same and status == 0 else "both fail" if same else "differs"] += 1
        if not same and verbose:
            print(f"--- {template.name}: {name}\n    transformers: {expected!r}\n    pikv ({status}): {text!r}")
    return counts, ""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--render", default="build/dev/jinja_render")
    parser.add_argument("--verbose", action="store_true", help="show what differs")
    arguments = parser.parse_args()
    total = Counter()
    with tempfile.TemporaryDirectory() as folder:
        for template in sorted(arguments.directory.glob("**/*.jinja")):
            counts, words = compare(arguments.render, template, Path(folder), arguments.verbose)
            print(template.name, dict(counts), words, flush=True)
            total["templates"] += 1
            total["refused" if words else "differ" if counts["differs"] else "agree"] += 1
    print(dict(total))
    return 1 if total["differ"] else 0


if __name__ == "__main__":
    sys.exit(main())
