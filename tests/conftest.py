"""Every async test runs on asyncio and on trio; with the mark ``sockets`` on uvloop as well."""

import os
import signal

import pytest
from hypothesis import HealthCheck, settings

# A shell or a service may have the tests ignore SIGHUP. The programs that they start would inherit this, and a server
# that was started so takes no notice of it.
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# A machine that is busy fails no test: nothing here depends on how long an example takes.
settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
# The same examples each time, so that a change is not held up by what it did not do; `make fuzz` looks for new ones.
settings.register_profile("ci", settings.get_profile("default"), derandomize=True, database=None)
settings.register_profile("long", settings.get_profile("default"), max_examples=5000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "default"))


@pytest.fixture(
    params=[
        pytest.param(("asyncio", {"use_uvloop": False}), id="asyncio"),
        pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop", marks=pytest.mark.uvloop),
        pytest.param(("trio", {}), id="trio"),
    ]
)
def anyio_backend(request):
    return request.param


def pytest_collection_modifyitems(items):
    """
    Leave out uvloop where a test has no sockets.

    Tasks and time-outs are asyncio's there too; what uvloop replaces are transports, threads' wake-ups and signals.
    """
    items[:] = [item for item in items if item.get_closest_marker("sockets") or not item.get_closest_marker("uvloop")]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    """What a test has logged may hold lone surrogates, and a report with one cannot leave a worker of pytest-xdist."""
    report = yield
    report.sections = [(name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections]
    return report
