"""Each test tells its figure; they stand together at the end."""

import resource

import pytest


@pytest.fixture(scope="session", autouse=True)
def _many_files():
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 16384), most))


@pytest.fixture
def figure(record_property):
    """Keep a line for the summary."""
    return lambda text: record_property("figure", text)


def pytest_terminal_summary(terminalreporter):
    reports = [report for kind in ("passed", "failed", "xfailed") for report in terminalreporter.getreports(kind)]
    lines = [
        f"{report.head_line}: {text}" for report in reports for name, text in report.user_properties if name == "figure"
    ]
    if lines:
        terminalreporter.section("figures")
        for line in lines:
            terminalreporter.write_line(line)
