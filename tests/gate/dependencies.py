#!/usr/bin/env python3
"""Checks the dependency tree against deny.toml: licences, banned crates, sources.

Stands in for cargo-deny where that is not installed; reads the same file. Exits 1 and names each
crate that breaks a rule.
"""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def licence_allowed(expression: str, allowed: set[str]) -> bool:
    """Evaluates an SPDX expression of OR, AND, WITH and parentheses (and the old `A/B`)."""
    text = expression.replace("/", " OR ")
    tokens = re.findall(r"\(|\)|[^\s()]+", text)
    position = 0

    def peek() -> str | None:
        return tokens[position] if position < len(tokens) else None

    def take() -> str:
        nonlocal position
        position += 1
        return tokens[position - 1]

    def atom() -> bool:
        if peek() == "(":
            take()
            value = any_of()
            take()
            return value
        name = take()
        if peek() == "WITH":
            take()
            return f"{name} WITH {take()}" in allowed or name in allowed
        return name in allowed

    def all_of() -> bool:
        value = atom()
        while peek() == "AND":
            take()
            right = atom()
            value = value and right
        return value

    def any_of() -> bool:
        value = all_of()
        while peek() == "OR":
            take()
            right = all_of()
            value = value or right
        return value

    return any_of()


def main() -> int:
    rules = tomllib.loads((ROOT / "deny.toml").read_text())
    allowed = set(rules["licenses"]["allow"])
    banned = {entry["name"] for entry in rules["bans"]["deny"]}
    metadata = json.loads(
        subprocess.check_output(["cargo", "metadata", "--format-version", "1", "--locked"], cwd=ROOT)
    )
    # `cargo metadata` lists optional crates that no feature turns on; `cargo tree` does not.
    tree = ["cargo", "tree", "--workspace", "--locked", "--prefix", "none", "--format", "{p}"]
    lines = subprocess.check_output(tree, cwd=ROOT, text=True).splitlines()
    used = {tuple(line.split()[:2]) for line in lines}
    packages = [
        package
        for package in metadata["packages"]
        if (package["name"], f"v{package['version']}") in used
    ]
    broken = []
    for package in packages:
        name = f"{package['name']} {package['version']}"
        licence = package["license"]
        if licence is None and package["license_file"] is None:
            broken.append(f"{name}: no licence is stated")
        elif licence is not None and not licence_allowed(licence, allowed):
            broken.append(f"{name}: licence {licence} is not among those in deny.toml")
        if package["name"] in banned:
            broken.append(f"{name}: banned by deny.toml")
        source = package["source"]
        if source is not None and not source.startswith("registry+"):
            broken.append(f"{name}: comes from {source}, not from a registry")
    for line in broken:
        print(line, file=sys.stderr)
    print(f"{len(packages)} packages checked against deny.toml, {len(broken)} refused")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
