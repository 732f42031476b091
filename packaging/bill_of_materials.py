"""Completes a CycloneDX list of a build environment: leaves the build's own tools out, adds what isn't a Python package.

Run: build/sbom-env/bin/cyclonedx-py environment … | python packaging/bill_of_materials.py base.lock VERSION
"""

import json
import sqlite3
import ssl
import sys
from pathlib import Path
from typing import Any


def native_parts() -> list[dict[str, Any]]:
    """What the packed file brings along beside packages: the interpreter and the libraries it links."""
    python = ".".join(str(part) for part in sys.version_info[:3])
    openssl = ssl.OPENSSL_VERSION.split()[1]
    found = (("cpython", python, "Python-2.0"), ("sqlite", sqlite3.sqlite_version, "blessing"),
             ("openssl", openssl, "Apache-2.0"))  # fmt: skip
    return [
        {"type": "library", "bom-ref": f"{name}@{version}", "name": name, "version": version,
         "licenses": [{"license": {"id": licence}}], "purl": f"pkg:generic/{name}@{version}"}
        for name, version, licence in found
    ]  # fmt: skip


def complete(bill: dict[str, Any], lock: str, version: str) -> dict[str, Any]:
    """The bill of what ships. `lock`: the text of the base packages' lock."""
    shipped = {line.split("==")[0].lower() for line in lock.splitlines() if "==" in line}
    kept = [part for part in bill["components"] if part["name"].lower().replace("_", "-") in shipped]
    missing = shipped - {part["name"].lower().replace("_", "-") for part in kept}
    if missing:
        raise SystemExit(f"not in the environment: {', '.join(sorted(missing))}")
    parts = sorted(kept + native_parts(), key=lambda part: part["bom-ref"])
    known = {part["bom-ref"] for part in parts}
    graph = [
        {"ref": edge["ref"], "dependsOn": sorted(set(edge.get("dependsOn", ())) & known)}
        for edge in bill.get("dependencies", ())
        if edge["ref"] in known
    ]
    product = {"type": "application", "bom-ref": "overlayd", "name": "overlayd", "version": version}
    graph.append({"ref": "overlayd", "dependsOn": sorted(known)})
    bill |= {"components": parts, "dependencies": sorted(graph, key=lambda edge: str(edge["ref"]))}
    bill["metadata"] = {**bill.get("metadata", {}), "component": product}
    bill.pop("serialNumber", None)  # drawn anew each time
    bill["metadata"].pop("timestamp", None)
    return bill


if __name__ == "__main__":
    given = json.load(sys.stdin)
    json.dump(complete(given, Path(sys.argv[1]).read_text(), sys.argv[2]), sys.stdout, indent=1, sort_keys=True)
    sys.stdout.write("\n")
