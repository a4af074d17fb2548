"""docker/Dockerfile as hadolint reads it, and against the repository. docker/test.sh builds and runs it."""

import json
import pathlib
import re
import subprocess
import sys

import pytest

from dockerfile import Dockerfile, Ignore, fits

ROOT = pathlib.Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docker/Dockerfile").read_text()
FILE = Dockerfile(TEXT)
IGNORE = Ignore((ROOT / ".dockerignore").read_text())
TARGETS = ("cpu", "cuda")
TRACKED = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, text=True,
                         capture_output=True, check=True).stdout.splitlines()


def hadolint(text):
    """What it finds, as its rules' names."""
    program = pathlib.Path(sys.executable).parent / "hadolint"
    done = subprocess.run([program, "--no-color", "--format", "json", "-"], input=text, capture_output=True, text=True,
                          check=False)
    return [finding["code"] for finding in json.loads(done.stdout)]


def test_hadolint_finds_nothing():
    assert hadolint(TEXT) == []
    assert "DL3025" in hadolint(TEXT.replace('ENTRYPOINT ["pikv", "serve"]', "ENTRYPOINT pikv serve"))
    assert "DL3008" in hadolint(TEXT.replace("# hadolint ignore=DL3008", "#"))


def all_of(word):
    return [i for stage in FILE.stages for i in stage.all(word)]


def test_the_stages_are_those_that_are_promised():
    assert FILE.names() == ["build-cpu", "cpu", "build-cuda", "cuda"]
    assert FILE.stages[-1].base == "cpu" and not FILE.stages[-1].instructions, "without --target it is cpu"
    assert FILE.stage("cpu").base == FILE.stage("build-cpu").base
    assert re.fullmatch(r"debian:bookworm-\d{8}-slim", FILE.stage("cpu").base)
    build, run = (re.fullmatch(r"nvidia/cuda:(\d+\.\d+\.\d+)-(devel|base)-(ubuntu[\d.]+)", FILE.stage(name).base)
                  for name in ("build-cuda", "cuda"))
    assert (build.group(1), build.group(3)) == (run.group(1), run.group(3)), "two versions of CUDA or of Ubuntu"
    assert (build.group(2), run.group(2)) == ("devel", "base")


def test_bases_are_pinned_and_from_nowhere_special():
    for stage in FILE.stages:
        if stage.base in FILE.names():
            continue
        name, _, tag = stage.base.partition(":")
        assert re.search(r"\d", tag) and "latest" not in tag, stage.base
        assert "." not in name.split("/")[0], f"{stage.base} names a registry"


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_runs_the_server_as_nobody(target):
    stage = FILE.stage(target)
    assert stage.last("ENTRYPOINT").exec_form() == ["pikv", "serve"]
    user = re.fullmatch(r"([1-9]\d*):([1-9]\d*)", stage.last("USER").text)
    assert user, "USER is to be a number that is not 0"
    last_user = max(i.line for i in stage.all("USER"))
    assert not [i for i in stage.all("RUN") + stage.all("COPY") if i.line > last_user]
    assert stage.pairs("ENV")["PIKV_HOST"] == "0.0.0.0"
    assert stage.last("STOPSIGNAL").text == "SIGTERM"
    assert stage.last("WORKDIR").text.startswith("/") and not stage.all("VOLUME")
    check = stage.last("HEALTHCHECK")
    assert check.exec_form() == ["pikv", "healthcheck", "--pid", "1"]
    assert {"interval", "timeout", "start-period", "retries"} <= set(check.flags())


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_says_what_it_is(target):
    labels = FILE.stage(target).pairs("LABEL")
    assert all(key.startswith("org.opencontainers.image.") for key in labels)
    version = re.search(r"project\(pikv VERSION ([\d.]+)", (ROOT / "CMakeLists.txt").read_text()).group(1)
    assert labels["org.opencontainers.image.version"] == version
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert not {"authors", "vendor", "url", "source"} & {key.rpartition(".")[2] for key in labels}


def test_the_images_differ_only_where_they_must():
    cpu, cuda = FILE.stage("cpu"), FILE.stage("cuda")
    for word in ("ENTRYPOINT", "USER", "HEALTHCHECK", "STOPSIGNAL", "WORKDIR", "EXPOSE"):
        assert cpu.last(word).text == cuda.last(word).text, word
    more = {key: value for key, value in cuda.pairs("ENV").items() if key not in cpu.pairs("ENV")}
    assert more == {"PIKV_DEVICE": "cuda", "NVIDIA_VISIBLE_DEVICES": "all",
                    "NVIDIA_DRIVER_CAPABILITIES": "compute,utility"}
    build_cpu, build_cuda = (FILE.stage(f"build-{name}") for name in TARGETS)
    assert [i.text for i in build_cpu.all("COPY")] == [i.text for i in build_cuda.all("COPY")]


def test_layers_hold_nothing_that_only_their_making_needed():
    for run in all_of("RUN"):
        assert not re.search(r"\b(sudo|ssh|apt|telnet|vi)\b ", run.text), run
        assert not re.search(r"\bcurl\b|\bwget\b", run.text), "nothing but packages is fetched"
        assert "|" not in run.text.replace("||", ""), "a pipe hides a failure"
        for command in re.findall(r"apt-get install.*?(?=&&|$)", run.text):
            assert "-y" in command and "--no-install-recommends" in command, run
            packages = [word for word in command.split()[2:] if not word.startswith("-")]
            assert packages == sorted(packages), "packages are sorted"
            assert "DL3008" in run.ignored, "unpinned versions are to be said"
        if "apt-get install" in run.text:
            assert "apt-get update" in run.text, "an old list of packages"
            assert "rm -rf /var/lib/apt/lists/*" in run.text, "the list of packages stays in the layer"
        assert not re.search(r"apt-get (dist-)?upgrade|chmod 777|cd /", run.text), run
    assert not all_of("ADD") and not all_of("MAINTAINER") and not all_of("ONBUILD")
    for stage in FILE.stages:
        for word in ("CMD", "ENTRYPOINT", "HEALTHCHECK"):
            assert len(stage.all(word)) <= 1
            assert all(i.exec_form() for i in stage.all(word)), f"{word} wants a shell"
    assert not re.search(r"(?i)password|token|secret", TEXT)


def test_the_final_stages_hold_no_compiler():
    for target in TARGETS:
        text = " ".join(i.text for i in FILE.stage(target).instructions)
        assert not re.search(r"-dev\b|\bgcc\b|\bg\+\+|cmake|ninja|setup\.sh|nccl|cublas", text)
        assert [i.flags()["from"] for i in FILE.stage(target).all("COPY") if "from" in i.flags()] == \
               [f"build-{target}"]


def context_of(copy):
    *sources, _ = copy.words()
    return [] if "from" in copy.flags() else sources


def test_every_source_of_a_copy_exists_and_is_in_the_context():
    copied = {source for copy in all_of("COPY") for source in context_of(copy)}
    assert copied
    for source in copied:
        files = [path for path in TRACKED if path == source or path.startswith(source + "/")]
        assert files, f"{source} is not in the repository"
        assert [path for path in files if not IGNORE.leaves_out(path)], f"{source} is ignored"
    for path in TRACKED:
        is_copied = any(path == source or path.startswith(source + "/") for source in copied)
        assert is_copied or IGNORE.leaves_out(path), f"{path} is sent to the builder for nothing"
    needed = re.findall(r"^add_subdirectory\((\w+)\)", (ROOT / "CMakeLists.txt").read_text(), re.M)
    assert set(needed) <= copied and len(needed) > 5
    for path in TRACKED:
        if path.split("/")[0] in copied and path.endswith(("CMakeLists.txt", ".cmake")):
            for used in re.findall(r"\$\{CMAKE_SOURCE_DIR\}/([\w./-]+)", (ROOT / path).read_text()):
                assert used.split("/")[0] in copied, f"{path} wants {used}"


def test_what_is_not_of_the_repository_stays_outside():
    for path in (".git/config", ".venv/bin/python", "build/release/pikv", "keys", ".env", "models/other/x",
                 "kernels/__pycache__/a.pyc", "models/storyteller/kv_bases.safetensors", "tests/requirements.txt",
                 "tools/build.sh"):
        assert IGNORE.leaves_out(path), path
    for path in ("service/main.c", "models/storyteller/model.safetensors", "tools/setup.sh", "CMakeLists.txt"):
        assert not IGNORE.leaves_out(path), path


def test_patterns_are_read_as_docker_reads_them():
    for pattern, path, does in (("*", "a", True), ("*", "a/b", False), ("**/*.pyc", "a.pyc", True),
                                ("**/*.pyc", "a/b/c.pyc", True), ("a/*/c", "a/b/c", True), ("a/*/c", "a/b/d/c", False),
                                ("models/**/*.svg", "models/a/b.svg", True), ("a.c", "abc", False)):
        assert fits(pattern, path) is does, (pattern, path)


def test_presets_that_are_built_run_on_any_machine_of_their_kind():
    presets = {p["name"]: p for p in json.loads((ROOT / "CMakePresets.json").read_text())["configurePresets"]}
    for target, preset in (("cpu", "release"), ("cuda", "cuda")):
        text = " ".join(i.text for i in FILE.stage(f"build-{target}").all("RUN"))
        assert f"--preset {preset} " in text
        assert presets[preset]["cacheVariables"]["CMAKE_BUILD_TYPE"] == "Release"
    for path in TRACKED:
        if path.endswith(("CMakeLists.txt", ".cmake", "CMakePresets.json")):
            assert not re.search(r"-m(arch|tune|cpu)\b", (ROOT / path).read_text()), path
