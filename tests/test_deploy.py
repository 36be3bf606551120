"""What deploy/ holds: manifests that Kubernetes takes, commands that fedrho takes, ports and labels that agree, no secret."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import kubernetes_validate
import pytest
import typer.main
import yaml

from fedrho import cli
from fedrho.key_making import make_keys
from fedrho.keys import server_tls
from fedrho.server.listen import ServerTls, bind_target
from fedrho.server.tasks import load_task

DEPLOY = Path(__file__).parents[1] / "deploy"
MANIFESTS = DEPLOY / "kubernetes"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
VERSION = "1.31"


def load(path: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(path.read_text(encoding="utf-8")) if document]


def resources() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every object that the kustomizations bring together, in whole; patches are parts of others."""
    for kustomization in sorted(MANIFESTS.glob("*/kustomization.yaml")):
        for name in load(kustomization)[0]["resources"]:
            path = kustomization.parent / name
            if path.is_file():
                yield from ((f"{path.parent.name}-{one['kind']}-{one['metadata']['name']}", one) for one in load(path))


RESOURCES = dict(resources())
WORKLOADS = {name: one for name, one in RESOURCES.items() if one["kind"] in ("Deployment", "StatefulSet")}
SERVICES = {name: one for name, one in RESOURCES.items() if one["kind"] == "Service"}
POLICIES = {name: one for name, one in RESOURCES.items() if one["kind"] == "NetworkPolicy"}


def pod_of(workload: dict[str, Any]) -> Any:
    return workload["spec"]["template"]["spec"]


def labels_of(workload: dict[str, Any]) -> list[dict[str, str]]:
    """Of each pod of a workload, with the name that a StatefulSet gives it."""
    labels = workload["spec"]["template"]["metadata"]["labels"]
    names = [f"{workload['metadata']['name']}-{number}" for number in range(workload["spec"]["replicas"])]
    stateful = workload["kind"] == "StatefulSet"
    return [{**labels, "statefulset.kubernetes.io/pod-name": name} if stateful else labels for name in names]


def selected(selector: dict[str, str]) -> list[dict[str, Any]]:
    """The workloads with a pod that has all these labels."""
    return [one for one in WORKLOADS.values() if any(selector.items() <= labels.items() for labels in labels_of(one))]


def ports_of(workload: dict[str, Any]) -> dict[str, int]:
    return {port["name"]: port["containerPort"] for port in pod_of(workload)["containers"][0]["ports"]}


# -- schemas -----------------------------------------------------------------------------------------------------------------


def test_every_manifest_belongs_to_a_kustomization() -> None:
    for kustomization in MANIFESTS.glob("*/kustomization.yaml"):
        (values,) = load(kustomization)
        patches = [patch["path"] for patch in values.get("patches", [])]
        named = {"kustomization.yaml", *values["resources"], *patches}
        assert {path.name for path in kustomization.parent.glob("*.yaml")} <= named


@pytest.mark.parametrize("name", RESOURCES)
def test_every_manifest_is_what_kubernetes_expects(name: str) -> None:
    kubernetes_validate.validate(RESOURCES[name], VERSION, strict=True)


def test_the_schema_check_finds_a_misspelt_field() -> None:
    broken = {**RESOURCES["base-Deployment-fedrho-coordinator"], "sepc": {}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, VERSION, strict=True)


def test_the_task_of_the_manifests_loads() -> None:
    assert load_task(MANIFESTS / "base" / "task.toml").file.steps > 0


# -- the command line --------------------------------------------------------------------------------------------------------


def commands() -> Iterator[tuple[str, list[str]]]:
    """What every container of ours, and the image by itself, gives to `fedrho`."""
    for name, workload in WORKLOADS.items():
        for container in pod_of(workload)["containers"]:
            if container["image"] == "fedrho":
                yield name, container["args"]
    yield "image", instruction("CMD")


def instruction(name: str) -> list[str]:
    """The list that an instruction of the Dockerfile has."""
    (found,) = re.findall(rf"^{name} (\[.*\])$", DOCKERFILE, re.MULTILINE)
    values: list[str] = json.loads(found)
    return values


@pytest.mark.parametrize(("name", "arguments"), list(commands()))
def test_fedrho_takes_the_arguments_of_every_container(name: str, arguments: list[str]) -> None:
    command = typer.main.get_command(cli.app).commands[arguments[0]]  # type: ignore[attr-defined]
    context = command.make_context(arguments[0], arguments[1:])
    assert context.params["host"] == "0.0.0.0"
    assert context.params["tls"] is not None


def test_compose_confines_the_server_and_gives_it_what_the_image_reads() -> None:
    ((name, service),) = load(DEPLOY / "compose.yaml")[0]["services"].items()
    assert name == "fedrho"
    assert service["build"] == {"context": ".", "dockerfile": "deploy/Dockerfile"}
    confined = {key: service[key] for key in ("read_only", "tmpfs", "cap_drop", "security_opt", "ulimits")}
    assert confined == {
        "read_only": True,
        "tmpfs": ["/tmp"],
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "ulimits": {"core": 0},
    }
    assert service["mem_limit"] == service["memswap_limit"]
    command = json.loads(re.search(r"^CMD (.*)$", DOCKERFILE, re.MULTILINE)[1])  # type: ignore[index]
    inside = dict(volume.split(":")[1::-1] for volume in service["volumes"])
    assert set(inside) == {command[1], command[command.index("--store") + 1], command[command.index("--tls") + 1]}
    writable = [volume for volume in service["volumes"] if not volume.endswith(":ro")]
    assert writable == [f"store:{command[command.index('--store') + 1]}"]
    port = command[command.index("--port") + 1]
    assert service["ports"] == [f"{port}:{port}"]
    assert "compose.yaml" in (DEPLOY.parent / "docs" / "deploy.md").read_text(encoding="utf-8")


def documented() -> list[list[str]]:
    """Every command of fedrho's that docs/deploy.md shows."""
    text = (DEPLOY.parent / "docs" / "deploy.md").read_text(encoding="utf-8").replace("\\\n", " ")
    return [shlex.split(line) for line in re.findall(r"(?:^|`|bin/)fedrho ((?:serve|shard|keys) [^`\n]+)", text, re.MULTILINE)]


@pytest.mark.parametrize("arguments", documented(), ids=" ".join)
def test_fedrho_takes_the_commands_of_the_page_on_deployment(arguments: list[str]) -> None:
    if not any("…" in one or one == "FOLDER" for one in arguments):
        typer.main.get_command(cli.app).commands[arguments[0]].make_context(arguments[0], arguments[1:])  # type: ignore[attr-defined]


def test_the_page_on_deployment_shows_a_server_and_a_shard() -> None:
    assert {"serve", "shard", "keys"} <= {arguments[0] for arguments in documented()}


def test_every_shard_is_named_to_the_coordinator() -> None:
    arguments = pod_of(RESOURCES["base-Deployment-fedrho-coordinator"])["containers"][0]["args"]
    named = [arguments[place + 1] for place, one in enumerate(arguments) if one == "--shard"]
    shards = RESOURCES["base-StatefulSet-fedrho-shard"]
    domain = f"{shards['spec']['serviceName']}.fedrho.svc.cluster.local"
    port = ports_of(shards)["control"]
    assert named == [f"fedrho-shard-{number}.{domain}:{port}" for number in range(shards["spec"]["replicas"])]


def test_every_shard_announces_an_address_of_its_own() -> None:
    arguments = pod_of(RESOURCES["base-StatefulSet-fedrho-shard"])["containers"][0]["args"]
    assert "$(POD_NAME)" in arguments[arguments.index("--announce") + 1]


def test_listening_ports_are_the_containers_own() -> None:
    for name, arguments in commands():
        if name in WORKLOADS:
            ports = set(map(str, ports_of(WORKLOADS[name]).values()))
            asked = {arguments[place + 1] for place, one in enumerate(arguments) if one.endswith("port")}
            asked |= {one.removeprefix("0.0.0.0:") for one in arguments if one.startswith("0.0.0.0:")}
            assert asked == ports


# -- ports and labels --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_leads_to_a_port_of_its_pods(name: str) -> None:
    (workload,) = selected(SERVICES[name]["spec"]["selector"])
    for port in SERVICES[name]["spec"]["ports"]:
        assert ports_of(workload)[port["targetPort"]] == port["port"]


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_opens_ports_that_its_pods_have(name: str) -> None:
    labels = POLICIES[name]["spec"]["podSelector"].get("matchLabels", {})
    workloads = selected(labels)
    assert workloads
    opened = {port["port"] for rule in POLICIES[name]["spec"].get("ingress", []) for port in rule.get("ports", [])}
    assert all(opened <= set(ports_of(workload).values()) for workload in workloads)


def test_what_one_policy_lets_out_another_lets_in() -> None:
    ours = [port for one in WORKLOADS.values() for port in ports_of(one).values()]
    for policy in POLICIES.values():
        for rule in policy["spec"].get("egress", []):
            peers = [peer["podSelector"]["matchLabels"] for peer in rule.get("to", []) if "podSelector" in peer]
            for labels in peers:
                (target,) = selected(labels)
                assert {port["port"] for port in rule["ports"]} <= set(ports_of(target).values()) <= set(ours)


def test_nobody_but_the_coordinator_reaches_sums_and_state() -> None:
    coordinator = {"app.kubernetes.io/name": "fedrho", "app.kubernetes.io/component": "coordinator"}
    for private in (7171, 5432):
        rules = [rule for one in POLICIES.values() for rule in one["spec"].get("ingress", [])]
        callers = [rule.get("from") for rule in rules if any(port["port"] == private for port in rule["ports"])]
        assert callers == [[{"podSelector": {"matchLabels": coordinator}}]]


def test_everything_else_is_closed() -> None:
    assert POLICIES["base-NetworkPolicy-nothing-else"]["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


@pytest.mark.parametrize("name", WORKLOADS)
def test_selectors_match_the_labels_of_their_own_pods(name: str) -> None:
    assert WORKLOADS[name] in selected(WORKLOADS[name]["spec"]["selector"]["matchLabels"])


def test_budgets_and_services_that_are_named_are_there() -> None:
    for one in RESOURCES.values():
        if one["kind"] == "PodDisruptionBudget":
            assert selected(one["spec"]["selector"]["matchLabels"])
        if one["kind"] == "StatefulSet":
            assert one["spec"]["serviceName"] in {service["metadata"]["name"] for service in SERVICES.values()}


# -- hardening ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WORKLOADS)
def test_no_container_has_more_rights_than_it_needs(name: str) -> None:
    pod = pod_of(WORKLOADS[name])
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in pod["containers"]:
        context = container["securityContext"]
        assert context["readOnlyRootFilesystem"] is True
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert {"requests", "limits"} <= container["resources"].keys()
        assert container["readinessProbe"]
        assert container["livenessProbe"]


@pytest.mark.parametrize("name", WORKLOADS)
def test_private_keys_are_not_readable_by_everybody(name: str) -> None:
    secrets = [volume["secret"] for volume in pod_of(WORKLOADS[name]).get("volumes", []) if "secret" in volume]
    assert [secret["secretName"] for secret in secrets if secret.get("defaultMode", 0o644) & 0o007] == []


def test_shards_keep_nothing_and_know_no_key_of_the_population() -> None:
    volumes = pod_of(RESOURCES["base-StatefulSet-fedrho-shard"])["volumes"]
    assert [one["name"] for one in volumes if "secret" not in one and one.get("emptyDir", {}).get("medium") != "Memory"] == []
    shown = next(one["secret"] for one in volumes if one.get("secret", {}).get("secretName") == "fedrho-server")
    assert {item["key"] for item in shown["items"]} == {"server.crt", "server.key", "ca.crt"}


def test_secrets_are_named_and_never_written_down() -> None:
    assert [name for name, one in RESOURCES.items() if one["kind"] == "Secret"] == []
    for workload in WORKLOADS.values():
        for container in pod_of(workload)["containers"]:
            for variable in container.get("env", []):
                secret = re.search("PASS|SECRET|TOKEN|ACCESS_KEY|ROOT_USER", variable["name"])
                assert not secret or "secretKeyRef" in variable["valueFrom"]


def test_no_real_host_is_named() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in DEPLOY.rglob("*") if path.is_file())
    hosts = set(re.findall(r"\b[\w-]+(?:\.[\w-]+)*\.(?:com|net|org|io|dev)\b", text))
    public = ("kubernetes.io", "k8s.io", "example.org", "quay.io")
    assert [host for host in hosts if not host.endswith(public)] == []


# -- the image ---------------------------------------------------------------------------------------------------------------


def test_the_image_runs_as_nobody_in_particular() -> None:
    (user,) = re.findall(r"^USER (\d+):(\d+)$", DOCKERFILE, re.MULTILINE)
    assert int(user[0]) > 0
    ours = [pod_of(one) for one in WORKLOADS.values() if pod_of(one)["containers"][0]["image"] == "fedrho"]
    assert {pod["securityContext"]["runAsUser"] for pod in ours} == {int(user[0])}


def test_what_the_image_copies_is_let_through_and_there() -> None:
    lines = (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    kept = [line.removeprefix("!") for line in lines if line.startswith("!")]
    assert [name for name in kept if not (DEPLOY.parent / name).exists()] == []
    linked = {path.resolve().name for path in (DEPLOY.parent / "fedrho").iterdir() if path.is_symlink()}
    assert linked <= set(kept)


def probed(*arguments: str) -> int:
    return subprocess.run([sys.executable, str(DEPLOY / "probe.py"), *arguments], check=False).returncode


async def probed_before_and_after_its_start(tls: ServerTls | None, *options: str) -> tuple[int, int]:
    server = grpc.aio.server()
    place = f"127.0.0.1:{bind_target(server, '127.0.0.1:0', tls)}"
    before = await asyncio.to_thread(probed, place, *options)
    await server.start()
    after = await asyncio.to_thread(probed, place, *options)
    await server.stop(0)
    return before, after


@pytest.mark.slow
def test_the_probe_tells_a_server_from_a_port_that_is_only_bound() -> None:
    assert asyncio.run(probed_before_and_after_its_start(None)) == (1, 0)


@pytest.mark.slow
def test_the_probe_tells_them_apart_with_tls_and_without_a_certificate_of_its_own(tmp_path: Path) -> None:
    make_keys(tmp_path / "keys")
    tls = server_tls(tmp_path / "keys", require_device_certificate=True)
    assert asyncio.run(probed_before_and_after_its_start(tls, "--tls")) == (1, 0)


def test_the_probe_finds_nobody_where_nobody_is() -> None:
    assert probed("127.0.0.1:1") == 1
