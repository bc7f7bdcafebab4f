"""Reads dashboards with Grafana's own library and writes them again: what it does not know is lost on the way, and named."""

import json
import sys

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard


def lost(ours, theirs, place=""):
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for name, value in ours.items():
            yield from lost(value, theirs.get(name), f"{place}/{name}")
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for number, value in enumerate(ours):
            yield from lost(value, theirs[number], f"{place}/{number}")
    elif ours != theirs:
        yield f"{place}: {ours!r} becomes {theirs!r}"


register_default_plugins()
faults = []
for path in sys.argv[1:]:
    with open(path, encoding="utf-8") as file:
        ours = json.load(file)
    theirs = json.loads(JSONEncoder(sort_keys=True).encode(Dashboard.from_json(ours)))
    faults += [f"{path}{fault}" for fault in lost(ours, theirs)]
    print(f"{path}: {len(ours['panels'])} panels")
sys.exit("\n".join(faults) or 0)
