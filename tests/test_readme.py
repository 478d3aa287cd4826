"""README says what the files say, and points at files that are there."""

from __future__ import annotations

import re
from pathlib import Path

from bench.__main__ import main as bench

ROOT = Path(__file__).parent.parent


def test_its_tables_are_those_of_the_result_files():
    assert bench(["readme", "--check"]) == 0, "run: python -m bench readme"


def test_its_links_lead_somewhere():
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)  # code has no links
        for target in re.findall(r"\]\(([^)#]+)\)", prose):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_files_that_the_pages_name_exist():
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for name in re.findall(
            r"`((?:soap_fast|csrc|bench|tests|docs)/[\w./]+\.\w+)`", page.read_text()
        ):
            assert (ROOT / name).exists(), f"{page.name}: {name}"
