"""environment.yml asks for what pyproject.toml asks for, under the names conda-forge gives it."""

import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
EXTRAS = ["dev", "docs", "notebook", "slurm"]

# Where conda-forge's name is not PyPI's. The conda package dask-core with numpy is what pip knows as dask[array].
CONDA_NAMES = {
    "dask": "dask-core",
    "lazy-loader": "lazy_loader",
    "ml-dtypes": "ml_dtypes",
    "playwright": "playwright-python",
}

# What a conda environment needs besides: pip, to install the package itself.
CONDA_ONLY = {"pip": SpecifierSet()}


def requirements_of_pyproject() -> dict[str, SpecifierSet]:
    """What pyproject.toml asks for, by conda name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"], *(line for extra in EXTRAS for line in project["optional-dependencies"][extra])]
    wanted = {"python": SpecifierSet(project["requires-python"])}
    for requirement in map(Requirement, lines):
        name = canonicalize_name(requirement.name)
        if name == canonicalize_name(project["name"]):  # its other extras
            continue
        wanted[CONDA_NAMES.get(name, name)] = requirement.specifier
    return wanted


def environment() -> dict:
    return yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))


def requirements_of_environment() -> dict[str, SpecifierSet]:
    """What environment.yml asks conda for. For version ranges, conda and pip write the same."""
    requirements = [Requirement(line) for line in environment()["dependencies"] if isinstance(line, str)]
    found = {requirement.name: requirement.specifier for requirement in requirements}
    assert len(found) == len(requirements), "a package is listed twice in environment.yml"
    return found


@pytest.mark.parametrize(("name", "specifier"), sorted(requirements_of_pyproject().items(), key=lambda item: item[0]))
def test_every_requirement_of_pyproject_is_in_the_environment(name, specifier):
    found = requirements_of_environment()
    assert name in found, f"pyproject.toml asks for {name}{specifier}, environment.yml does not list {name}"
    assert found[name] == specifier, f"{name}: {specifier} in pyproject.toml, {found[name]} in environment.yml"


def test_nothing_in_the_environment_is_unknown_to_pyproject():
    unknown = requirements_of_environment().keys() - requirements_of_pyproject().keys() - CONDA_ONLY.keys()
    assert not unknown, f"environment.yml lists {sorted(unknown)}, pyproject.toml does not"


def test_pip_installs_the_package_and_nothing_else():
    assert [line for line in environment()["dependencies"] if not isinstance(line, str)] == [{"pip": ["-e ."]}]
    assert "pip" in requirements_of_environment()


def test_the_environment_comes_from_conda_forge_alone():
    assert environment()["name"] == "dbksvd"
    assert environment()["channels"] == ["conda-forge"]
