"""Pages from Jinja2 templates; needs the extra ``templates``."""

import inspect
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from microws.errors import FeatureUnavailable

__all__ = ["Templates", "file_of_caller"]


class Templates:
    """
    The templates of one directory. HTML is escaped; templates may call ``url_for``.

    Args:
        directory: Their directory.
        url_for: The app's.
    """

    def __init__(self, directory: Path, *, url_for: Callable[..., str]) -> None:
        self._directory = directory
        self._url_for = url_for

    @cached_property
    def _environment(self) -> Any:
        try:
            import jinja2
        except ImportError:
            raise FeatureUnavailable("templates need Jinja2: pip install jinja2") from None
        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(self._directory), autoescape=jinja2.select_autoescape(default=True)
        )
        environment.globals["url_for"] = self._url_for
        return environment

    def render(self, name: str, context: dict[str, Any]) -> str:
        """
        Fill the template ``name``.

        Raises:
            FeatureUnavailable: Jinja2 is not installed.
            jinja2.TemplateNotFound: The directory has no such file.
        """
        text: str = self._environment.get_template(name).render(context)
        return text


def file_of_caller() -> Path:
    """The file that called this package; without one, ``app`` in the working directory."""
    package = __name__.partition(".")[0]
    frame = inspect.currentframe()
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] == package:
        frame = frame.f_back
    file = frame.f_globals.get("__file__") if frame is not None else None
    return Path(file).resolve() if file else Path.cwd() / "app"
