"""docker/compose.yaml: parsed, without a daemon. Files that it mounts exist, and its parts agree with each other."""

import re

import pytest
import yaml

import observe

DOCKER = observe.ROOT / "docker"
VARIABLE = re.compile(r"\$\{\w+:-([^}]*)\}")


def compose(name="compose.yaml"):
    """The file with its variables at their defaults."""
    return yaml.safe_load(VARIABLE.sub(r"\1", (DOCKER / name).read_text()))


def service(name):
    return compose()["services"][name]


def mounts(name):
    """{target: (source, mode)}"""
    parts = [volume.split(":") for volume in service(name).get("volumes", [])]
    return {p[1]: (p[0], p[2] if len(p) > 2 else "rw") for p in parts}


def test_it_has_a_server_prometheus_and_grafana():
    assert set(compose()["services"]) == {"pikv", "prometheus", "grafana"}


def test_mounted_files_exist_and_cannot_be_written():
    declared = set(compose()["volumes"])
    used = set()
    for name in compose()["services"]:
        for target, (source, mode) in mounts(name).items():
            if source.startswith("."):
                assert (DOCKER / source).resolve().exists(), source
                assert mode == "ro", target
            else:
                used.add(source)
    assert used == declared


def test_images_are_pinned():
    for name, spec in compose()["services"].items():
        image, _, tag = spec["image"].rpartition(":")
        assert image, name
        if name != "pikv":  # which is built here
            assert re.fullmatch(r"v?\d+\.\d+\.\d+", tag), spec["image"]


def test_the_server_is_built_from_the_dockerfile():
    build = service("pikv")["build"]
    assert service("pikv")["image"] == "pikv:" + build["target"] == "pikv:cpu"
    assert (DOCKER / build["context"]).resolve() == observe.ROOT
    stages = re.findall(r"^FROM .* AS (\S+)$", (observe.ROOT / build["dockerfile"]).read_text(), re.M)
    assert {"cpu", "cuda"} <= set(stages)


def test_containers_can_do_little():
    for name, spec in compose()["services"].items():
        assert spec["read_only"] is True and spec["cap_drop"] == ["ALL"], name
        assert spec["security_opt"] == ["no-new-privileges:true"], name
        assert spec["tmpfs"] == ["/tmp"] and spec["restart"] == "unless-stopped", name
        assert "privileged" not in spec and "network_mode" not in spec, name
    user, group = service("pikv")["user"].split(":")
    assert int(user) > 0 and int(group) > 0


def test_ports_are_published_on_this_machine_only():
    published = {}
    for name, spec in compose()["services"].items():
        for port in spec["ports"]:
            address, outside, inside = port.split(":")
            assert address == "127.0.0.1" and outside == inside, port
            published[int(outside)] = name
    assert published == {8000: "pikv", 9090: "prometheus", 3000: "grafana"}


def settings():
    return service("pikv")["environment"]


def test_settings_are_ones_that_the_server_knows():
    from server import run_command
    environment = {key: value for key, value in settings().items() if key.startswith("PIKV_")}
    assert environment == settings() and all(isinstance(v, str) for v in environment.values())
    code, out, err = run_command("serve", "--print-config", env=environment)
    assert code == 0, err
    printed = yaml.safe_load(out)
    for key, value in environment.items():
        assert str(printed[key.removeprefix("PIKV_").lower().replace("_", "-")]) == value, key
    code, _, err = run_command("serve", "--print-config", env={**environment, "PIKV_PROT": "1"})
    assert code == 2 and '"prot"' in err  # a mistake would have been seen


def test_the_model_is_in_what_is_mounted():
    source, mode = mounts("pikv")["/models"]
    assert mode == "ro"
    model = settings()["PIKV_MODEL"]
    assert model.startswith("/models/")
    assert (DOCKER / source / model.removeprefix("/models/") / "config.json").exists()


def test_prometheus_scrapes_the_monitor_of_the_server():
    config = observe.load(observe.PROMETHEUS / "prometheus.yml")
    job, = config["scrape_configs"]
    host, port = job["static_configs"][0]["targets"][0].split(":")
    assert host in compose()["services"] and port == settings()["PIKV_MONITOR_PORT"]
    assert settings()["PIKV_HOST"] == "0.0.0.0"
    assert job["job_name"] == "pikv"
    assert all('job="pikv"' in rule["expr"] for rule in observe.alerts() if "process_" in rule["expr"])


def test_prometheus_reads_the_mounted_configuration():
    (folder, (source, _)), = [m for m in mounts("prometheus").items() if m[1][0].startswith(".")]
    words = dict(word.lstrip("-").split("=", 1) for word in service("prometheus")["command"])
    assert words["config.file"] == f"{folder}/prometheus.yml"
    assert (DOCKER / source).resolve() == observe.PROMETHEUS
    assert mounts("prometheus")[words["storage.tsdb.path"]] == ("prometheus", "rw")


def test_grafana_finds_prometheus_and_the_dashboard():
    found = mounts("grafana")
    assert (DOCKER / found["/etc/grafana/provisioning"][0]).resolve() == observe.GRAFANA / "provisioning"
    source, = observe.load(observe.GRAFANA / "provisioning/datasources/prometheus.yaml")["datasources"]
    host, port = re.fullmatch(r"http://(\w+):(\d+)", source["url"]).groups()
    assert host in compose()["services"]
    assert any(p.endswith(":" + port) for p in service(host)["ports"])
    provider, = observe.load(observe.GRAFANA / "provisioning/dashboards/pikv.yaml")["providers"]
    path = provider["options"]["path"] + "/pikv.json"
    assert (DOCKER / found[path][0]).resolve() == observe.GRAFANA / "pikv.json"
    assert service("grafana")["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] == path


def test_nobody_is_an_administrator_of_grafana_by_a_known_password():
    environment = service("grafana")["environment"]
    assert environment["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true"
    assert environment["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
    assert environment["GF_AUTH_DISABLE_LOGIN_FORM"] == "true"


def test_the_health_check_asks_the_program_with_the_same_settings():
    check = service("pikv")["healthcheck"]
    assert check["test"] == ["CMD", "pikv", "healthcheck"]
    assert "command" not in service("pikv")  # words the health check would not see
    assert int(service("pikv")["stop_grace_period"].removesuffix("s")) > int(settings()["PIKV_SHUTDOWN_TIMEOUT"])


@pytest.fixture(name="cuda")
def cuda_service():
    return compose("compose.cuda.yaml")["services"]


def test_the_second_file_puts_the_same_server_on_a_gpu(cuda):
    assert set(cuda) == {"pikv"}
    spec = cuda["pikv"]
    assert spec["image"] == "pikv:" + spec["build"]["target"] == "pikv:cuda"
    device, = spec["deploy"]["resources"]["reservations"]["devices"]
    assert device["driver"] == "nvidia" and device["capabilities"] == ["gpu"]
    assert spec["environment"] == {"PIKV_DEVICE": "cuda"}
