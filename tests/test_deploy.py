"""The files of deploy/ against the project: what they copy, run and mount is there."""

import re
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from pipeline.cli import app

STAGES = ("cpu", "gpu")


@pytest.fixture(scope="module")
def manifests(root: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((root / "deploy/kubernetes.yaml").read_text()))


@pytest.fixture(scope="module")
def compose(root: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((root / "deploy/compose.yaml").read_text())
    return content


def pods(manifests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found = []
    for manifest in manifests:
        spec = manifest["spec"]
        spec = spec.get("jobTemplate", {}).get("spec", spec)
        found += [spec["template"]["spec"]] if "template" in spec else []
    return found


def test_the_images_copy_what_is_there_and_do_not_run_as_root(root: Path) -> None:
    text = (root / "deploy/Dockerfile").read_text()
    for line in re.findall(r"^COPY (.+)$", text, re.MULTILINE):
        for source in line.split()[:-1]:
            assert (root / source).exists(), source
            assert f"!{source.removeprefix('./')}" in (root / "deploy/Dockerfile.dockerignore").read_text().split()
    parts = re.split(r"^FROM ", text, flags=re.MULTILINE)[1:]
    assert [part.splitlines()[0].split()[-1] for part in parts] == ["base", *STAGES]
    assert all("\nUSER 10001\n" in part for part in parts[1:])
    extras = set(re.findall(r"'\.\[([^]]+)\]'", text))
    offered = (root / "pyproject.toml").read_text().split("[project.optional-dependencies]")[1]
    assert all(re.search(rf"^{name} = \[", offered, re.MULTILINE) for names in extras for name in names.split(","))


def test_pods_run_images_that_there_are_as_a_user_and_mount_what_they_name(manifests: list[dict[str, Any]]) -> None:
    assert len(pods(manifests)) == 3
    claims = {manifest["metadata"]["name"] for manifest in manifests if manifest["kind"] == "PersistentVolumeClaim"}
    for pod in pods(manifests):
        assert pod["securityContext"]["runAsUser"] == 10001
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        for volume in volumes.values():
            assert "emptyDir" in volume or volume["persistentVolumeClaim"]["claimName"] in claims
        for container in pod["containers"]:
            assert container["image"] in {f"sidpipe:{stage}" for stage in STAGES}
            assert {mount["name"] for mount in container["volumeMounts"]} <= set(volumes)
            assert container["args"][0] in ("dvc", "mlflow", "pipeline")


def test_the_commands_of_the_package_have_the_options_that_they_are_given(manifests: list[dict[str, Any]]) -> None:
    group: Any = typer.main.get_command(app)
    given = [container["args"] for pod in pods(manifests) for container in pod["containers"]]
    ours = [args[1:] for args in given if args[0] == "pipeline"]
    assert ours
    for name, *options in ours:
        group.commands[name].make_context(name, list(options))  # a usage error raises


def test_services_wait_for_services_that_there_are_and_need_their_secrets(compose: dict[str, Any]) -> None:
    services = compose["services"]
    for service in services.values():
        assert set(service.get("depends_on", [])) <= set(services)
        assert {str(volume).split(":")[0] for volume in service.get("volumes", [])} <= set(compose["volumes"])
        assert all(str(port).startswith("127.0.0.1:") for port in service.get("ports", [])), "for this machine only"
    text = yaml.safe_dump(services)
    assert set(re.findall(r"\$\{(\w+)", text)) == {"POSTGRES_PASSWORD", "MINIO_ROOT_USER", "MINIO_ROOT_PASSWORD"}
    assert len(re.findall(r"\$\{\w+:\?", text)) == len(re.findall(r"(?<!\$)\$\{", text))
