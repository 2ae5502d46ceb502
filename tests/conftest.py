"""Every async test runs on asyncio and on trio; with the mark ``sockets`` on uvloop as well."""

import gc
import os
import signal
import sys
from pathlib import Path

import certifi
import pytest
from hypothesis import HealthCheck, settings

# What imports and collection make lives until the end: without the garbage collector they take a quarter less time, and
# its later runs leave these objects out (`gc.freeze()` below).
gc.disable()

# Each client of httpx reads the authorities of certifi: 57 ms, more than most tests take. No test asks their servers.
certifi.where = lambda: str(Path(__file__).parent / "tls" / "localhost.pem")

# A shell or a service may start the tests with SIGHUP ignored. Servers that the tests start would inherit it.
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# A busy machine must not fail a test, so examples have no deadline. `make fuzz` searches longer.
settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=50)
# CI has the same examples each time, so that it fails for what a change did.
settings.register_profile("ci", settings.get_profile("default"), max_examples=100, derandomize=True, database=None)
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


@pytest.fixture
def directory(tmp_path, monkeypatch):
    """An empty current directory; whatever is imported from it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    for name in list(os.environ):
        if name.startswith(("MICROWS_", "PORT", "WEB_CONCURRENCY")):
            monkeypatch.delenv(name)
    known = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - known:
        file = getattr(sys.modules[name], "__file__", None)
        if file is None or Path(file).is_relative_to(tmp_path):
            del sys.modules[name]


def pytest_collection_modifyitems(items):
    """
    Leave out uvloop where a test has no sockets.

    Tasks and time-outs are asyncio's there too; what uvloop replaces are transports, threads' wake-ups and signals.
    """
    items[:] = [item for item in items if item.get_closest_marker("sockets") or not item.get_closest_marker("uvloop")]
    gc.freeze()
    gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    """Escape lone surrogates in a test's log: a worker of pytest-xdist cannot send them in a report."""
    report = yield
    report.sections = [(name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections]
    return report
