"""The supervisor, with workers that only pretend to serve and so start fast."""

import os
import re
import selectors
import signal
import sys
import tempfile
import threading
import time

import pytest

from microws.errors import FeatureUnavailable
from microws.server.renewal import Renewal
from microws.server.settings import Settings
from microws.server.supervisor import supervise

# ``number`` counts the starts. The code of a test follows this.
WORKER = """
import os, signal, socket, sys, time

with open("starts", "ab", buffering=0) as starts:
    starts.write(b"x")
    number = starts.tell()

control = socket.socket(fileno=int(os.environ["MICROWS_SUPERVISOR"].split()[1]))
supervisor = os.getppid()

def ready():
    control.send(b'{"app": "fake:app"}\\n')

def ask(name):
    os.kill(supervisor, getattr(signal, name))

def follow():
    control.recv(1)
    sys.exit(0)

"""


@pytest.fixture
def directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(directory, capfd):
    """Supervise workers that do this; the exit code and the lines of the log, without time and process."""

    def run(source, **options):
        (directory / "worker.py").write_text(WORKER + source)
        renewal = Renewal(options.pop("command", [sys.executable, "-S", "worker.py"]))
        try:
            code = supervise(Settings(**{"port": 0, "workers": 2} | options), renewal)
        finally:
            renewal.close()
        lines = capfd.readouterr().err.splitlines()
        return code, [re.sub(r"worker \d+", "worker", line.split(" ", 2)[2]) for line in lines]

    return run


def starts(directory):
    return (directory / "starts").stat().st_size


def test_the_workers_serve_until_a_signal(run, directory):
    code, log = run("if number == 2: ask('SIGTERM')\nready()\nfollow()\n")
    assert code == 0
    assert starts(directory) == 2
    assert log.count("info stopping all workers (Ctrl-C again stops immediately)") == 1
    assert not [line for line in log if line.startswith(("warning", "error"))]


def test_the_urls_are_logged_when_all_workers_serve(run):
    _, log = run("ready()\nif number == 2: time.sleep(0.1); ask('SIGINT')\nfollow()\n")
    assert [line.split(" http")[0] for line in log] == [
        "info worker serves",
        "info microws 0.1.0 serving fake:app on",
        "info stopping all workers (Ctrl-C again stops immediately)",
    ]
    assert log[1].endswith(" with 2 workers (Ctrl-C stops)")


def test_the_signal_handlers_are_restored(run):
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD)
    before = [signal.getsignal(number) for number in numbers]
    run("ask('SIGTERM')\nready()\nfollow()\n")
    assert [signal.getsignal(number) for number in numbers] == before


def test_a_signal_before_the_first_worker_serves_ends_it(run, directory):
    code, log = run("ask('SIGTERM')\ntime.sleep(60)\n")
    assert (code, starts(directory)) == (0, 1)
    assert len(log) == 1


# Workers that die


def test_workers_that_keep_dying_are_started_with_growing_pauses(run, directory):
    code, log = run(
        """
if number == 1:
    ready()
    follow()
if number == 5:
    ask("SIGTERM")
    follow()
sys.exit(9)
"""
    )
    assert code == 0
    assert log[:3] == [
        "error worker ended with exit code 9 before it served; another one is started",
        "error worker ended with exit code 9 before it served; another one is started",
        "error worker ended with exit code 9 before it served; another one is started in 0.5 s",
    ]


def test_a_worker_that_has_served_for_a_while_is_replaced_immediately(run, monkeypatch):
    monkeypatch.setattr("microws.server.supervisor._STABLE_AFTER", 0.0)
    code, log = run("ready()\nif number == 8:\n    ask('SIGTERM')\n    follow()\nos.kill(os.getpid(), 9)\n", workers=1)
    assert code == 0
    deaths = [line for line in log if "SIGKILL" in line]
    assert deaths == ["error worker was killed by SIGKILL; another one is started"] * 7


def test_the_supervisor_gives_up_when_no_worker_starts_any_more(run, directory, monkeypatch):
    monkeypatch.setattr("microws.server.supervisor._FIRST_PAUSE", 0.01)
    code, log = run("if number == 1: ready()\nsys.exit(9)\n")
    assert code == 1
    assert starts(directory) in (6, 7)
    [line] = [line for line in log if line.startswith("critical")]
    assert line.startswith("critical worker ended with exit code 9 before it served: 5 starts have failed")


def test_a_program_that_was_removed_is_a_failed_start(run, directory, monkeypatch):
    monkeypatch.setattr("microws.server.supervisor._FIRST_PAUSE", 0.01)
    program = directory / "program"
    program.symlink_to(sys.executable)
    code, log = run("ready()\nos.unlink('program')\n", workers=1, command=[str(program), "-S", "worker.py"])
    assert (code, starts(directory)) == (1, 1)
    assert re.match(r"error no worker can be started: .*; another one is started", log[-2])
    assert log[-1].startswith("critical no worker can be started: ")


@pytest.mark.parametrize(("code", "lines"), [(1, 0), (2, 0), (3, 0), (0, 1), (9, 1)])
def test_a_first_worker_that_does_not_serve_ends_the_supervisor(run, directory, code, lines):
    result, log = run(f"sys.exit({code})\n")
    assert result == (code if lines == 0 else 1)
    assert log == [f"error worker ended with exit code {code} before it served"] * lines
    assert starts(directory) == 1


def test_a_command_that_does_not_exist_ends_the_supervisor(run):
    code, [line] = run("", command=["./nothing"])
    assert code == 1
    assert line.startswith("error no worker can be started: ")


# Silent workers

# Number 1 sends nothing more; the others stop as soon as they serve.
SILENT = """
ready()
if number == 1:
    time.sleep({seconds})
ask("SIGTERM")
follow()
"""


def test_a_silent_worker_is_replaced(run, directory):
    code, log = run(SILENT.format(seconds=60), workers=1, worker_timeout=1)
    assert code == 0
    assert [line for line in log if line.startswith("error")] == [
        "error worker is killed: it sent nothing for 1 s (--worker-timeout); it is blocked or stopped",
        "error worker was killed by SIGABRT; another one is started",
    ]


def test_without_a_time_out_a_worker_may_be_silent(run, directory):
    code, log = run(SILENT.format(seconds=0.5), workers=1, worker_timeout=0)
    assert (code, starts(directory)) == (0, 1)
    assert not [line for line in log if line.startswith("error")]


def test_a_supervisor_that_was_stopped_itself_kills_no_worker(run, directory, monkeypatch):
    """As with Ctrl-Z, or when the machine sleeps."""
    select = selectors.DefaultSelector.select
    pauses = iter([1.0])

    def late(self, timeout=None):
        events = select(self, timeout)
        if timeout is not None and not events:
            time.sleep(next(pauses, 0.0))
        return events

    monkeypatch.setattr(selectors.DefaultSelector, "select", late)
    # The worker is silent for a second, then the supervisor does not run for one: the worker has its time again.
    source = "ready()\ntime.sleep(2.4)\nask('SIGTERM')\nfollow()\n"
    code, log = run(source, workers=1, worker_timeout=1)
    assert (code, starts(directory)) == (0, 1)
    assert next(pauses, None) is None
    assert not [line for line in log if line.startswith("error")]


# SIGHUP


def test_a_second_sighup_replaces_the_new_workers_too(run, directory):
    code, log = run(
        """
if number in (2, 3):
    ask("SIGHUP")
ready()
if number >= 5:
    time.sleep(0.3)
    ask("SIGTERM")
follow()
"""
    )
    assert code == 0
    # A worker between the two may have been started, or not.
    assert starts(directory) in (5, 6)
    assert log.count("info all 2 workers are new") == 1


def test_many_sighups_start_few_processes_and_the_last_one_wins(run, directory):
    code, log = run(
        """
def count_processes():
    pids = [int(line.split()[1]) for line in open("pids") if line.endswith(".\\n")]
    count = 0
    for pid in pids:
        try:
            os.kill(pid, 0)
            count += 1
        except ProcessLookupError:
            pass
    return count

with open("pids", "ab", buffering=0) as pids:
    pids.write(b"%d %d .\\n" % (number, os.getpid()))
if number == 2:
    ready()
    most = 0
    for hups in range(1, 21):
        ask("SIGHUP")
        while os.path.getsize("starts") < 2 + hups:
            time.sleep(0.001)
        most = max(most, count_processes())
    with open("most.new", "w") as file:
        file.write(str(most))
    os.rename("most.new", "most")
    follow()
while number > 2 and not os.path.exists("most"):
    time.sleep(0.01)
ready()
if number == 23:
    ask("SIGTERM")
follow()
"""
    )
    assert (code, starts(directory)) == (0, 23)
    assert 3 <= int((directory / "most").read_text()) <= 2 * 2 + 1
    assert sum(line.startswith("info SIGHUP") for line in log) == 1
    assert not [line for line in log if line.startswith(("warning", "error"))]


def test_the_old_workers_stay_if_the_new_code_does_not_start(run, directory):
    code, log = run(
        """
if number == 3:
    sys.exit(9)
ready()
if number == 2:
    ask("SIGHUP")
    while os.path.getsize("starts") < 3:
        time.sleep(0.01)
    time.sleep(0.2)
    ask("SIGTERM")
follow()
"""
    )
    assert (code, starts(directory)) == (0, 3)
    assert log[-2].startswith("error worker ended with exit code 9 before it served: the new code does not start")


def test_a_sighup_before_the_first_worker_serves_changes_nothing(run, directory):
    code, _ = run(
        """
if number == 1:
    ask("SIGHUP")
    time.sleep(0.2)
if number == 2:
    ask("SIGTERM")
ready()
follow()
"""
    )
    assert (code, starts(directory)) == (0, 2)


def test_the_end_of_the_terminal_stops_the_supervisor_once(run, monkeypatch):
    is_there = iter([True, False, False])
    monkeypatch.setattr("microws.server.renewal._has_terminal", lambda: next(is_there))
    source = "ready()\nask('SIGHUP')\nassert control.recv(1) == b'2'\nask('SIGHUP')\ntime.sleep(0.1)\nsys.exit(0)\n"
    code, log = run(source, workers=1)
    assert code == 0
    assert log[-1].startswith("info stopping")


# Stopping


@pytest.mark.parametrize(("handler", "signal_name"), [("SIG_DFL", "SIGABRT"), ("SIG_IGN", "SIGKILL")])
def test_a_worker_that_does_not_end_in_time_is_killed(run, monkeypatch, handler, signal_name):
    monkeypatch.setattr("microws.server.supervisor._EXIT_TIMEOUT", 0.1)
    monkeypatch.setattr("microws.server.supervisor._ABORT_TIMEOUT", 0.1)
    source = f"signal.signal(signal.SIGABRT, signal.{handler})\nready()\nask('SIGTERM')\ntime.sleep(60)\n"
    code, log = run(source, workers=1, drain_timeout=0)
    assert code == 1
    assert log[-2:] == ["error worker does not end and is killed", f"error worker was killed by {signal_name}"]


def test_a_worker_sets_the_limit_of_its_next_step(run, monkeypatch):
    monkeypatch.setattr("microws.server.supervisor._EXIT_TIMEOUT", 0.1)
    source = "ready()\nask('SIGTERM')\ncontrol.recv(1)\ncontrol.send(b'60\\n')\ntime.sleep(1.5)\nsys.exit(0)\n"
    code, log = run(source, workers=1, drain_timeout=1)
    assert code == 0
    assert not [line for line in log if line.startswith("error")]


def test_a_worker_that_does_not_serve_in_time_is_killed(run, monkeypatch):
    monkeypatch.setattr("microws.server.supervisor._IMPORT_TIMEOUT", 0.1)
    code, log = run("time.sleep(60)\n", startup_timeout=0)
    assert code == 1
    assert log == ["error worker does not start and is killed", "error worker was killed by SIGKILL before it served"]


def test_the_second_signal_forces_and_the_third_kills(run, monkeypatch):
    monkeypatch.setattr("microws.server.supervisor.REACTION_TIMEOUT", 60)
    code, log = run(
        """
ready()
ask("SIGTERM")
assert control.recv(1) == b"2"
ask("SIGINT")
assert control.recv(1) == b"3"
ask("SIGTERM")
time.sleep(60)
""",
        workers=1,
    )
    assert code == 1
    assert log[-1] == "error worker was killed by SIGKILL"


def test_sigterm_starts_the_stop_delay(run):
    """The supervisor does not kill the workers meanwhile, and ends the delay itself."""
    source = """
ready()
ask("SIGTERM")
assert control.recv(1) == b"1"
assert control.recv(1) == b"2"
sys.exit(0)
"""
    code, log = run(source, workers=1, stop_delay=0.3, drain_timeout=60)
    assert code == 0
    assert log[-2:] == [
        "info stopping all workers in 0.3 s (--stop-delay), not ready from now on (again: now)",
        "info stopping all workers (Ctrl-C again stops immediately)",
    ]


def test_a_second_signal_ends_the_stop_delay_and_the_third_forces(run, monkeypatch):
    monkeypatch.setattr("microws.server.supervisor.REACTION_TIMEOUT", 60)
    source = """
ready()
ask("SIGTERM")
for stage in (b"1", b"2", b"3"):
    assert control.recv(1) == stage
    ask("SIGTERM")
time.sleep(60)
"""
    code, log = run(source, workers=1, stop_delay=60, drain_timeout=60)
    assert code == 1
    assert log[-1] == "error worker was killed by SIGKILL"


def test_ctrl_c_has_no_stop_delay(run):
    source = "ready()\nask('SIGINT')\nassert control.recv(1) == b'2'\nsys.exit(0)\n"
    assert run(source, workers=1, stop_delay=60)[0] == 0


def test_a_worker_that_does_not_react_to_the_second_signal_is_killed(run):
    """Within a second: its event loop is blocked."""
    source = "ready()\nask('SIGINT')\ncontrol.recv(1)\nask('SIGINT')\ntime.sleep(60)\n"
    code, log = run(source, workers=1, drain_timeout=60)
    assert code == 1
    assert log[-2:] == ["error worker does not end and is killed", "error worker was killed by SIGABRT"]


def test_a_worker_that_fails_at_its_end_is_exit_code_1(run):
    code, log = run("ready()\nask('SIGTERM')\ncontrol.recv(1)\nsys.exit(1)\n", workers=1)
    assert code == 1
    assert log[-1] == "error worker ended with exit code 1"


def test_a_signal_without_a_name_is_logged_by_number(run):
    code, log = run("os.kill(os.getpid(), signal.SIGRTMIN + 1)\n")
    assert code == 1
    assert log == [f"error worker was killed by signal {signal.SIGRTMIN + 1} before it served"]


# Unsupported


def test_supervise_needs_the_main_thread():
    errors = []

    def main():
        try:
            supervise(Settings(port=0, workers=2), Renewal(["true"]))
        except RuntimeError as error:
            errors.append(str(error))

    thread = threading.Thread(target=main)
    thread.start()
    thread.join(10)
    [message] = errors
    assert message.startswith("several workers need the main thread")


def test_supervise_needs_unix(monkeypatch):
    monkeypatch.delattr("signal.pthread_sigmask")
    renewal = Renewal(["true"])
    with pytest.raises(FeatureUnavailable, match="--workers 1"):
        supervise(Settings(port=0, workers=2), renewal)
    renewal.close()


def test_an_address_that_is_not_available_is_exit_code_1(run):
    code, [line] = run("", port=None, bind="fd://999")
    assert code == 1
    assert "fd://999 is not a socket of this process" in line


# The hub process


def test_a_directory_of_the_hub_that_cannot_be_used_ends_the_server_and_is_logged_once(run):
    source = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
control.send(b'{"hub": ["/dev/null/hub", 65536]}\\n')
control.recv(1)
ready()
time.sleep(0.3)
"""
    code, log = run(source)
    assert code == 1
    assert [line for line in log if "hub" in line] == [
        "error cannot use /dev/null/hub for the hub: [Errno 20] Not a directory: '/dev/null/hub'"
    ]


@pytest.mark.parametrize(
    ("path", "size", "warnings"), [("hub", 1 << 16, 0), ("hub", 1 << 17, 1), ("other", 1 << 16, 1)]
)
def test_new_code_with_another_hub_is_logged(run, directory, path, size, warnings):
    source = f"""
path, size = ("hub", 1 << 16) if number == 1 else ({path!r}, {size})
control.send(b'{{"hub": ["%s/%s", %d]}}\\n' % ({str(directory)!r}.encode(), path.encode(), size))
ready()
if number == 2:
    time.sleep(0.2)
    ask("SIGTERM")
follow()
"""
    code, log = run(source)
    assert code == 0
    text = (
        "warning the new code has another hub= or history_bytes=; until the server is started again, they stay "
        f"local:{directory}/hub and 65536"
    )
    assert log.count(text) == warnings
    assert not [line for line in log if line.startswith("warning") and line != text]


def test_a_hub_process_that_cannot_be_started_ends_the_server(run, monkeypatch, directory):
    def fail():
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", fail)
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    code, log = run("control.send(b'{\"hub\": [null, 65536]}\\n')\nfollow()\n")
    assert code == 1
    assert log == ["error no hub process can be started: [Errno 11] Resource temporarily unavailable"]
    assert not list(directory.glob("microws-*"))


def test_a_server_without_a_temporary_directory_serves_what_needs_none(run, monkeypatch):
    def fail():
        raise FileNotFoundError(2, "No usable temporary directory found")

    with monkeypatch.context() as patched:
        patched.setattr(tempfile, "gettempdir", fail)
        code, _ = run("if number == 2: ask('SIGTERM')\nready()\nfollow()\n")
    assert code == 0
