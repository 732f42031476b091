"""Completes a CycloneDX list of a build environment: leaves the build's own tools out, adds what isn't a Python package.

Run: build/sbom-env/bin/cyclonedx-py environment … | python packaging/bill_of_materials.py base.lock VERSION TREE
"""

import json
import shutil
import sqlite3
import ssl
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

LIBRARIES = {
    "libbz2": ("bzip2", {"id": "bzip2-1.0.6"}),
    "libexpat": ("expat", {"id": "MIT"}),
    "libffi": ("libffi", {"id": "MIT"}),
    "libgcc_s": ("libgcc", {"name": "GPL-3.0-or-later WITH GCC-exception-3.1"}),
    "liblzma": ("xz", {"name": "public domain"}),
    "libmpdec": ("mpdecimal", {"id": "BSD-2-Clause"}),
    "libstdc++": ("libstdc++", {"name": "GPL-3.0-or-later WITH GCC-exception-3.1"}),
    "libuuid": ("libuuid", {"id": "BSD-3-Clause"}),
    "libz": ("zlib", {"id": "Zlib"}),
}
"""Shared libraries that the interpreter's modules are linked with. One that isn't here ends the build: nothing is shipped
unnamed, nor under a licence that nobody looked at."""
OF_THE_INTERPRETER = {"libpython": "cpython", "libsqlite3": "sqlite", "libssl": "openssl", "libcrypto": "openssl"}
WITHIN = {
    "cffi": (("libffi", "MIT"),),
    "coincurve": (("libsecp256k1", "MIT"),),
    "httptools": (("llhttp", "MIT"), ("http-parser", "MIT")),
}
"""What wheels have compiled in without a list of their own; their versions aren't told anywhere."""


def native_parts(tree: Path) -> list[dict[str, Any]]:
    """What the packed file brings along beside packages: the interpreter, and every library beside it in the tree."""
    python = ".".join(str(part) for part in sys.version_info[:3])
    openssl = ssl.OPENSSL_VERSION.split()[1]
    found = [("cpython", python, {"id": "Python-2.0"}), ("sqlite", sqlite3.sqlite_version, {"id": "blessing"}),
             ("openssl", openssl, {"id": "Apache-2.0"})]  # fmt: skip
    files: dict[str, list[str]] = {name: [] for name, _, _ in found}
    for file in sorted(tree.glob("lib*.so*")):
        stem = file.name.split(".so")[0].rstrip("0123456789.-")
        stem = "libsqlite3" if file.name.startswith("libsqlite3") else "libbz2" if stem == "libbz" else stem
        if stem in OF_THE_INTERPRETER:
            files[OF_THE_INTERPRETER[stem]].append(file.name)
            continue
        if stem not in LIBRARIES:
            raise SystemExit(f"{file.name} would be shipped, and packaging/bill_of_materials.py doesn't know it")
        name, licence = LIBRARIES[stem]
        found.append((name, library_version(file.name), licence))
        files[name] = [file.name]
    return [
        {"type": "library", "bom-ref": f"{name}@{version}", "name": name, "version": version,
         "licenses": [{"license": licence}], "purl": f"pkg:generic/{name}@{version}",
         "properties": [{"name": "overlayd:file", "value": file} for file in files[name]]}
        for name, version, licence in found
    ]  # fmt: skip


def library_version(file: str) -> str:
    """Of the Debian package that it was taken from; of its name, where there is none."""
    if dpkg := shutil.which("dpkg-query"):
        owner = _ask(dpkg, "-S", f"*/{file}")
        version = (
            _ask(dpkg, "-W", "-f", "${source:Upstream-Version}", owner.split(": ")[0].splitlines()[0]) if owner else ""
        )
        if version:
            return version
    return file.split(".so.")[-1]


def _ask(*command: str) -> str:
    """What a command prints; nothing when it fails."""
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout  # noqa: S603 - a program of the system


def compiled_in(package: str) -> list[dict[str, Any]]:
    """What a wheel has compiled in: as its own lists say (PEP 770), or as WITHIN does."""
    parts = [
        {"type": "library", "name": name, "licenses": [{"license": {"id": licence}}]}
        for name, licence in WITHIN.get(package.lower(), ())
    ]
    for file in metadata.files(package) or ():
        if ".dist-info/sboms/" in str(file) and file.suffix == ".json":
            listed = json.loads(file.read_text(encoding="utf-8"))
            for part in listed.get("components", ()):
                purl = part.get("purl", "").split("?")[0]  # what follows are paths of the machine that built the wheel
                if purl.startswith("pkg:pypi/"):
                    continue
                inner = {name: part[name] for name in ("type", "name", "version", "licenses") if name in part}
                parts.append(inner | ({"purl": purl} if purl else {}))
    return sorted(parts, key=lambda part: (part["name"], part.get("version", "")))


def complete(bill: dict[str, Any], lock: str, version: str, tree: Path) -> dict[str, Any]:
    """The bill of what ships. `lock`: the text of the base packages' lock; `tree`: where the packed files lie."""
    shipped = {line.split("==")[0].lower() for line in lock.splitlines() if "==" in line}
    kept = [part for part in bill["components"] if part["name"].lower().replace("_", "-") in shipped]
    missing = shipped - {part["name"].lower().replace("_", "-") for part in kept}
    if missing:
        raise SystemExit(f"not in the environment: {', '.join(sorted(missing))}")
    for part in kept:
        if inner := compiled_in(part["name"]):
            part["components"] = inner
    parts = sorted(kept + native_parts(tree), key=lambda part: part["bom-ref"])
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
    text, tree = Path(sys.argv[1]).read_text(), Path(sys.argv[3])
    json.dump(complete(given, text, sys.argv[2], tree), sys.stdout, indent=1, sort_keys=True)
    sys.stdout.write("\n")
