"""The environments for conda ask for what pyproject.toml asks for, under the names that their channels give it."""

import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]

# Where conda's name is not PyPI's. The conda package dask-core with numpy is what pip knows as dask[array].
CONDA_NAMES = {
    "cupy-cuda13x": "cupy",
    "dask": "dask-core",
    "lazy-loader": "lazy_loader",
    "ml-dtypes": "ml_dtypes",
    "playwright": "playwright-python",
    "rmm-cu13": "rmm",
}


@dataclass(frozen=True)
class Environment:
    """A file for conda, and what has to be in it."""

    file: str
    name: str
    channels: tuple[str, ...]
    extras: tuple[str, ...]
    """Of pyproject.toml."""
    conda_only: frozenset[str]
    """What it needs besides: pip, to install the package itself; which CUDA; and UCX, which is asked for by nothing."""

    def content(self) -> dict:
        return yaml.safe_load((ROOT / self.file).read_text(encoding="utf-8"))

    def requirements(self) -> dict[str, SpecifierSet]:
        """What it asks conda for. For version ranges, conda and pip write the same."""
        requirements = [Requirement(line) for line in self.content()["dependencies"] if isinstance(line, str)]
        found = {requirement.name: requirement.specifier for requirement in requirements}
        assert len(found) == len(requirements), f"a package is listed twice in {self.file}"
        return found

    def requirements_of_pyproject(self) -> dict[str, SpecifierSet]:
        """What pyproject.toml asks for, by conda name."""
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        optional = [line for extra in self.extras for line in project["optional-dependencies"][extra]]
        wanted = {"python": SpecifierSet(project["requires-python"])}
        for requirement in map(Requirement, [*project["dependencies"], *optional]):
            name = canonicalize_name(requirement.name)
            if name == canonicalize_name(project["name"]):  # its other extras
                assert requirement.extras <= set(self.extras)
                continue
            wanted[CONDA_NAMES.get(name, name)] = requirement.specifier
        return wanted


ENVIRONMENTS = [
    Environment(
        "environment.yml",
        "dbksvd",
        channels=("conda-forge",),
        extras=("dev", "docs", "notebook", "slurm", "test"),
        conda_only=frozenset({"pip"}),
    ),
    Environment(
        "environment-cuda.yml",
        "dbksvd-cuda",
        channels=("rapidsai", "conda-forge"),
        extras=("cuda", "cuda13", "notebook"),
        conda_only=frozenset({"pip", "cuda-version", "distributed-ucxx"}),
    ),
]
each_environment = pytest.mark.parametrize("environment", ENVIRONMENTS, ids=lambda environment: environment.file)


@pytest.mark.parametrize(
    ("environment", "name", "specifier"),
    [
        pytest.param(environment, name, specifier, id=f"{environment.file}-{name}")
        for environment in ENVIRONMENTS
        for name, specifier in sorted(environment.requirements_of_pyproject().items(), key=lambda item: item[0])
    ],
)
def test_every_requirement_of_pyproject_is_in_the_environment(environment, name, specifier):
    found, file = environment.requirements(), environment.file
    assert name in found, f"pyproject.toml asks for {name}{specifier}, {file} does not list {name}"
    assert found[name] == specifier, f"{name}: {specifier} in pyproject.toml, {found[name]} in {file}"


@each_environment
def test_nothing_in_the_environment_is_unknown_to_pyproject(environment):
    unknown = environment.requirements().keys() - environment.requirements_of_pyproject().keys()
    assert unknown == environment.conda_only


@each_environment
def test_pip_installs_the_package_and_nothing_else(environment):
    assert [line for line in environment.content()["dependencies"] if not isinstance(line, str)] == [{"pip": ["-e ."]}]


@each_environment
def test_the_environment_comes_from_its_channels_alone(environment):
    assert environment.content()["name"] == environment.name
    assert tuple(environment.content()["channels"]) == environment.channels


def test_the_extras_for_both_cudas_differ_by_that_alone():
    optional = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert [line.replace("12", "13") for line in optional["cuda12"]] == optional["cuda13"]
