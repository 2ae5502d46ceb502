"""The lowest versions that pyproject.toml allows have no known security fault. ``make lint`` checks this too."""

import tomllib
from pathlib import Path
from typing import NamedTuple

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]


class Review(NamedTuple):
    """
    What the advisories say of one package.

    Attributes:
        first_safe: The first version without a known fault; empty where no fault is known in any version.
        faults: The faults of the versions before it, by CVE, GHSA or the package's own issue.
    """

    first_safe: str = ""
    faults: str = ""


# As of 2026-11-30, from https://osv.dev, https://github.com/advisories and the changelogs. A new advisory is a line
# here, and a higher floor in pyproject.toml.
REVIEWS = {
    "anyio": Review("4.14.2", "CVE-2026-63349, CVE-2026-63374, CVE-2026-64847"),
    "h11": Review("0.16.0", "CVE-2025-43859: request smuggling"),
    "h2": Review("4.4.1", "CVE-2025-57804, CVE-2026-71554: request smuggling"),
    "hypercorn": Review(),
    "itsdangerous": Review(),
    "jinja2": Review("3.1.6", "CVE-2024-56201, CVE-2024-56326, CVE-2025-27516: ways out of the sandbox"),
    "msgspec": Review(),
    "orjson": Review("3.11.6", "CVE-2024-27454, CVE-2025-67221: unlimited recursion"),
    "prometheus-client": Review(),
    "python-multipart": Review(
        "0.0.31",
        "CVE-2026-24486, -40347, -42561, -53537, -53538, -53539, -53540: CPU time, files outside the directory",
    ),
    "redis": Review("4.5.4", "CVE-2023-28858, CVE-2023-28859: answers of another command"),
    "trio": Review(),
    "uvloop": Review("0.20.0", "CVE-2024-24806, in libuv"),
    "watchfiles": Review(),
    "websockets": Review("9.1", "CVE-2018-1000518, CVE-2021-33880"),
    "wsproto": Review(),
}
REQUIREMENTS = [
    Requirement(text)
    for group in (PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())
    for text in group
]


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=lambda requirement: requirement.name)
def test_no_requirement_allows_a_version_with_a_known_fault(requirement: Requirement) -> None:
    assert requirement.name in REVIEWS, "look its advisories up, and add a line"
    [floor] = [Version(bound.version) for bound in requirement.specifier if bound.operator == ">="]
    review = REVIEWS[requirement.name]
    assert not review.first_safe or floor >= Version(review.first_safe), review.faults


def test_every_review_is_of_a_requirement() -> None:
    assert REVIEWS.keys() == {requirement.name for requirement in REQUIREMENTS}
