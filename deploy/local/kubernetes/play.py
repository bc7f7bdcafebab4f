"""Runs the chart's pods on this machine by podman, in the order of an installation.

play.py VALUES        VALUES is a file of values (YAML or JSON), with `secrets`, what the chart's secrets hold, beside them: as folders
                      beside the file, since podman 4.3 mounts secrets as they are encoded
play.py --restart     restarts those that live long, each when the one before it is ready
play.py --down        ends them; each must have ended its work and say so by exit code 0

All share this machine's network, so each listens on ports of its own: 9464, 9465 and 9080 and so on become PORT + 10 x the pod's number.
"""

import json
import os
import pathlib
import subprocess
import sys
import time

import helm_python
import yaml

CHART = pathlib.Path(__file__).resolve().parents[2] / "kubernetes/chart"
ORDER = ["migrate", "serve", "register", "gate", "relay", "webhook", "verify"]
LABEL = "app.kubernetes.io/component"
# For each wait.
PATIENCE = 120


def podman(*arguments, text=None, check=True):
    done = subprocess.run(["podman", *arguments], input=text, capture_output=True, text=True)
    if check and done.returncode:
        sys.exit(f"podman {' '.join(arguments)}: {done.stdout}{done.stderr}")
    return done


def apart(pod, number, secrets):
    """Has it listen on ports of its own, and find its secrets in folders."""
    container = pod["spec"]["containers"][0]
    for variable in container["env"]:
        if variable["name"].endswith("_LISTEN"):
            host, port = variable["value"].rsplit(":", 1)
            variable["value"] = f"127.0.0.1:{int(port) + 10 * number}"
    container.pop("ports", None)
    for volume in pod["spec"].get("volumes", []):
        if "secret" in volume:
            folder = secrets / volume.pop("secret")["secretName"]
            volume["hostPath"] = {"path": str(folder), "type": "Directory"}


def pods(values):
    with helm_python.Chart.load(str(CHART)) as chart:
        files = chart.render(values, name="holdfast", namespace="holdfast", is_install=True)
    for name, text in files.items():
        for manifest in yaml.safe_load_all(text) if name.endswith(".yaml") else []:
            spec = manifest and manifest.get("spec") or {}
            template = spec.get("template") or spec.get("jobTemplate", {}).get("spec", {}).get("template")
            if template:
                role = template["metadata"]["labels"][LABEL]
                for number in range(spec["replicas"] if manifest["kind"] == "StatefulSet" else 1):
                    name = f"{manifest['metadata']['name']}-{number}"
                    metadata = {**template["metadata"], "name": name}
                    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}
                    yield role, json.loads(json.dumps(pod))


def containers(running=False):
    names = podman("ps", *([] if running else ["--all"]), "--filter", "label=app.kubernetes.io/name=holdfast", "--format", "{{.Names}}")
    return sorted(name for name in names.stdout.split() if name.endswith("-holdfast"))


def until_ready(container):
    deadline = time.monotonic() + PATIENCE
    while True:
        asked = podman("exec", container, "/usr/bin/holdfast", "health", "--ready", check=False)
        if asked.returncode == 0:
            return
        if time.monotonic() > deadline:
            sys.exit(f"{container} is not ready: {asked.stderr}{podman('logs', container, check=False).stderr}")
        time.sleep(0.5)


def until_done(container):
    code = podman("wait", container).stdout.strip()
    said = podman("logs", container)
    if code != "0":
        sys.exit(f"{container} ended with {code}: {said.stdout}{said.stderr}")
    print(said.stdout, end="")


def up(file):
    values = yaml.safe_load(file.read_text())
    secrets = file.resolve().with_name("secrets")
    for name, data in values.pop("secrets").items():
        (secrets / name).mkdir(parents=True, exist_ok=True)
        for key, value in data.items():
            (secrets / name / key).write_text(value)
    found = sorted(pods(values), key=lambda pod: (ORDER.index(pod[0]), pod[1]["metadata"]["name"]))
    for number, (role, pod) in enumerate(found):
        apart(pod, number, secrets)
        podman("kube", "play", "--network", "host", "-", text=yaml.safe_dump(pod))
        ends = pod["spec"].get("restartPolicy") == "Never"
        (until_done if ends else until_ready)(f"{pod['metadata']['name']}-holdfast")
        print(f"{role}: {pod['metadata']['name']} runs", flush=True)


def restart():
    for name in containers(running=True):
        pod = name.removesuffix("-holdfast")
        podman("pod", "stop", "--time", "35", pod)
        # It has told the container to end, which need not be all yet.
        podman("wait", name)
        podman("pod", "start", pod)
        until_ready(name)
        print(f"{name}: restarted")


def down():
    wrong = []
    for name in containers():
        podman("stop", "--time", "35", name)
        code = podman("inspect", "--format", "{{.State.ExitCode}}", name).stdout.strip()
        print(f"{name}: ended with {code}")
        wrong += [name] if code != "0" else []
        podman("pod", "rm", "--force", name.removesuffix("-holdfast"))
    if wrong:
        sys.exit(f"{', '.join(wrong)}: did not end well")


if not pathlib.Path("/run/systemd/system").exists():
    os.environ["CONTAINERS_CONF"] = str(pathlib.Path(__file__).with_name("containers.conf"))
if sys.argv[1:] == ["--restart"]:
    restart()
elif sys.argv[1:] == ["--down"]:
    down()
else:
    up(pathlib.Path(sys.argv[1]))
