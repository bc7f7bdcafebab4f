"""Renders the chart with Helm's own library, and holds what comes out to Kubernetes' own schemas.

render.py TO    lints the chart, renders it with each file of values, for a new installation and for an upgrade, checks every
                manifest and the compose file, and writes to the folder TO: NAME.yaml, NAME-upgrade.yaml, and what the containers
                of Holdfast are given as containers.json

The resources of operators are not in these schemas: `make apiserver` has them judged.
"""

import json
import pathlib
import re
import sys

import compose_spec
import helm_python
import kubernetes_validate
import yaml

DEPLOY = pathlib.Path(__file__).resolve().parents[2]
FOLDER = DEPLOY / "kubernetes"
CHART = FOLDER / "chart"
# The oldest release that the chart admits, and the newest that the validator knows.
RELEASES = ["1.30", kubernetes_validate.latest_version()]
# What the values' schema, or the chart, refuses, and a word of the refusal.
REFUSED = [
    ({"image": {"repository": ""}}, "repository"),
    ({"settings": {"kafak": "broker:9093"}}, "kafak"),
    ({"settings": {"database-url": "postgres://a:b@db/c"}}, "database-url"),
    ({"settings": {"drain-timeout": "5m"}}, "drain-timeout"),
    ({"gate": {"files": {"kafka-ca": {"secret": "a", "configMap": "b"}}}}, "kafka-ca"),
    ({"gate": {"replica": 3}}, "replica"),
    ({"gate": {"pod": {"hostNetwork": True}}}, "hostNetwork"),
    ({"serve": {"previous": ["a/b"]}}, "previous"),
    ({"register": {"direct": True}, "gate": {"enabled": True}}, "gate.enabled"),
]


def fail(what):
    sys.exit(f"{CHART}: {what}")


def merged(values, others):
    both = {name: merged(values.get(name) or {}, other) if isinstance(other, dict) else other for name, other in others.items()}
    return {**values, **both}


def documents(text):
    return [document for document in yaml.safe_load_all(text) if document]


def check(manifests, where):
    for manifest in manifests:
        name = f"{where}: {manifest['kind']} {manifest['metadata']['name']}"
        group = manifest["apiVersion"].split("/")[0]
        if "." in group and not group.endswith(".k8s.io"):
            continue
        for release in RELEASES:
            try:
                kubernetes_validate.validate(manifest, release, strict=True)
            except kubernetes_validate.ValidationError as error:
                fail(f"{name}, Kubernetes {release}: {error}")


def rendered(chart, values, upgrade):
    files = chart.render(values, name="holdfast", namespace="holdfast", is_install=not upgrade, is_upgrade=upgrade)
    return "".join(text for name, text in sorted(files.items()) if name.endswith(".yaml"))


def refuse(chart, values):
    for change, word in REFUSED:
        try:
            wrong = merged(values, change)
            chart.validate_schema(wrong)
            chart.render(wrong, name="holdfast", namespace="holdfast")
        except helm_python.HelmError as error:
            if word in str(error):
                continue
            fail(f"{change} is refused for another reason: {error}")
        fail(f"{change} is not refused")


# What PodSecurity `restricted` demands of a pod and of its container, and more.
OF_POD = {
    "runAsNonRoot": True,
    "runAsUser": 65532,
    "runAsGroup": 65532,
    "fsGroup": 65532,
    "seccompProfile": {"type": "RuntimeDefault"},
}
OF_CONTAINER = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}


def template(manifest):
    """The template of the pods that a manifest starts, or nothing."""
    spec = manifest.get("spec") or {}
    return spec.get("template") or spec.get("jobTemplate", {}).get("spec", {}).get("template") or {}


def is_restricted(pod):
    (container,) = pod["containers"]
    asks = {**pod["securityContext"], **container["securityContext"]}
    volumes = {kind for volume in pod.get("volumes", []) for kind in volume if kind != "name"}
    takes_more = [field for field in pod if field.startswith("host")] or volumes - {"secret", "configMap"}
    return asks == {**OF_POD, **OF_CONTAINER} and not takes_more


def keep(manifests, where, upgrade):
    """What the chart promises beyond being well formed."""
    hooks = [manifest for manifest in manifests if "helm.sh/hook" in (manifest["metadata"].get("annotations") or {})]
    if [hook["metadata"]["name"].split("-")[1] for hook in hooks] != (["migrate"] if upgrade else []):
        fail(f"{where}: the migration is a hook on an upgrade, and nothing else ever is")
    for manifest in manifests:
        name, pod = f"{where}: {manifest['metadata']['name']}", template(manifest).get("spec")
        if pod and not is_restricted(pod):
            fail(f"{name} asks for more than PodSecurity's `restricted` lets it have")
        if pod and "terminationGracePeriodSeconds" in pod:
            (container,) = pod["containers"]
            drain = next(variable["value"] for variable in container["env"] if variable["name"] == "HOLDFAST_DRAIN_TIMEOUT")
            pause = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
            if pod["terminationGracePeriodSeconds"] < int(drain.rstrip("s")) + pause + 5:
                fail(f"{name} may be killed while it drains")
        for file, text in manifest.get("data", {}).items():
            if text != next(CHART.glob(f"[pg]*/{file}")).read_text():
                fail(f"{name} is not {file}")


def containers(manifests):
    """What each pod's container is given, but what Kubernetes fills in."""
    for manifest in manifests:
        if template(manifest):
            (container,) = template(manifest)["spec"]["containers"]
            env = [(variable["name"], variable["value"]) for variable in container["env"] if "value" in variable]
            yield {"name": manifest["metadata"]["name"], "args": container["args"], "env": env}


def trial():
    """The container of Holdfast in the compose file, where every variable has its default."""
    text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", (DEPLOY / "compose/compose.yaml").read_text())
    compose = compose_spec.PyCompose.from_yaml(text)
    compose.validate()
    holdfast = yaml.safe_load(text)["services"]["holdfast"]
    return {"name": "compose", "args": holdfast["command"], "env": list(holdfast["environment"].items())}


to = pathlib.Path(sys.argv[1])
to.mkdir(parents=True, exist_ok=True)
found = []
for path in sorted((FOLDER / "values").glob("*.yaml")):
    values = yaml.safe_load(path.read_text())
    report = helm_python.lint(str(CHART), values, strict=True)
    messages = [message for message in report["messages"] if message["severity"] > 1]
    if messages or report["errors"]:
        fail(f"{path.name}: {report}")
    with helm_python.Chart.load(str(CHART)) as chart:
        refuse(chart, values)
        for suffix, upgrade in [("", False), ("-upgrade", True)]:
            text = rendered(chart, values, upgrade)
            manifests = documents(text)
            check(manifests, path.stem + suffix)
            keep(manifests, path.stem + suffix, upgrade)
            (to / f"{path.stem}{suffix}.yaml").write_text("".join(line for line in text.splitlines(True) if line.strip()))
            found += containers(manifests)
            print(f"{path.name}{suffix}: {len(manifests)} manifests, as Kubernetes {' and '.join(RELEASES)} have them")
for path in sorted((FOLDER / "operators").glob("*.yaml")):
    manifests = documents(path.read_text())
    check(manifests, path.name)
    print(f"{path.name}: {len(manifests)} manifests")
found.append(trial())
print("compose.yaml: as the Compose specification has it")
(to / "containers.json").write_text(json.dumps(found))
