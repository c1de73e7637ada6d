"""The Kubernetes examples: what they say of the server is what it has."""

import re
from pathlib import Path
from typing import Any

import click
import httpx
import pytest
import yaml
from live_server import listening

from aicc.cli.serve_command import serve
from aicc.runtime.generator import Model
from aicc.runtime.server import create_app
from aicc.runtime.server.listener import _FLUSH_SECONDS
from aicc.runtime.server.metrics import PATH

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "kubernetes"


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


DEPLOYMENT, SERVICE = documents("deployment.yaml")
RUNTIME, INFERENCE = documents("kserve.yaml")
PODS = {
    "deployment": (DEPLOYMENT["spec"]["template"]["spec"], DEPLOYMENT["spec"]["template"]["spec"]),
    "kserve": (RUNTIME["spec"], INFERENCE["spec"]["predictor"]),
}


@pytest.fixture(params=PODS)
def pod(request: pytest.FixtureRequest) -> dict[str, Any]:
    """A pod's specification, with what holds for it from elsewhere."""
    spec, graceful = PODS[request.param]
    return {**spec, "grace": graceful["terminationGracePeriodSeconds"], "links": graceful["enableServiceLinks"]}


def arguments(container: dict[str, Any]) -> click.Context:
    """The container's arguments, as `aicc serve` reads them; unknown ones are an error."""
    context = click.Context(serve)
    context.params, rest, _ = serve.make_parser(context).parse_args(list(container["args"]))
    assert not rest
    return context


def test_the_servers_options_are_known_and_safe_to_reach_from_elsewhere(pod: dict[str, Any]) -> None:
    (container,) = pod["containers"]
    options = arguments(container).params
    assert options["host"] == "0.0.0.0"
    assert "insecure" not in options
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    keys = Path(options["api_key_file"])
    (volume,) = [volume for volume in pod["volumes"] if volume["name"] == mounts[str(keys.parent)]]
    assert "secret" in volume
    assert int(options["threads"]) == int(container["resources"]["limits"]["cpu"])
    assert container["resources"]["requests"] == container["resources"]["limits"]


def test_a_services_variables_are_not_taken_for_options(pod: dict[str, Any]) -> None:
    assert pod["links"] is False


def test_a_pod_that_ends_has_time_to_finish_its_answers(pod: dict[str, Any]) -> None:
    (container,) = pod["containers"]
    *_, before = container["lifecycle"]["preStop"]["exec"]["command"]
    drain = float(arguments(container).params["drain_seconds"])
    assert pod["grace"] >= int(before) + drain + _FLUSH_SECONDS


def test_probes_ask_paths_that_answer_without_a_key_on_the_port_the_server_has(
    pod: dict[str, Any], model: Model
) -> None:
    (container,) = pod["containers"]
    (port,) = container["ports"]
    assert port["containerPort"] == int(arguments(container).params["port"])
    probes = {name: container[name]["httpGet"] for name in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert {probe["port"] for probe in probes.values()} <= {port["name"], port["containerPort"]}
    assert probes["livenessProbe"]["path"] != probes["readinessProbe"]["path"]
    with listening(create_app(model)) as url:
        assert {httpx.get(url + probe["path"]).status_code for probe in probes.values()} == {200}


def test_the_service_leads_to_the_deployments_pods() -> None:
    labels = DEPLOYMENT["spec"]["template"]["metadata"]["labels"]
    assert SERVICE["spec"]["selector"].items() <= labels.items()
    assert DEPLOYMENT["spec"]["selector"]["matchLabels"].items() <= labels.items()
    (container,) = DEPLOYMENT["spec"]["template"]["spec"]["containers"]
    assert SERVICE["spec"]["ports"][0]["targetPort"] in {port["name"] for port in container["ports"]}
    annotations = DEPLOYMENT["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(container["ports"][0]["containerPort"])
    assert annotations["prometheus.io/path"] == PATH


def test_the_inference_service_asks_for_the_runtimes_format() -> None:
    (offered,) = RUNTIME["spec"]["supportedModelFormats"]
    assert INFERENCE["spec"]["predictor"]["model"]["modelFormat"].items() <= offered.items()


def test_the_image_has_the_runtime_alone_and_starts_the_server_directly() -> None:
    text = (FOLDER / "Dockerfile").read_text()
    assert set(re.findall(r"\[(\w+)\]'", text)) == {"serve"}
    assert 'ENTRYPOINT ["aicc", "serve"]' in text
    copied = {name for line in re.findall(r"^COPY (.*) /source", text, re.MULTILINE) for name in line.split()}
    packages = {name.split(".")[1] for name in re.findall(r'"(aicc\.\w+)"', (ROOT / "pyproject.toml").read_text())}
    assert copied >= packages | {"pyproject.toml", "constraints.txt"}
    assert all((ROOT / name).exists() for name in copied)
    (port,) = re.findall(r"^EXPOSE (\d+)$", text, re.MULTILINE)
    assert int(port) == DEPLOYMENT["spec"]["template"]["spec"]["containers"][0]["ports"][0]["containerPort"]
