"""docs/models.md says what the program loads and what the tests compare: tools/models_doc.py made it."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import models_doc  # noqa: E402

BINARY = os.environ.get("PIKV_BIN", str(ROOT / "build/dev/pikv"))


def test_the_file_is_what_program_and_tests_say():
    done = subprocess.run([ROOT / "tools/models_doc.py", BINARY, "--check"], cwd=ROOT, timeout=280,
                          capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_every_family_of_the_source_is_told_of():
    assert set(models_doc.families_of_source()) == set(models_doc.FAMILIES)


def test_a_family_with_too_few_models_is_an_error(monkeypatch):
    monkeypatch.setattr(models_doc, "models_of", lambda binary: {"mixtral": ["|\n"] * 3})
    with pytest.raises(SystemExit, match="olmoe: 0 models in tests/golden are fewer than 3"):
        models_doc.page(BINARY)


def test_what_is_not_refused_is_an_error(monkeypatch):
    monkeypatch.setattr(models_doc, "REFUSED", [("use_cache", True)])
    with pytest.raises(SystemExit, match="use_cache: True is not refused"):
        models_doc.refusals(BINARY)
