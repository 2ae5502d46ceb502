"""
Runs Autobahn's fuzzing client, hundreds of right and wrong conversations, against ``microws run``.

    python tests/autobahn/run.py             the cases of every change: half a minute
    python tests/autobahn/run.py --full      every case: 20 minutes
    python tests/autobahn/run.py 9.* 12.1.*  these

The client is a program for Python 2.7. Where there is none this fails in CI, and says so elsewhere.
"""

import argparse
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import venv
from collections import Counter
from contextlib import contextmanager
from html import unescape
from pathlib import Path

HERE = Path(__file__).parent
WORK = HERE.parents[1] / "build" / "autobahn"

TESTSUITE = "autobahntestsuite==25.10.1"
# The last ones that can make an environment for Python 2.7.
VIRTUALENV = "virtualenv<20.22"

# Cases 9 are about speed, 12 and 13 about compression: 18 sizes of message a group, 1,000 messages a size.
# Of each group that every change is tried with: 16 bytes, 4 KiB, and 4 KiB in fragments of 256 bytes.
QUICK = [
    *(f"{number}.*" for number in (1, 2, 3, 4, 5, 6, 7, 10)),
    *(f"{group}.{size}" for group in ("12.1", "12.2", "12.3", "13.1", "13.2") for size in (1, 5, 11)),
]
FULL = [*(f"{number}.*" for number in (1, 2, 3, 4, 5, 6, 7, 9, 10, 12, 13))]
COMPRESSION = ("12", "13")

# Seconds that the fuzzing client may take, and the server to end.
LIMIT = 40 * 60
STOP_LIMIT = 20

PASSED = ("OK", "NON-STRICT", "INFORMATIONAL")
MAX_NON_STRICT = 7


def main():
    parser = argparse.ArgumentParser(description="Run Autobahn's fuzzing client against microws run.")
    parser.add_argument("--full", action="store_true", help="every case, in place of those for every change")
    parser.add_argument("--loop", default="auto", help="of the server: auto (default), asyncio, uvloop, trio")
    parser.add_argument("cases", nargs="*", help="such as 6.4.1 or 9.*")
    arguments = parser.parse_args()
    python = find_python_2()
    if python is None:
        print("Autobahn needs Python 2.7, which is neither $PYTHON2 (python2.7) nor in pyenv: no case was run")
        return 1 if os.environ.get("CI") == "true" else 0
    wstest = make_environment(python)
    patterns = arguments.cases or (FULL if arguments.full else QUICK)
    is_right = True
    for factory, chosen in (
        ("plain", [pattern for pattern in patterns if pattern.split(".")[0] not in COMPRESSION]),
        ("compressed", [pattern for pattern in patterns if pattern.split(".")[0] in COMPRESSION]),
    ):
        if chosen:
            is_right &= run_cases(wstest, factory, chosen, loop=arguments.loop)
    return 0 if is_right else 1


def find_python_2():
    """A Python 2.7 that runs; pyenv's own commands do so only where a version is chosen."""
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    candidates = [shutil.which(os.environ.get("PYTHON2", "python2.7")), *sorted(versions.glob("2.7*/bin/python2.7"))]
    for candidate in filter(None, candidates):
        command = [candidate, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        if answer.stdout.strip() == "2.7":
            return candidate
    return None


def make_environment(python):
    """The fuzzing client's program, installed when it is not there yet."""
    environment = WORK / "python2.7"
    ready = environment / "ready"
    if not ready.exists() or ready.read_text() != TESTSUITE:
        print(f"installing {TESTSUITE} for {python}: a minute, once", flush=True)
        began = time.monotonic()
        shutil.rmtree(WORK, ignore_errors=True)
        venv.create(WORK / "maker", with_pip=True)
        maker = WORK / "maker" / "bin" / "python"
        install(maker, VIRTUALENV)
        subprocess.run([maker, "-m", "virtualenv", "--quiet", "--python", python, environment], check=True)
        install(environment / "bin" / "python", TESTSUITE)
        ready.write_text(TESTSUITE)
        print(f"installed in {time.monotonic() - began:.0f} s")
    return environment / "bin" / "wstest"


def install(python, package):
    command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", package]
    # What pip says is of use only where it fails.
    answer = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if answer.returncode != 0:
        sys.exit(f"{package} cannot be installed:\n{answer.stdout}")


def run_cases(wstest, factory, patterns, *, loop):
    """Whether the server passes the cases; prints what they found."""
    reports = WORK / "reports" / factory
    shutil.rmtree(reports, ignore_errors=True)
    reports.mkdir(parents=True)
    began = time.monotonic()
    with serving(factory, reports / "server.log", loop=loop) as port:
        chosen = run_client(wstest, reports, patterns, port)
    seconds = time.monotonic() - began
    results = read_results(reports)
    print(f"\nAutobahn cases {' '.join(patterns)} ({factory}): {len(results)} in {seconds:.0f} s")
    is_right = print_summary(results)
    if len(results) != chosen:
        print(f"  {chosen} cases were to be run, {len(results)} have a result; see {reports / 'server.log'}")
        is_right = False
    print(f"  {'passed' if is_right else 'NOT PASSED'}; report: {reports / 'index.html'}", flush=True)
    return is_right


@contextmanager
def serving(factory, log, *, loop):
    """The port at which ``microws run`` serves the echo."""
    with socket.create_server(("127.0.0.1", 0)) as sock, log.open("w") as output:
        # The client's connections wait in the socket until the server is ready.
        port = sock.getsockname()[1]
        command = [sys.executable, "-m", "microws", "run", f"echo:{factory}()", "--app-dir", str(HERE), "--loop", loop]
        server = subprocess.Popen(
            [*command, "--bind", f"fd://{sock.fileno()}", "--no-access-log"],
            pass_fds=[sock.fileno()],
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield port
    finally:
        server.terminate()
        try:
            code = server.wait(STOP_LIMIT)
        finally:
            server.kill()
    if code != 0:
        sys.exit(f"the server ended with {code}:\n{log.read_text()}")


def run_client(wstest, reports, patterns, port):
    """Run the cases; how many there are of these patterns."""
    specification = reports / "cases.json"
    specification.write_text(
        json.dumps(
            {
                "outdir": str(reports),
                "servers": [{"agent": "microws", "url": f"ws://127.0.0.1:{port}"}],
                "cases": patterns,
                "exclude-cases": [],
                "exclude-agent-cases": {},
            }
        )
    )
    log = reports / "client.log"
    with log.open("w") as output:
        command = [wstest, "--mode", "fuzzingclient", "--spec", specification]
        # It writes beside its reports, too.
        subprocess.run(command, cwd=reports, stdout=output, stderr=subprocess.STDOUT, timeout=LIMIT, check=False)
    said = re.search(r"will run (\d+) test cases", log.read_text())
    if said is None:
        sys.exit(f"the fuzzing client did not start:\n{log.read_text()}")
    return int(said[1])


def read_results(reports):
    """The result of each case, in their order."""
    index = reports / "index.json"
    results = json.loads(index.read_text())["microws"] if index.exists() else {}
    found = [json.loads((reports / result["reportfile"]).read_text()) for result in results.values()]
    return sorted(found, key=lambda result: [int(number) for number in result["id"].split(".")])


def print_summary(results):
    """Whether no case failed, and few were passed with leniency."""
    for aspect in ("behavior", "behaviorClose"):
        counts = Counter(result[aspect] for result in results)
        failed = sum(count for name, count in counts.items() if name not in PASSED)
        print(f"  {aspect:14}" + "".join(f"  {name} {counts[name]}" for name in PASSED) + f"  FAILED {failed}")
    failures = [result for result in results if not {result["behavior"], result["behaviorClose"]} <= set(PASSED)]
    for result in failures:
        print(f"  {result['id']} {result['behavior']}, at the close {result['behaviorClose']}")
        for name in ("description", "expectation", "result", "resultClose"):
            print(f"    {name}: {as_text(result[name])}")
    lenient = [result["id"] for result in results if "NON-STRICT" in (result["behavior"], result["behaviorClose"])]
    if lenient:
        print(f"  NON-STRICT, at most {MAX_NON_STRICT} allowed: {' '.join(lenient)}")
    return not failures and len(lenient) <= MAX_NON_STRICT


def as_text(markup):
    """The text of a description, which has a little HTML, on one line."""
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", markup or "")).split())


if __name__ == "__main__":
    sys.exit(main())
