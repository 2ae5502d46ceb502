"""Files of environment variables: ``KEY=VALUE`` lines, as ``--env-file`` takes them."""

import re
from pathlib import Path

__all__ = ["parse_env_file", "read_env_file"]

_LINE = re.compile(r"(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)\s*=\s*(.*)", re.ASCII)
_QUOTED = re.compile(r"""(?:'([^']*)'|"((?:[^"\\]|\\.)*)")\s*(?:#.*)?""")
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t"}


def parse_env_file(text: str) -> dict[str, str]:
    """
    The variables of an environment file.

    A line is empty, a comment that begins with ``#``, or ``KEY=VALUE``, with ``export`` before it or not. A value in
    single quotes is taken as it stands; in double quotes ``\\n``, ``\\r``, ``\\t`` and a backslash before any other
    character are known; without quotes it ends at `` #`` or the end of the line, spaces around it cut off. Nothing is
    expanded, and no value is longer than its line.

    Raises:
        ValueError: A line that is none of these. The text names the line, and shows no value: it may be a secret.
    """
    variables: dict[str, str] = {}
    for number, raw in enumerate(text.removeprefix("\ufeff").splitlines(), start=1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise ValueError(f"line {number}: expected KEY=VALUE")
        key, value = match.groups()
        if value[:1] in ("'", '"'):
            quoted = _QUOTED.fullmatch(value)
            if quoted is None:
                raise ValueError(f"line {number}: {key}: expected one value in quotes, with nothing behind it")
            single, double = quoted.groups()
            value = single if single is not None else re.sub(r"\\(.)", _unescape, double)
        else:
            value = re.split(r"(?:^|\s)#", value, maxsplit=1)[0].rstrip()
        if "\0" in value:
            raise ValueError(f"line {number}: {key}: a variable cannot hold a NUL")
        variables[key] = value
    return variables


def read_env_file(path: str) -> dict[str, str]:
    """
    The variables of the file at ``path``, UTF-8.

    Raises:
        ValueError: No such file, not UTF-8, or a line that is not understood.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{path}: expected UTF-8") from None
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from None
    try:
        return parse_env_file(text)
    except ValueError as error:
        raise ValueError(f"{path}, {error}") from None


def _unescape(match: re.Match[str]) -> str:
    return _ESCAPES.get(match[1], match[1])
