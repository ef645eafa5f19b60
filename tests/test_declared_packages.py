"""What is imported is declared, what is declared is imported or has its reason in docs/packages.md."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PRODUCT = ("preprocess", "engine", "launch")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
OWN = {
    *PRODUCT,
    "tests",
    "bench",
    *(path.stem for path in (ROOT / "bench").glob("*.py")),
}  # benchmarks import their siblings
DISTRIBUTIONS = packages_distributions()


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(requirements: list[str]) -> dict[str, str]:
    """{package: requirement}."""
    return {normal(re.match(r"[\w.-]+", requirement)[0]): requirement for requirement in requirements}


DEPENDENCIES = pins(PROJECT["project"]["dependencies"])
DEVELOPMENT = pins(PROJECT["project"]["optional-dependencies"]["dev"])
GROUPS = {name: pins(group) for name, group in PROJECT["dependency-groups"].items()}
OPTIONAL = set().union(*GROUPS.values())


def imported(*folders: str) -> set[str]:
    """Packages that the files in `folders` import, at the top or inside functions."""
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    assert len(paths) > 10
    names = set().union(*map(_third_party, paths))
    return {normal(package) for name in names for package in DISTRIBUTIONS.get(name, [name])}


def _third_party(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module.split(".")[0])
    return names - sys.stdlib_module_names - OWN


def documented(section: str) -> set[str]:
    """The packages in the table of a section of docs/packages.md."""
    page = (ROOT / "docs" / "packages.md").read_text(encoding="utf-8")
    (text,) = re.findall(rf"^## {section}\n(.*?)(?=^## )", page, flags=re.DOTALL | re.MULTILINE)
    return set(re.findall(r"^\| ([a-z0-9-]+) \| \S", text, flags=re.MULTILINE)) - {"package"}


def locked(name: str) -> dict[str, str]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return pins([line.split(" ;")[0] for line in lines if not line.startswith("#")])


def test_every_package_that_the_product_imports_is_declared():
    assert imported(*PRODUCT) - DEPENDENCIES.keys() - OPTIONAL == set()


def test_every_package_that_tests_and_benchmarks_import_is_declared():
    assert imported("tests", "bench") - DEPENDENCIES.keys() - DEVELOPMENT.keys() - OPTIONAL == set()


def test_every_declared_package_is_imported_or_the_page_says_why_not():
    assert DEPENDENCIES.keys() - imported(*PRODUCT) == documented("Needed without an import")
    assert DEVELOPMENT.keys() - imported("tests", "bench") == documented("Tools")


@pytest.mark.parametrize(
    ("sections", "declared"),
    [
        (("Imported by the product", "Needed without an import"), DEPENDENCIES.keys()),
        (("Optional",), OPTIONAL),
        (("Imported by tests", "Tools"), DEVELOPMENT.keys()),
    ],
)
def test_the_page_says_of_every_declared_package_what_it_does(sections, declared):
    assert set().union(*map(documented, sections)) == declared


def test_the_locks_hold_the_declared_pins():
    locks = {"requirements.txt": DEPENDENCIES | DEVELOPMENT}
    locks |= {f"requirements-{name}.txt": group for name, group in GROUPS.items()}
    for name, declared in locks.items():
        found = locked(name)
        assert declared.keys() <= found.keys(), name
        exact = {package: pin for package, pin in declared.items() if "==" in pin}
        assert {package: found[package] for package in exact} == exact, name


@pytest.mark.parametrize("group", GROUPS)
def test_an_optional_lock_changes_no_pin_of_the_main_one(group):
    main, optional = locked("requirements.txt"), locked(f"requirements-{group}.txt")
    shared = main.keys() & optional.keys()
    assert shared
    assert {name: optional[name] for name in shared} == {name: main[name] for name in shared}
