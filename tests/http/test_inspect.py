"""`pikv inspect`: what a folder holds, and what stands between it and serving."""

import json
import shutil
import struct

import pytest

from server import ROOT, run_command

MODEL = ROOT / "models/storyteller"
FIXTURES = sorted(path.parent for path in (ROOT / "tests/golden").glob("*/config.json"))


def inspect(model, *words):
    code, out, err = run_command("inspect", model, *words, "--json")
    return code, json.loads(out), err


def header_of(path):
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + size]), 8 + size


@pytest.fixture
def copy(tmp_path):
    """A folder with the smallest model's files, to be spoilt."""
    folder = tmp_path / "model"
    shutil.copytree(ROOT / "tests/golden/mixtral-base-f32", folder)
    return folder


def test_the_default_model_is_told_whole():
    code, report, err = inspect(MODEL, "--check")
    assert (code, err) == (0, "")
    config = json.loads((MODEL / "config.json").read_text())
    assert report["family"]["model_type"] == config["model_type"]
    assert report["shape"]["layers"] == config["num_hidden_layers"]
    assert report["shape"]["experts"] == config["num_local_experts"]
    assert report["context"]["tokens"] == config["max_position_embeddings"]
    assert report["tokenizer"]["tokens"] <= config["vocab_size"]
    assert report["check"] == {"bad": [], "bad_tensors": 0, "nan": 0, "inf": 0}
    memory = report["memory"]
    assert memory["total_bytes"] == memory["weights_bytes"] + memory["kv_bytes"]
    assert memory["weights_bytes"] == report["weights"]["bytes"]


def test_people_read_the_same_as_tools():
    _, report, _ = inspect(MODEL)
    code, out, _ = run_command("inspect", MODEL)
    assert code == 0
    words = [line.split() for line in out.splitlines()]
    assert ["layers", str(report["shape"]["layers"])] in words
    assert any(line[:2] == ["total_bytes", str(report["memory"]["total_bytes"])] for line in words)


def test_memory_is_what_plan_says():
    _, report, _ = inspect(MODEL, "--context", 512, "--batch", 3, "--kv-compression", "int4")
    code, out, _ = run_command("plan", MODEL, "--context", 512, "--batch", 3, "--kv-compression", "int4", "--json")
    assert code == 0
    memory = json.loads(out)["memory"]
    assert report["memory"]["total_bytes"] == memory["total_bytes"]
    assert report["memory"]["kv_bytes"] == memory["kv_bytes"]


@pytest.mark.parametrize("folder", FIXTURES, ids=lambda folder: folder.name)
def test_parameters_are_those_of_the_files(folder):
    code, report, err = inspect(folder, "--check")
    assert report["check"]["bad_tensors"] == 0
    assert "fault" not in report["family"] and "fault" not in report["weights"], err
    if "fault" in report["tokenizer"]:  # the fixtures are token ids alone
        assert code == 1 and "tokenizer" in err
    assert 0 < report["parameters"]["active"] <= report["parameters"]["total"]
    if (folder / "config.json").read_text().find("quantization_config") >= 0:
        return  # codes and scales are no parameters one by one
    n_params = 0
    for shard in folder.glob("model*.safetensors"):
        header, _ = header_of(shard)
        for name, about in header.items():
            n = 1
            for size in about.get("shape", []):
                n *= size
            n_params += n if name != "__metadata__" else 0
    assert report["parameters"]["total"] == n_params


def test_nan_and_inf_are_counted_and_placed(copy):
    path = copy / "model.safetensors"
    header, start = header_of(path)
    name = "model.norm.weight"
    begin = start + header[name]["data_offsets"][0]
    data = bytearray(path.read_bytes())
    data[begin + 8 : begin + 16] = struct.pack("<ff", float("nan"), float("-inf"))
    path.write_bytes(data)
    code, report, err = inspect(copy, "--check")
    assert code == 1
    assert report["check"]["bad"] == [{"tensor": name, "nan": 1, "inf": 1, "first_at": 2}]
    assert (report["check"]["nan"], report["check"]["inf"]) == (1, 1)
    code, report, _ = inspect(copy)  # not asked, not read
    assert "check" not in report


def test_an_unknown_family_still_tells_what_is_there(copy):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "model_type": "mamba"}))
    code, report, err = inspect(copy, "--check")
    assert code == 1
    assert err == 'pikv inspect: config.json: model_type: "mamba" is not supported\n'
    assert report["family"] == {"fault": 'config.json: model_type: "mamba" is not supported'}
    assert report["weights"]["tensors"] > 0 and report["check"]["bad_tensors"] == 0
    assert "memory" not in report


def test_a_config_alone_is_enough_for_shape_and_memory(copy):
    (copy / "model.safetensors").unlink()
    code, report, err = inspect(copy, "--check")
    assert code == 1 and "model.safetensors" in err
    assert report["memory"]["total_bytes"] > 0
    assert "fault" in report["weights"] and "check" not in report


def test_a_missing_tensor_is_named(copy):
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes().replace(b"model.norm.weight", b"model.form.weight"))
    code, report, err = inspect(copy)
    assert code == 1
    assert "model.norm.weight" in report["weights"]["fault"]
    assert "model.norm.weight" in err


def test_a_mistake_in_the_command_is_told():
    code, out, err = run_command("inspect", MODEL, "--chek")
    assert (code, out) == (2, "") and "chek" in err
    code, out, _ = run_command("inspect", "--help")
    assert code == 0 and "--check" in out
