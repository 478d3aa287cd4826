"""Shows what is installed, how it was built, which backend runs and why, and if it works."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import soap_fast
from soap_fast.backends import NAMES, PRECISIONS
from soap_fast.install import describe
from soap_fast.self_check import TOLERANCE, largest_error


def main(arguments: list[str] | None = None) -> int:
    """Print the description; 0 if the self-checks of what runs by default passed, else 1."""
    parser = argparse.ArgumentParser(prog="python -m soap_fast", description=__doc__)
    add = parser.add_argument
    add("--json", action="store_true", help="print JSON and nothing else")
    add("--check", choices=NAMES, help="check this backend only, in this process, and print JSON")
    add("--device", default="cpu", help="device to check it on")
    add("--input-precision", default="tf32x3", choices=PRECISIONS, help="precision of its products")
    options = parser.parse_args(arguments)
    if options.check is not None:
        how = {"input_precision": options.input_precision}
        error = largest_error(soap_fast.SOAP, options.check, options.device, **how)
        print(json.dumps({"error": error, "tolerance": TOLERANCE}))
        return int(error > TOLERANCE)
    facts = describe()
    print(json.dumps(facts, indent=1) if options.json else as_text(facts))
    return int(any(not check["ok"] for check in facts["self_check"] if check["default"]))


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
    role = "" if check["default"] else "; it does not run by default"
    if check["ok"]:
        return f"passed, error {check['error']:.1e} (allowed {check['tolerance']:.0e}){role}"
    return f"FAILED: {check['problem'] or check['error']}{role}"


if __name__ == "__main__":
    sys.exit(main())
