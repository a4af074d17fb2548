"""docker/kubernetes against the published schemas, the restricted pod security standard, and the binary itself."""

import copy
import pathlib
import re

import kubernetes_validate
import pytest
import yaml

from dockerfile import Dockerfile
from server import ROOT, Server, run_command

FOLDER = ROOT / "docker/kubernetes"
VERSIONS = ("1.29", "1.31", "1.34", kubernetes_validate.latest_version())
DOCUMENTS = {path.name: list(yaml.safe_load_all(path.read_text())) for path in sorted(FOLDER.glob("*.yaml"))}
OWN = [document for documents in DOCUMENTS.values() for document in documents
       if re.fullmatch(r"v1|apps/v1|policy/v1", document["apiVersion"])]
IMAGE = Dockerfile((ROOT / "docker/Dockerfile").read_text()).stage("cpu")


def the(kind, name="pikv"):
    found = [d for documents in DOCUMENTS.values() for d in documents
             if d["kind"] == kind and d.get("metadata", {}).get("name") == name]
    assert len(found) == 1, f"{kind} {name}"
    return found[0]


GROUP = the("LeaderWorkerSet", "pikv-group")["spec"]
TEMPLATES = {"server": the("Deployment")["spec"]["template"],
             "leader": GROUP["leaderWorkerTemplate"]["leaderTemplate"],
             "worker": GROUP["leaderWorkerTemplate"]["workerTemplate"]}
with_templates = pytest.mark.parametrize("role", TEMPLATES)
with_http = pytest.mark.parametrize("role", ["server", "leader"])


def container_of(role):
    containers = TEMPLATES[role]["spec"]["containers"]
    assert len(containers) == 1
    return containers[0]


@pytest.fixture(scope="module")
def settings():
    """The file of the ConfigMap, as the binary understands it."""
    return yaml.safe_load(the("ConfigMap")["data"]["pikv.yaml"])


# ---- schemas ----


@pytest.mark.parametrize("version", VERSIONS)
def test_documents_follow_the_schema_of_kubernetes(version):
    assert len(OWN) >= 5
    for document in OWN:
        kubernetes_validate.validate(document, version, strict=True)
    for role, template in TEMPLATES.items():  # the same schema holds inside a LeaderWorkerSet
        kubernetes_validate.validate({"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": role},
                                      "template": template}, version, strict=True)


def test_the_schema_would_notice():
    broken = copy.deepcopy(the("Deployment"))
    broken["spec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, VERSIONS[-1], strict=True)


def test_the_service_monitor_has_the_fields_of_its_definition():
    monitor = the("ServiceMonitor")
    assert monitor["apiVersion"] == "monitoring.coreos.com/v1"
    assert set(monitor["spec"]) == {"selector", "endpoints"}
    for endpoint in monitor["spec"]["endpoints"]:
        assert set(endpoint) == {"port", "path", "interval", "scrapeTimeout"}
        assert seconds(endpoint["scrapeTimeout"]) < seconds(endpoint["interval"])


def seconds(text):
    return int(re.fullmatch(r"(\d+)s", text).group(1))


def test_the_leader_worker_set_has_the_fields_of_its_definition():
    document = the("LeaderWorkerSet", "pikv-group")
    assert document["apiVersion"] == "leaderworkerset.x-k8s.io/v1"
    assert set(GROUP) == {"replicas", "startupPolicy", "rolloutStrategy", "leaderWorkerTemplate"}
    assert GROUP["startupPolicy"] in ("LeaderCreated", "LeaderReady")
    assert GROUP["startupPolicy"] == "LeaderCreated", "the leader is ready only when its workers have come"
    assert GROUP["rolloutStrategy"]["type"] == "RollingUpdate"
    assert set(GROUP["rolloutStrategy"]["rollingUpdateConfiguration"]) <= {"maxUnavailable", "maxSurge", "partition"}
    template = GROUP["leaderWorkerTemplate"]
    assert set(template) == {"size", "restartPolicy", "leaderTemplate", "workerTemplate"}
    assert template["size"] >= 2 and template["restartPolicy"] == "RecreateGroupOnPodRestart"


def test_kustomization_takes_what_kubernetes_knows_and_nothing_else():
    listed = DOCUMENTS["kustomization.yaml"][0]["resources"]
    assert sorted(listed) == sorted(name for name, documents in DOCUMENTS.items()
                                    if all(d in OWN for d in documents))


# ---- security ----


@with_templates
def test_pods_are_restricted(role):
    spec = TEMPLATES[role]["spec"]
    user = IMAGE.last("USER").text.split(":")
    assert spec["securityContext"] == {
        "runAsNonRoot": True, "runAsUser": int(user[0]), "runAsGroup": int(user[1]), "fsGroup": int(user[1]),
        "seccompProfile": {"type": "RuntimeDefault"}}
    assert container_of(role)["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    assert spec["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
    assert all(set(volume) <= {"name", "configMap", "persistentVolumeClaim"} for volume in spec["volumes"])
    assert all(mount["readOnly"] for mount in container_of(role)["volumeMounts"])
    assert "command" not in container_of(role), "the entry point is the image's"


@with_templates
def test_the_links_of_services_are_switched_off(role):
    assert TEMPLATES[role]["spec"]["enableServiceLinks"] is False


def test_links_that_are_not_switched_off_do_no_harm():
    service = the("Service")
    links = {"PIKV_SERVICE_HOST": "10.96.0.7", "PIKV_SERVICE_PORT": str(service["spec"]["ports"][0]["port"])}
    for port in service["spec"]["ports"]:
        url = f"{port['protocol'].lower()}://10.96.0.7:{port['port']}"
        name = f"PIKV_PORT_{port['port']}_{port['protocol']}"
        links.update({f"PIKV_SERVICE_PORT_{port['name'].upper()}": str(port["port"]), name: url,
                      name + "_PROTO": port["protocol"].lower(), name + "_PORT": str(port["port"]),
                      name + "_ADDR": "10.96.0.7"})
    links["PIKV_PORT"] = f"tcp://10.96.0.7:{service['spec']['ports'][0]['port']}"
    code, out, err = run_command("serve", "--print-config", env=links)
    assert code == 0 and "\nport: 8000" in out, err


# ---- agreement with each other ----


def selects(selector, labels):
    return selector.items() <= labels.items()


def test_selectors_meet_their_pods_and_nobody_else():
    def chosen(selector):
        return {role for role, template in TEMPLATES.items() if selects(selector, template["metadata"]["labels"])}

    deployment = the("Deployment")
    assert chosen(deployment["spec"]["selector"]["matchLabels"]) == {"server"}
    assert chosen(the("Service")["spec"]["selector"]) == {"server"}
    assert chosen(the("Service", "pikv-leader")["spec"]["selector"]) == {"leader"}
    assert chosen(the("PodDisruptionBudget")["spec"]["selector"]["matchLabels"]) == {"server"}
    for spread in deployment["spec"]["template"]["spec"]["topologySpreadConstraints"]:
        assert chosen(spread["labelSelector"]["matchLabels"]) == {"server"}
    scraped = the("ServiceMonitor")["spec"]["selector"]["matchLabels"]
    for name in ("pikv", "pikv-leader"):
        assert selects(scraped, the("Service", name)["metadata"]["labels"])


def test_the_disruption_budget_lets_nodes_be_drained():
    assert the("PodDisruptionBudget")["spec"]["maxUnavailable"] < the("Deployment")["spec"]["replicas"]


@pytest.mark.parametrize("name,role", [("pikv", "server"), ("pikv-leader", "leader")])
def test_services_and_the_monitor_name_ports_that_exist(name, role):
    ports = {port["name"]: port["containerPort"] for port in container_of(role)["ports"]}
    service = the("Service", name)["spec"]["ports"]
    assert {port["targetPort"]: port["port"] for port in service} == ports
    assert {e["port"] for e in the("ServiceMonitor")["spec"]["endpoints"]} <= {port["name"] for port in service}


@with_templates
def test_settings_come_from_the_file_that_is_mounted(role):
    spec, container = TEMPLATES[role]["spec"], container_of(role)
    env = {variable["name"]: variable.get("value") for variable in container["env"]}
    mount = next(m for m in container["volumeMounts"] if m["name"] == "settings")
    volume = next(v for v in spec["volumes"] if v["name"] == "settings")
    path = pathlib.PurePosixPath(env["PIKV_CONFIG"])
    assert str(path.parent) == mount["mountPath"]
    assert path.name in the("ConfigMap", volume["configMap"]["name"])["data"]
    assert container["image"].endswith(":" + IMAGE.pairs("LABEL")["org.opencontainers.image.version"])


@with_templates
def test_resources_are_stated_and_the_limits_are_the_requests(role):
    resources = container_of(role)["resources"]
    assert set(resources["requests"]) == {"cpu", "memory"} and resources["limits"] == resources["requests"]


# ---- agreement with the binary ----


def test_ports_are_those_of_the_settings_and_of_the_image(settings, tmp_path):
    file = tmp_path / "pikv.yaml"
    file.write_text(the("ConfigMap")["data"]["pikv.yaml"])
    code, out, err = run_command("serve", "--config", file, "--print-config")
    assert code == 0, err
    printed = yaml.safe_load(out)
    assert {key: str(printed[key]) for key in settings} == {key: str(value) for key, value in settings.items()}
    for role in ("server", "leader"):
        ports = {port["name"]: port["containerPort"] for port in container_of(role)["ports"]}
        assert ports == {"http": printed["port"], "monitor": int(printed["monitor-port"])}
        assert sorted(map(str, ports.values())) == sorted(IMAGE.last("EXPOSE").words())


@with_http
def test_pods_are_killed_only_after_they_could_drain(role, settings):
    pause = container_of(role)["lifecycle"]["preStop"]["exec"]["command"]
    assert pause[0] == "sleep"
    flush = int(re.search(r"FLUSH_MS_MAX = (\d+)", (ROOT / "service/server.c").read_text()).group(1)) / 1000
    for name in ("leader", "worker") if role == "leader" else (role,):
        grace = TEMPLATES[name]["spec"]["terminationGracePeriodSeconds"]
        assert grace >= int(pause[1]) + settings["shutdown-timeout"] + flush + 10


@with_http
def test_probes_ask_what_the_monitor_answers(role):
    container = container_of(role)
    probes = {name: container[name] for name in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert {name: probe["httpGet"]["path"] for name, probe in probes.items()} == \
           {"startupProbe": "/ready", "readinessProbe": "/ready", "livenessProbe": "/live"}
    startup = probes["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 600, "loading takes its time"
    for probe in probes.values():
        assert probe["httpGet"]["port"] == "monitor"


def test_workers_have_nothing_to_probe():
    assert not {"ports", "startupProbe", "readinessProbe", "livenessProbe", "lifecycle"} & set(container_of("worker"))


def test_the_paths_of_probes_and_scrapes_are_routes_of_the_monitor():
    paths = {e["path"] for e in the("ServiceMonitor")["spec"]["endpoints"]}
    for role in ("server", "leader"):
        paths |= {p["httpGet"]["path"] for p in container_of(role).values() if isinstance(p, dict) and "httpGet" in p}
    import requests
    with Server() as server:
        for path in paths:
            assert requests.get(server.monitor_url + path, timeout=20).status_code == 200, path


def test_the_group_is_told_its_place_by_variables_that_the_binary_reads():
    """What the LeaderWorkerSet's webhook adds to pod 1 of a group of its size."""
    place = {"LWS_LEADER_ADDRESS": "pikv-group-0.pikv-group.default", "LWS_WORKER_INDEX": "1",
             "LWS_GROUP_SIZE": str(GROUP["leaderWorkerTemplate"]["size"])}
    code, out, err = run_command("healthcheck", env=place)
    assert code == 0 and "rank 1" in out, err
    code, _, err = run_command("serve", "--rank-open-timeout", 1, env={**place, "LWS_LEADER_ADDRESS": "127.0.0.1"})
    assert code == 1 and "rank 1 ends" in err, err
