"""What the builders of Spaces share: the project's settings, requirements and templates."""

import tomllib
from collections.abc import Iterator
from pathlib import Path

import jinja2
from packaging.requirements import Requirement

from au_llava.au_runs.files import HOME

PYTHON = "3.11"
TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent), keep_trailing_newline=True, undefined=jinja2.StrictUndefined
)


def render(template: str, **values) -> str:
    """The text of a template in this folder."""
    return TEMPLATES.get_template(template).render(**values)


def project_settings(home: Path = HOME) -> dict:
    """The content of pyproject.toml."""
    return tomllib.loads((home / "pyproject.toml").read_text())


def tested_version(package: str) -> str:
    """The version of a package that the tests use, from constraints.txt."""
    pins = (HOME / "constraints.txt").read_text().splitlines()
    return dict(pin.split("==") for pin in pins if "==" in pin)[package]


def extra_requirements(project: dict, extra: str) -> Iterator[str]:
    """The requirements of an extra of the project, including those of the extras that it names."""
    for line in project["optional-dependencies"][extra]:
        requirement = Requirement(line)
        if requirement.name != project["name"]:
            yield line
            continue
        for other in sorted(requirement.extras):
            yield from extra_requirements(project, other)
