"""lm-eval, unchanged, as docs/api.md says it is started: its local-completions model with the remote tokenizer.

What it reports is compared with what one request for each of its samples gives. It needs no torch, and gets no network:
the tasks are files beside this one.
"""

import json
import math
import os
import re
import subprocess
import sys

import pytest

from server import ROOT, clean_environment, limit

TASKS = "tests/clients/lm_eval"
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


def documented_command():
    """The words of the example in docs/api.md."""
    text = (ROOT / "docs/api.md").read_text()
    (command,) = re.findall(r"```sh\n(lm_eval .*?)```", text, re.DOTALL)
    return command.replace("\\\n", " ").split()


def run_tasks(words, folder):
    """(scores, samples): of a run over tasks, by name."""
    environment = clean_environment({**OFFLINE, "HF_HOME": str(folder / "home")})
    done = subprocess.run([os.path.join(os.path.dirname(sys.executable), "lm_eval"), *words, "--log_samples",
                           "--output_path", str(folder / "out")], cwd=ROOT, env=environment,
                          capture_output=True, text=True, timeout=limit(240), check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    (scores,) = folder.glob("out/*/results_*.json")
    samples = {}
    for path in folder.glob("out/*/samples_*.jsonl"):
        name = re.match(r"samples_(\w+)_\d{4}-", path.name).group(1)
        samples[name] = [json.loads(line) for line in path.read_text().splitlines()]
    return json.loads(scores.read_text())["results"], samples


@pytest.fixture(scope="module")
def run(server, tmp_path_factory):
    """All tasks, as documented."""
    words = [word.replace("http://localhost:8000", server.url) for word in documented_command()[1:]]
    return run_tasks(words, tmp_path_factory.mktemp("lm_eval"))


def log_likelihood(server, context, text):
    """Of `text` behind `context`, token ids both, and whether each token is the likeliest; one request."""
    reply = server.complete(context + text, max_tokens=0, echo=True, logprobs=1)
    scored = reply["choices"][0]["logprobs"]
    values = scored["token_logprobs"][len(context):]
    tops = scored["top_logprobs"][len(context):]
    assert len(values) == len(text)
    return sum(values), all(value == max(top.values()) for value, top in zip(values, tops))


def pair(server, context, text):
    """Token ids as lm-eval splits them: spaces at the end of a context belong to the text."""
    rest = len(context) - len(context.rstrip())
    if rest > 0:
        context, text = context[:-rest], context[-rest:] + text
    whole = server.tokenize(context + text, special=False)
    n = len(server.tokenize(context, special=False))
    return whole[:n], whole[n:]


def test_choices_have_the_likelihoods_of_single_requests(server, run):
    scores, samples = run
    assert scores["story_choice"]["acc,none"] == 1
    assert len(samples["story_choice"]) == 7
    for sample in samples["story_choice"]:
        for request, ((value, is_greedy),) in zip(sample["arguments"].values(), sample["resps"]):
            got = log_likelihood(server, *pair(server, request["arg_0"], request["arg_1"]))
            assert math.isclose(float(value), got[0], abs_tol=1e-4)
            assert is_greedy == str(got[1])


def test_what_is_generated_is_what_a_plain_request_gives(server, run):
    scores, samples = run
    assert len(samples["story_words"]) == 3
    hits = 0
    for sample in samples["story_words"]:
        doc, ((text,),) = sample["doc"], sample["resps"]
        wanted = server.text(server.tokenize(doc["start"], special=False), max_tokens=24, stop=[".", "\n"])
        assert text == wanted and len(text) > 10
        hits += text == doc["next"]
    assert math.isclose(scores["story_words"]["exact_match,none"], hits / 3)


def test_what_is_generated_in_a_chat_is_what_a_plain_chat_gives(server, tmp_path):
    arguments = f"base_url={server.url}/v1/chat/completions,model=teller,max_length=2048"
    _, samples = run_tasks(["--model", "local-chat-completions", "--apply_chat_template", "--model_args",
                            arguments, "--tasks", "story_words", "--include_path", TASKS], tmp_path)
    assert len(samples["story_words"]) == 3
    for sample in samples["story_words"]:
        ((text,),) = sample["resps"]
        wanted = server.chat(sample["doc"]["start"], max_tokens=24, stop=[".", "\n"])
        assert text == wanted["choices"][0]["message"]["content"] and len(text) > 10


def test_whole_texts_are_scored_from_the_first_byte(server, run):
    scores, samples = run
    total, n_bytes = 0, 0
    for sample in samples["story_text"]:
        text = f"{sample['doc']['start']} {sample['doc']['good']}"
        total += log_likelihood(server, [1], server.tokenize(text, special=False))[0]
        n_bytes += len(text.encode())
    wanted = -total / n_bytes / math.log(2)
    assert math.isclose(scores["story_text"]["bits_per_byte,none"], wanted, rel_tol=1e-5)
    assert 0.3 < wanted < 2.5
