"""What is installed, what it was built with, which backend would run and why, and does it work."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from soap_fast.install import describe


def main(arguments: list[str] | None = None) -> int:
    """Print the description; 0 if every self-check passed, else 1."""
    parser = argparse.ArgumentParser(prog="python -m soap_fast", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else")
    options = parser.parse_args(arguments)
    facts = describe()
    print(json.dumps(facts, indent=1) if options.json else as_text(facts))
    return 0 if all(check["ok"] for check in facts["self_check"]) else 1


def as_text(facts: dict[str, Any]) -> str:
    lines = [
        *_section("Versions", ((k, v or "not installed") for k, v in facts["versions"].items())),
        *_section("Devices", ((d["type"], _details(d)) for d in facts["devices"])),
        *_section("Extension", _extension(facts["extension"])),
        *_section(
            "Backends", ((b["name"], _backend(b, facts["backend"])) for b in facts["backends"])
        ),
        *_section("Self-check", ((c["what"], _outcome(c)) for c in facts["self_check"])),
    ]
    if facts["missing"]:
        rows = ((m["part"], f"would {m['would']}: {m['how']}") for m in facts["missing"])
        lines += _section("Missing", rows)
    return "\n".join(lines)


def _section(title: str, rows: Any) -> list[str]:
    return [title, *(f"  {name:<22} {value}" for name, value in rows)]


def _details(device: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in device.items() if key != "type")


def _extension(facts: dict[str, Any]) -> list[tuple[str, Any]]:
    if not facts["available"]:
        return [("not available", facts["reason"])]
    return list((facts["build"] or {}).items())


def _backend(status: dict[str, Any], chosen: str) -> str:
    role = "runs by default" if status["name"] == chosen else "usable"
    return f"{role if status['usable'] else 'not usable'}: {status['reason']}"


def _outcome(check: dict[str, Any]) -> str:
    if check["ok"]:
        return f"passed, error {check['error']:.1e} (allowed {check['tolerance']:.0e})"
    return f"FAILED: {check['problem'] if 'problem' in check else check['error']}"


if __name__ == "__main__":
    sys.exit(main())
