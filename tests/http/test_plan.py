"""`pikv plan`: its two reports, its errors, and that it says beforehand what the other commands measure."""

import json

import pytest

from server import ROOT, run_command

MODEL = ROOT / "models/storyteller"
STORY = ("The old king looked at the sea and said that it was dark. His daughter went to the river and found it "
         "cold. She thought of the hill and the quiet day, and of the white house by the road. ")


def plan(*words, model=MODEL):
    code, out, err = run_command("plan", model, *words, "--json")
    assert code == 0, err
    return json.loads(out)


@pytest.fixture
def shape(tmp_path):
    """A folder with a config.json alone, of a shape much larger than this machine."""
    config = {**json.loads((MODEL / "config.json").read_text()), "hidden_size": 4096,
              "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
              "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 32000,
              "max_position_embeddings": 32768}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


# ---- against what is measured ----


def test_the_planned_bytes_are_those_that_eval_counts(tmp_path):
    text, report = tmp_path / "story.txt", tmp_path / "eval.json"
    text.write_text(STORY * 20)
    size = 512
    planned = plan("--context", size)
    memory = planned["memory"]
    code, _, err = run_command("eval", MODEL, "--text", text, "--window", size, "--max-windows", 1,
                               "--batch", 1, "--json", report,
                               "--kv-cache-memory-bytes", memory["kv_page_bytes"], seconds=120)
    assert code == 0, err
    row = json.loads(report.read_text())[0]
    # Slabs, tables with descriptors, ring and staging, of BOS and all tokens but the last.
    assert row["resident_bytes_per_token"] * size == pytest.approx(memory["kv_bytes"], abs=0.01)
    # Half of them is the prompt; the steps behind it read one entry more each.
    first = plan("--context", size // 2)["step"]["kv_bytes_per_token"]
    last = plan("--context", size - 1)["step"]["kv_bytes_per_token"]
    assert row["read_bytes_per_step"] == pytest.approx((first + last) / 2, abs=0.01)


def test_the_planned_step_is_the_one_that_bench_counts():
    code, out, err = run_command("bench", MODEL, "--batches", 1, "--prompt-tokens", 16, "--rounds", 1,
                                 "--context-tokens", 64, "--steps", 1, "--probe-bytes", "1Mi",
                                 "--json", seconds=120)
    assert code == 0, err
    decode = [json.loads(line) for line in out.splitlines()][-1]
    step = plan("--context", 64)["step"]
    assert decode["weight_bytes_per_step"] == step["weight_bytes"] == step["weight_bytes_most"]
    assert decode["kv_bytes_per_step"] == step["kv_bytes"]
    assert decode["experts_per_layer"] == step["experts_read"]


def test_the_weights_are_those_of_the_file():
    memory = plan()["memory"]
    with (MODEL / "model.safetensors").open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    tensors = {name: t["data_offsets"] for name, t in header.items() if name != "__metadata__"}
    experts = sum(end - begin for name, (begin, end) in tensors.items() if ".experts." in name)
    assert memory["weights_experts_bytes"] == experts
    assert memory["weights_replicated_bytes"] == sum(e - b for b, e in tensors.values()) - experts


# ---- reports ----


def test_a_shape_is_planned_without_its_weights(shape):
    report = plan("--context", 131072, "--ranks", 8, model=shape)
    assert report["memory"]["weights_experts_bytes"] == 32 * 3 * 4096 * 14336 * 2
    assert report["memory"]["kv_page_bytes"] == 2 << 30
    assert report["collectives"]["all_gather_bytes_per_token_and_layer"] == 4 * 32 * 129 * 7
    assert any("max_position_embeddings" in note for note in report["notes"])
    speed = report["speed"]
    assert speed["predicted_tokens_per_second"] < speed["bound_tokens_per_second"]
    paper = {c["key"]: c for c in report["paper"]}
    assert paper["best_page"]["paper"] == 32
    assert paper["tokens_of_a_rank"]["corrected"] == 16384
    assert all(c["paper_formula"] and c["formula"] and c["difference"].endswith(".")
               for c in paper.values())


def test_people_read_every_number_that_tools_do(shape):
    words = ("--context", 40000, "--ranks", 3, "--batch", 5, "--kv-compression", "int4")
    report = plan(*words, model=shape)
    code, out, err = run_command("plan", shape, *words)
    assert code == 0, err
    shown = set(out.split())
    for group in ("settings", "memory", "collectives"):
        for key, value in report[group].items():
            assert not isinstance(value, int) or str(value) in shown, key
    for note in report["notes"]:
        assert note in out
    for contrast in report["paper"]:
        assert contrast["paper_formula"] in out and contrast["difference"] in out


def test_faster_memory_and_links_are_faster(shape):
    slow = plan("--ranks", 4, "--bandwidth", "1e12", model=shape)["speed"]
    fast = plan("--ranks", 4, "--bandwidth", "2e12", model=shape)["speed"]
    assert fast["bound_tokens_per_second"] == pytest.approx(2 * slow["bound_tokens_per_second"])
    assert fast["predicted_tokens_per_second"] < 2 * slow["predicted_tokens_per_second"]
    calls = plan("--ranks", 4, "--link-latency", 1, "--link-bandwidth", "1e18", model=shape)
    assert calls["collectives"]["seconds_per_step"] == pytest.approx(64, abs=1e-6)
    assert calls["speed"]["predicted_tokens_per_second"] == pytest.approx(1 / 64, rel=1e-3)


def test_what_a_number_is_not_exact_for_is_said(shape):
    def notes(*words):
        return " ".join(plan(*words, model=shape)["notes"])

    assert "evicted" in notes("--kv-scheduling", "h2o", "--kv-budget", 0.5)
    assert "beside the entries is not counted" in notes("--kv-scheduling", "h2o", "--kv-budget", 0.5)
    assert "kv-routing: certified" in notes("--kv-routing", "certified")
    assert "placed one by one" in notes("--kv-placement", "expert", "--ranks", 2)
    assert "less than its pages need" in notes("--kv-cache-memory-bytes", "1Mi")
    assert "Replicas" in notes("--num-redundant-experts", 2, "--ranks", 2)
    assert len(plan(model=shape)["notes"]) == 2


def test_a_gpu_is_planned_where_it_is_asked_for(shape):
    assert "device" not in plan(model=shape)
    words = ("--device", "cuda", "--batch", 8, "--kv-routing", "topk", "--kv-routing-k", 0.2)
    planned = plan(*words, model=shape)
    device, memory = planned["device"], planned["memory"]
    parts = ("weight_bytes", "scratch_bytes", "kv_pool_bytes", "kv_ring_bytes", "kv_staging_bytes", "kv_list_bytes",
             "kv_box_bytes", "kv_work_bytes")
    assert device["total_bytes"] == sum(device[part] for part in parts)
    weights = memory["weights_replicated_bytes"] + memory["weights_experts_bytes"]
    assert weights <= device["weight_bytes"] <= weights * 1.001
    assert device["kv_pool_bytes"] == memory["kv_page_bytes"] + memory["kv_section_bytes"]
    assert device["host_kv_bytes"] == memory["kv_bytes"]
    assert device["kv_box_bytes"] > 0 and "allowed_bytes" not in device
    assert not any("does not fit" in note for note in planned["notes"])


def test_what_a_gpu_has_no_room_for_is_said_as_the_server_would(shape):
    planned = plan("--device", "cuda", "--gpu-memory-bytes", "1Gi", "--gpu-memory-utilization", 0.5, model=shape)
    wanted = planned["device"]["weight_bytes"]
    assert planned["device"]["allowed_bytes"] == 2 ** 29
    assert f"cuda: {wanted} more bytes do not fit: 0 of {2 ** 29} allowed are in use" in " ".join(planned["notes"])
    notes = " ".join(plan("--device", "cuda", "--kv-routing", "hierarchical", model=shape)["notes"])
    assert "attention is the host's" in notes


# ---- mistakes ----


@pytest.mark.parametrize("words, message", [
    (("--ranks", 65), "ranks: 65 is outside [1, 64]"),
    (("--ranks", 0), "ranks: 0 is outside [1, 64]"),
    (("--batch", 0), "batch: 0 is outside [1, 4096]"),
    (("--context", 16777217), "context: 16777217 is outside [0, 16777216]"),
    (("--bandwidth", 0), "bandwidth: 0 is outside"),
    (("--bandwidth", "nan"), "bandwidth"),
    (("--link-latency", -1), "link-latency"),
    (("--kv-routing", "nix"), "kv-routing: 'nix' is unknown; known are:"),
    (("--kv-placement", "hash", "--ranks", 3), "kv-shards: 3"),
    (("--kv-sink", 33), "kv-sink: 33 is more than kv-page-tokens, 32"),
    (("--num-redundant-experts", 9, "--ranks", 2), "num-redundant-experts: 9 is more than 8"),
    (("--device", "tpu"), "device"),
    (("--gpu-memory-bytes", "80Gi"), "gpu-memory-bytes: there is no GPU"),
    (("--speed", 1), "speed"),
])
def test_mistakes_are_named(words, message):
    code, out, err = run_command("plan", MODEL, *words)
    assert (code, out) == (2, "")
    assert err.startswith("pikv plan: ") and message in err and err.count("\n") == 1


def test_models_that_cannot_be_planned(tmp_path):
    code, out, err = run_command("plan", tmp_path)
    assert (code, out) == (1, "") and "config.json is not there" in err
    (tmp_path / "config.json").write_text("{}")
    code, out, err = run_command("plan", tmp_path)
    assert (code, out) == (1, "") and "model_type is missing" in err


def test_more_pages_than_a_pool_can_number_are_refused(shape):
    code, out, err = run_command("plan", shape, "--context", "16777216", "--batch", 4096)
    assert (code, out) == (1, "") and "take more ranks" in err
