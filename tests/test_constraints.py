"""Tests that the files of pinned versions agree with the ranges in `pyproject.toml`."""

import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from .conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
# Packages that run the tests, are run by them, or build the site; our package does not import them.
TOOLS = {canonicalize_name(Requirement(text).name) for extra in ("dev", "docs", "engines") for text in EXTRAS[extra]}


def requirements() -> dict[str, Requirement]:
    texts = [*PROJECT["dependencies"], *(text for extra in EXTRAS.values() for text in extra)]
    return {canonicalize_name(found.name): found for found in map(Requirement, texts)}


def pins(name: str) -> dict[str, Version]:
    lines = (line.partition("#")[0].strip() for line in (ROOT / name).read_text().splitlines())
    pairs = (line.split("==") for line in lines if line)
    return {canonicalize_name(package): Version(version) for package, version in pairs}


@pytest.mark.parametrize("name", ["constraints.txt", "constraints-oldest.txt"])
def test_pinned_versions_are_allowed(name):
    for package, version in pins(name).items():
        if package in requirements():
            assert requirements()[package].specifier.contains(version), package


def test_the_oldest_pins_are_the_lower_ends_of_the_ranges():
    """With these pins, `make test CONSTRAINTS=constraints-oldest.txt` tests the oldest versions that are promised."""
    oldest = pins("constraints-oldest.txt")
    for package, requirement in requirements().items():
        if package in TOOLS:
            continue
        (lower,) = [bound for bound in requirement.specifier if bound.operator == ">="]
        assert oldest.get(package) == Version(lower.version), package


def test_what_make_installs_is_pinned():
    assert set(requirements()) - set(pins("constraints.txt")) <= {"region-learner", "types-pyyaml", "types-tqdm"}
