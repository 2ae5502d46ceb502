"""``microws bench``: runs the measurement, and prints what came of it."""

import asyncio
import json
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Final

from microws.bench.plan import Plan
from microws.bench.report import DONE, as_json, as_text
from microws.bench.result import Result
from microws.bench.run import Progress, measure
from microws.bench.verdict import problem_with
from microws.cli.bench_options import bench_plan
from microws.cli.progress import Bar

__all__ = ["bench"]

_FAILED: Final = 1
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


def bench(flags: Mapping[str, Any]) -> int:
    """
    Measure, and print a table or JSON on stdout, and a bar and what went wrong on stderr.

    Ctrl-C ends the run, and prints what there is so far; another one ends at once.

    Args:
        flags: What the parser made of the command line.

    Returns:
        0 when it was measured without an error, else 1.

    Raises:
        UsageError: A mistake in the flags.
    """
    plan = bench_plan(flags)
    _allow_many_files()
    bar = Bar(sys.stderr, words=DONE[plan.mode])
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            result = runner.run(_run(plan, bar.show))
    except asyncio.CancelledError:
        bar.clear()
        sys.stderr.write("error: interrupted\n")
        return _FAILED
    finally:
        bar.clear()
    problem = problem_with(result)
    if "json" in flags:
        print(json.dumps(as_json(result)))
    elif result.seconds:
        print(as_text(result))
    if problem is None:
        return 0
    sys.stdout.flush()
    sys.stderr.write(f"error: {problem}\n")
    return _FAILED


async def _run(plan: Plan, told: Callable[[Progress], None]) -> Result:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None

    def interrupted() -> None:
        if stop.is_set():
            task.cancel()
        stop.set()

    # Not in a thread, and not on Windows: there Ctrl-C ends it as it ends any program.
    with suppress(NotImplementedError, RuntimeError, ValueError):
        for number in _SIGNALS:
            loop.add_signal_handler(number, interrupted)
    try:
        return await measure(plan, told=told, stop=stop)
    finally:
        # uvloop's outlive their loop.
        with suppress(NotImplementedError, RuntimeError, ValueError):
            for number in _SIGNALS:
                loop.remove_signal_handler(number)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    if find_spec("uvloop") is None:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = import_module("uvloop").new_event_loop
    return factory


def _allow_many_files() -> None:
    """Every connection is an open file: take as many as this user may have."""
    with suppress(ImportError, OSError, ValueError):
        resource = import_module("resource")
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
