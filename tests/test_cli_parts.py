"""``microws run`` in this process: sources of options, environment files, finding the app, exit codes."""

import signal
import socket
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microws import App, __version__
from microws.cli import main
from microws.cli.discovery import LoadError, find_app
from microws.cli.options import parse_env_file, read_env_file, resolve, run_parser, unknown_variables
from microws.cli.usage import UsageError
from microws.server.settings import SETTINGS


def write(directory, **files):
    for name, text in files.items():
        (directory / f"{name}.py").write_text(text)


# Where options come from


OUTER = "local:/outer"


@pytest.mark.parametrize(
    ("variables", "flags", "expected"),
    [
        ({"MICROWS_HUB": OUTER}, [], OUTER),
        ({"MICROWS_HUB": OUTER, "MICROWS_INHERITED_HUB": OUTER}, [], None),
        ({"MICROWS_HUB": OUTER, "MICROWS_INHERITED_HUB": OUTER}, ["--hub", OUTER], OUTER),
        ({"MICROWS_HUB": "local:/own", "MICROWS_INHERITED_HUB": OUTER}, [], "local:/own"),
        ({"MICROWS_INHERITED_HUB": OUTER}, [], None),
        ({"MICROWS_HUB": OUTER, "MICROWS_INHERITED_HUB": OUTER}, ["--env-file", "own"], "local:/own"),
        ({"MICROWS_HUB": OUTER, "MICROWS_INHERITED_HUB": OUTER}, ["--env-file", "outer"], None),
        ({"MICROWS_HUB": OUTER}, ["--env-file", "own"], OUTER),
    ],
)
def test_the_hub_of_a_server_above_is_not_an_option(directory, variables, flags, expected):
    (directory / "own").write_text("MICROWS_HUB=local:/own")
    (directory / "outer").write_text(f"MICROWS_HUB={OUTER}")
    assert given_by(*flags, environ=variables).settings.hub == expected
    assert unknown_variables(variables) == []


def given_by(*arguments, environ=None):
    return resolve(vars(run_parser().parse_args(arguments)), {} if environ is None else environ)


def pyproject(directory, text):
    (directory / "pyproject.toml").write_text(f"[tool.microws]\n{text}\n")


def test_the_defaults_without_any_option(directory):
    invocation = given_by()
    assert (invocation.app, invocation.factory, invocation.app_dir) == (None, False, directory)
    assert [str(address) for address in invocation.settings.addresses] == ["127.0.0.1:8000"]
    assert (invocation.settings.drain_timeout, invocation.settings.ping_interval) == (10, 20)
    assert (invocation.settings.log_level, invocation.settings.log_format) == ("info", "text")
    assert invocation.settings.access_log
    assert invocation.settings.workers == 1


@pytest.mark.parametrize(
    ("flag", "variable", "toml", "name", "values"),
    [
        ("--loop=trio", "uvloop", '"asyncio"', "loop", ["trio", "uvloop", "asyncio"]),
        ("--certfile=a", "b", '"c"', "certfile", ["a", "b", "c"]),
        ("--root-path=/a", "/b", '"/c"', "root_path", ["/a", "/b", "/c"]),
        ("--ping-interval=1", "2", "3", "ping_interval", [1, 2, 3]),
        ("--max-message-size=1KiB", "2kib", "3", "max_message_size", [1024, 2048, 3]),
        ("--drain-timeout=1", "2", "3.5", "drain_timeout", [1, 2, 3.5]),
        ("--log-level=error", "DEBUG", '"warning"', "log_level", ["error", "debug", "warning"]),
        ("--log-format=json", "text", '"json"', "log_format", ["json", "text", "json"]),
        ("--no-access-log", "1", "false", "access_log", [False, True, False]),
        ("--access-log", "off", "true", "access_log", [True, False, True]),
        ("--max-head-size=8KiB", "9000", '"32KiB"', "max_head_size", [8192, 9000, 32768]),
        ("--unix-mode=600", "0666", "0o640", "unix_mode", [0o600, 0o666, 0o640]),
        ("--server=hypercorn", "microws", '"hypercorn"', "server", ["hypercorn", "microws", "hypercorn"]),
    ],
)
def test_a_flag_beats_a_variable_beats_pyproject(directory, flag, variable, toml, name, values):
    pyproject(directory, f"{name.replace('_', '-')} = {toml}")
    environ = {f"MICROWS_{name.upper()}": variable}
    found = [
        getattr(given_by(flag, environ=environ).settings, name),
        getattr(given_by(environ=environ).settings, name),
        getattr(given_by().settings, name),
    ]
    assert found == values


def addresses(*arguments, **environ):
    return [str(address) for address in given_by(*arguments, environ=environ).settings.addresses]


def test_bind_host_and_port_of_a_higher_level_win_over_those_of_a_lower_one(directory):
    pyproject(directory, 'bind = ["a:1", "unix:x"]')
    assert addresses() == ["a:1", "unix:x"]
    assert addresses(PORT="2") == ["127.0.0.1:2"]
    assert addresses(PORT="2", MICROWS_PORT="3") == ["127.0.0.1:3"]
    assert addresses(PORT="2", MICROWS_BIND="b:4,c:5") == ["b:4", "c:5"]
    assert addresses("--host", "d", PORT="2") == ["d:2"]
    assert addresses("--port", "6", MICROWS_BIND="b:4") == ["127.0.0.1:6"]
    assert addresses("--bind", "e:7", "--bind", "f:8", PORT="2") == ["e:7", "f:8"]
    pyproject(directory, 'host = "g"')
    assert addresses("--port", "6") == ["g:6"]
    assert addresses(PORT="") == ["g:8000"]


def test_an_empty_variable_does_not_count(directory):
    assert given_by(environ={"MICROWS_LOOP": "", "WEB_CONCURRENCY": ""}).settings.loop == "auto"


def test_the_app_is_named_by_argument_then_pyproject_then_variable(directory):
    environ = {"MICROWS_APP": "c"}
    assert given_by(environ=environ).app == "c"
    pyproject(directory, 'app = "b"\nfactory = true\napp_dir = "."')
    assert given_by(environ=environ).app == "b"
    assert given_by("a", environ=environ).app == "a"
    assert given_by().factory
    assert not given_by("--no-factory").factory


def test_an_env_file_adds_missing_variables(directory):
    (directory / "my.env").write_text("MICROWS_PORT=1\nMICROWS_HOST=h\nSECRET=s\n")
    environ = {"MICROWS_PORT": "2", "MICROWS_ENV_FILE": str(directory / "my.env")}
    assert given_by(environ=environ).settings.addresses[0] == ("h", 2)
    assert environ["SECRET"] == "s"


@pytest.mark.parametrize(
    ("arguments", "environ", "toml", "message"),
    [
        (["--port", "x"], {}, "", "--port: expected a port, 0 to 65535, got 'x'"),
        (["--drain-timeout=-1"], {}, "", "--drain-timeout: expected seconds, 0 or more, got '-1'"),
        ([], {"MICROWS_PING_INTERVAL": "x"}, "", "MICROWS_PING_INTERVAL: expected seconds, 0 or more, got 'x'"),
        ([], {"PORT": "x"}, "", "PORT: expected a port, 0 to 65535, got 'x'"),
        ([], {}, "port = []", "pyproject.toml, [tool.microws] port: expected a port, 0 to 65535, got []"),
        ([], {}, "app = 1", "pyproject.toml, [tool.microws] app: expected a text that is not empty, got 1"),
        ([], {}, "factory = 1", "pyproject.toml, [tool.microws] factory: expected true or false, got 1"),
        ([], {}, "prot = 1", "pyproject.toml: [tool.microws] has no key 'prot'; did you mean 'port'?"),
        ([], {}, "ws-max-size = 1", "[tool.microws] has no key 'ws-max-size'; did you mean 'max-message-size'?"),
        ([], {}, "startup-timeout = -1", "pyproject.toml, [tool.microws] startup-timeout: expected seconds, 0 or more"),
        (["--bind", "a:1", "--port", "1"], {}, "", "expected either --bind or --port, got both; leave out one of them"),
        (
            [],
            {},
            'bind = "a:1"\nhost = "b"',
            "expected either pyproject.toml, [tool.microws] bind or pyproject.toml, [tool.microws] host, got both",
        ),
        (["--keyfile", "k"], {}, "", "--keyfile: expected --certfile too, got the key alone; add the certificate"),
        ([], {"MICROWS_KEYFILE": "k"}, "", "MICROWS_KEYFILE: expected --certfile too, got the key alone"),
        (["--max-head-size", "10"], {}, "", "--max-head-size: expected a size from 1KiB to 1MiB, got '10'"),
        (
            ["--server=hypercorn", "--write-timeout=5"],
            {},
            "",
            "--write-timeout: expected no value with the server hypercorn, which has no such limit, got 5; leave",
        ),
        (["--loop=trio"], {"MICROWS_BODY_TIMEOUT": "0"}, "", "MICROWS_BODY_TIMEOUT: expected no value with the server"),
        (["--loop=trio"], {}, "ping-timeout = 0", "pyproject.toml, [tool.microws] ping-timeout: expected no value"),
        (["--app-dir", "none"], {}, "", "--app-dir: expected a directory that exists, got 'none'"),
        (["--env-file", "none"], {}, "", "--env-file: none: No such file or directory"),
        (["--workers", "0"], {}, "", "--workers: expected a number of workers, 1 to 1024, got '0'"),
        ([], {"MICROWS_WORKERS": "1e3"}, "", "MICROWS_WORKERS: expected a number of workers, 1 to 1024, got '1e3'"),
        ([], {}, "workers = true", "[tool.microws] workers: expected a number of workers, 1 to 1024, got True"),
        ([], {"WEB_CONCURRENCY": "x"}, "", "WEB_CONCURRENCY: expected a number of workers"),
        (
            ["--forwarded-allow-ips", "proxy"],
            {},
            "",
            '--forwarded-allow-ips: expected IP addresses, networks such as 10.0.0.0/8, "unix" or "*", got \'proxy\'',
        ),
        (["--server", "uvicorn"], {}, "", "--server: expected microws or hypercorn, got 'uvicorn'; leave it out"),
        ([], {}, "unix-mode = 660", "[tool.microws] unix-mode: expected the octal mode of a socket file, 0 to 0777"),
        ([], {}, "http2-websockets = true", "no key 'http2-websockets'; leave it out: WebSockets are served over HTTP"),
        (
            ["--server=microws", "--loop=trio"],
            {},
            "",
            "--loop: expected auto, asyncio or uvloop with the server microws",
        ),
        (["--server=microws", "--loop=trio"], {}, "", "got 'trio'; for trio set --server to hypercorn"),
        (["--loop"], {}, "", "--loop: expected one argument; see microws run --help"),
    ],
)
def test_an_invalid_option_is_one_line_that_names_its_source(directory, arguments, environ, toml, message):
    if toml:
        pyproject(directory, toml)
    with pytest.raises(UsageError) as error:
        given_by(*arguments, environ=environ)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_the_number_of_workers_may_come_from_the_platform(directory):
    assert given_by().settings.workers == 1
    assert given_by(environ={"WEB_CONCURRENCY": "4"}).settings.workers == 4
    assert given_by(environ={"WEB_CONCURRENCY": "4", "MICROWS_WORKERS": "3"}).settings.workers == 3
    assert given_by("--workers", "2", environ={"MICROWS_WORKERS": "3"}).settings.workers == 2


def test_an_invalid_pyproject_is_named(directory):
    (directory / "pyproject.toml").write_text("[tool.microws\n")
    with pytest.raises(UsageError, match=r"^pyproject\.toml: "):
        given_by()
    (directory / "pyproject.toml").write_text("tool = 3\nproject = 3\n")
    assert given_by().app is None
    (directory / "pyproject.toml").write_text("[tool]\nmicrows = 'chat:app'\n")
    with pytest.raises(UsageError, match=r"^pyproject\.toml: expected a table \[tool\.microws\], got 'chat:app'$"):
        given_by()


def test_an_unknown_variable_is_named_with_the_nearest_option():
    names = ("MICROWS_LOGLEVEL", "MICROWS_RELOAD", "MICROWS_PORT", "MICROWS_APP", "MICROWS_Host", "HOME")
    assert unknown_variables(dict.fromkeys(names, "1")) == [
        "MICROWS_Host is not an option; did you mean 'MICROWS_HOST'?",
        "MICROWS_LOGLEVEL is not an option; did you mean 'MICROWS_LOG_LEVEL'?",
        "MICROWS_RELOAD is not an option; to reload the app when a file changes: microws dev",
    ]


# Environment files


@pytest.mark.parametrize(
    ("line", "variables"),
    [
        ("", {}),
        ("  # comment", {}),
        ("A=1", {"A": "1"}),
        ("export A=1", {"A": "1"}),
        (" A = 1 ", {"A": "1"}),
        ("A=", {"A": ""}),
        ("A=a b # comment", {"A": "a b"}),
        ("A=a#b", {"A": "a#b"}),
        ("A=#b", {"A": ""}),
        ("A=$B ${C}", {"A": "$B ${C}"}),
        ("A='a # b\\n'", {"A": "a # b\\n"}),
        (r'A="a # \"b\"\n\t\r\\\$"  # comment', {"A": 'a # "b"\n\t\r\\$'}),
        ("A=b=c", {"A": "b=c"}),
        ("A=1\nA=2\r\nB=3", {"A": "2", "B": "3"}),
        ("\ufeffA=ä", {"A": "ä"}),
        ("export=1", {"export": "1"}),
    ],
)
def test_a_line_of_an_env_file(line, variables):
    assert parse_env_file(line) == variables


@pytest.mark.parametrize(
    "line", ["A", "=1", "1A=1", "A B=1", "A-B=1", "Ä=1", "A='b", 'A="b', "A='b' c", 'A="\\"', "A='b'c'", "A=\0"]
)
def test_an_invalid_line_of_an_env_file_is_named_without_its_value(line):
    with pytest.raises(ValueError, match=r"^line 2: ") as error:
        parse_env_file(f"OK=1\n{line.replace('b', 'secret')}")
    assert "secret" not in str(error.value)


@given(st.text())
def test_any_text_is_variables_or_a_value_error(text):
    try:
        variables = parse_env_file(text)
    except ValueError:
        return
    assert all(key.isascii() and key.isidentifier() for key in variables)


@given(st.dictionaries(st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,9}", fullmatch=True), st.text("ab '\"\\#\t\n$=é")))
def test_values_in_double_quotes_round_trip(variables):
    escaped = {
        key: value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n") for key, value in variables.items()
    }
    assert parse_env_file("\n".join(f'{key}="{value}"' for key, value in escaped.items())) == variables


def test_an_unreadable_env_file_is_named(tmp_path):
    path = tmp_path / "my.env"
    with pytest.raises(ValueError, match="No such file"):
        read_env_file(str(path))
    path.write_bytes(b"A=\xff")
    with pytest.raises(ValueError, match="expected UTF-8"):
        read_env_file(str(path))
    path.write_text("A")
    with pytest.raises(ValueError, match=r"my\.env, line 1: expected KEY=VALUE"):
        read_env_file(str(path))


# Finding the app

APP = "from microws import App\napp = App()\n"
RUN = "microws run"
NOT_ASGI = "which does not take scope, receive and send, as ASGI 3 apps do"
ASGI = "async def application(scope, receive, send): ...\nclass Nothing: ...\n"


def find(directory, name=None, *, factory=False):
    return find_app(name, factory=factory, app_dir=directory)


@pytest.mark.parametrize(
    ("argument", "name"),
    [
        ("chat:app", "chat:app"),
        ("chat", "chat:app"),
        ("chat.py", "chat:app"),
        ("./chat.py:app", "chat:app"),
        ("chat:create()", "chat:create()"),
        ("chat:holder.app", "chat:holder.app"),
        ("bare:application", "bare:application"),
        ("bare", "bare:application"),
        ("odd", "odd:server"),
        ("shop.web:app", "shop.web:app"),
        ("shop/web.py", "shop.web:app"),
    ],
)
def test_an_app_is_found_by_each_form_of_its_name(directory, argument, name):
    write(
        directory,
        chat=f"{APP}def create(): return app\nclass holder: app = app\n",
        bare=ASGI,
        odd="from microws import App\nserver = same = App()\napp = 1\n",
    )
    (directory / "shop").mkdir()
    write(directory / "shop", __init__="", models="x = 1", web=f"from .models import x\n{APP}")
    found, app = find(directory, argument)
    assert found == name
    assert callable(app)
    assert sys.path[0] == str(directory)


def test_a_factory_is_called(directory):
    write(directory, chat=f"{APP}def create(): return app\n")
    name, app = find(directory, "chat:create", factory=True)
    assert (name, type(app)) == ("chat:create", App)
    with pytest.raises(LoadError, match="write: microws run chat:create_app --factory"):
        find(directory, "chat", factory=True)


@pytest.mark.parametrize("place", ["app", "main", "asgi"])
def test_without_a_name_the_one_app_is_found(directory, place):
    write(directory, **{"app": "x = 1\n", "main": "x = 1\n"} | {place: "from microws import App\nserver = App()\n"})
    assert find(directory)[0] == f"{place}:server"


def test_without_a_name_and_an_app_the_error_says_where_it_looked(directory):
    with pytest.raises(LoadError, match=r"no app\.py, main\.py, asgi\.py in .*name it: microws run chat:app"):
        find(directory)
    write(directory, main=ASGI)
    with pytest.raises(LoadError, match=r"no App in main\.py; name it: microws run chat:app"):
        find(directory)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("chta:app", "no module 'chta' in DIR; did you mean: microws run chat:app"),
        ("chta:app()", "no module 'chta' in DIR; did you mean: microws run 'chat:app()'"),
        ("chta", "no module 'chta' in DIR; did you mean: microws run chat"),
        ("Chat:app", "no module 'Chat' in DIR; did you mean: microws run chat:app"),
        ("zzz:app", "no module 'zzz' in DIR"),
        ("shop.wbe:app", "no module 'shop.wbe' in DIR; did you mean: microws run shop.web:app"),
        ("shpo.web:app", "no module 'shpo' in DIR; did you mean: microws run shop.web:app"),
        ("web:server", "no module 'web' in DIR; did you mean: microws run shop.web:server"),
        ("chat.app", "no module 'chat.app' in DIR; did you mean: microws run chat:app"),
        ("chat.pyy", "no module 'chat.pyy' in DIR; did you mean: microws run chat"),
        ("cht.app", "no module 'cht' in DIR; did you mean: microws run chat"),
        ("cht.py", "no file cht.py in DIR; did you mean: microws run chat.py"),
        ("cht.py:app", "no file cht.py in DIR; did you mean: microws run chat.py:app"),
        ("none/cht.py", "no file none/cht.py in DIR"),
        ("chat**", "no file chat** in DIR; did you mean: microws run chat.py"),
        ("shop/wbe.py:app", "no file shop/wbe.py in DIR; did you mean: microws run shop/web.py:app"),
        ("web.py", "no file web.py in DIR; did you mean: microws run shop/web.py"),
        ("two-rooms:app", "no file two-rooms in DIR; did you mean: microws run two-rooms.py:app"),
        ("./shop", "./shop is a directory; to serve the app in it: microws run --app-dir ./shop"),
        (".", ". is a directory; to serve the app in it: microws run --app-dir ."),
        ("json.py", "json.py is hidden by another module 'json', JSON: rename it"),
        ("chat:ap", "chat has no attribute 'ap'; did you mean: microws run chat:app"),
        ("chat.py:ap", "chat.py has no attribute 'ap'; did you mean: microws run chat.py:app"),
        ("chat:APP", "chat has no attribute 'APP'; did you mean: microws run chat:app"),
        ("chat:zzz", "chat has no attribute 'zzz'; did you mean: microws run chat:app"),
        ("chat:creat()", "chat has no attribute 'creat'; did you mean: microws run 'chat:create()'"),
        ("chat:holder.ap", "chat has no attribute 'holder.ap'; did you mean: microws run chat:holder.app"),
        ("chat:number.ap", "chat has no attribute 'number.ap'"),
        ("shop.web:ap", "shop.web has no attribute 'ap'; did you mean: microws run shop.web:server"),
        ("shop", "shop has no app; write a line such as: app = App()"),
        ("space", "space has no app; write a line such as: app = App()"),
        ("two", "two has the apps one, two; name one: microws run two:one"),
        ("made", "made has no app; to call its factory: microws run 'made:create_app()'"),
        ("chat:number", "chat: expected an ASGI app, got number, of type int"),
        ("chat:nothing", "chat: expected an ASGI app, got nothing, of type NoneType"),
        ("chat:nothing_made()", "chat: expected an ASGI app, got nothing_made, of type NoneType"),
        ("chat:App", "chat: expected an ASGI app, got App, a class; did you mean: microws run chat:app"),
        ("chat:wsgi", "chat: expected an ASGI app, got wsgi, which looks like a WSGI app"),
        (
            "chat:create",
            f"chat: expected an ASGI app, got create, {NOT_ASGI}; to serve what it returns: {RUN} 'chat:create()'",
        ),
        ("old:function", f"old: expected an ASGI app, got function, {NOT_ASGI}"),
        ("old:many", f"old: expected an ASGI app, got many, {NOT_ASGI}"),
        ("old:Named", "old: expected an ASGI app, got Named, a class"),
        (
            "old:Three",
            "old: expected an ASGI app, got Three, a class; to serve what it returns: microws run 'old:Three()'",
        ),
        ("chat:number()", "chat: expected a function that returns the app, got number, of type int; leave out ()"),
        ("chat:late()", "chat: expected a function that returns the app, got late, which is async; write def"),
        ("chat:", "APP: expected module:attr, module, module:factory() or path.py, got 'chat:'"),
        (":app", "APP: expected module:attr, module, module:factory() or path.py, got ':app'"),
        ("chat:a b", "APP: expected module:attr, module, module:factory() or path.py, got 'chat:a b'"),
    ],
)
def test_a_missing_app_is_one_line_with_the_command_to_write(directory, argument, message):
    write(
        directory,
        chat=f"{APP}number, nothing = 1, None\nclass holder: app = app\ndef create(): return app\n"
        "def nothing_made(): pass\nasync def late(): return app\ndef wsgi(environ, start_response): ...\n",
        two="from microws import App\none, two = App(), App()\n",
        made="def create_app(): ...\n",
        old="def function(scope): ...\nclass Named:\n def __init__(self, name): ...\n"
        "class Three:\n def __init__(self, a=1, b=2, c=3): ...\n"
        "def many(a, b, c, d): ...\n",
        json="app = 1\n",
        **{"two-rooms": APP},
    )
    for package in ("shop", "space"):
        (directory / package).mkdir()
    write(directory / "shop", __init__="", web="from microws import App\nserver = App()\n")
    with pytest.raises(LoadError) as error:
        find(directory, argument)
    json_file = sys.modules["json"].__file__
    assert str(error.value) == message.replace("DIR", str(directory)).replace("JSON", str(json_file))
    assert error.value.traceback == ""


@pytest.mark.parametrize(
    ("source", "argument", "message", "traceback"),
    [
        (
            "import missing_thing\n",
            "chat:app",
            f"chat failed while it was imported: ModuleNotFoundError; if it is a package, install it in {sys.prefix}",
            ['  File "DIR/chat.py", line 1, in <module>', "    import missing_thing"],
        ),
        (
            "def f(:\n",
            "chat.py",
            "chat.py failed while it was imported: SyntaxError",
            ['  File "DIR/chat.py", line 1', "    def f(:"],
        ),
        (
            "raise SystemExit(4)\n",
            "chat",
            "chat failed while it was imported: SystemExit",
            ['  File "DIR/chat.py", line 1, in <module>', "    raise SystemExit(4)"],
        ),
        (
            "from microws import App\napp = App()\n@app.route('/{')\nasync def view(): ...\n",
            "chat",
            "chat failed while it was imported: RoutingError",
            ['  File "DIR/chat.py", line 3, in <module>', "    @app.route('/{')"],
        ),
        (
            "try:\n    1 / 0\nexcept ZeroDivisionError:\n    raise ExceptionGroup('g', [KeyError(1)])\n",
            "chat",
            "chat failed while it was imported: ExceptionGroup",
            ["  | ExceptionGroup: g (1 sub-exception)"],
        ),
        (
            "def create(): return 1 / 0\n",
            "chat:create()",
            "chat: create() failed: ZeroDivisionError",
            ['  File "DIR/chat.py", line 1, in create', "    def create(): return 1 / 0"],
        ),
    ],
)
def test_an_error_in_the_users_code_shows_the_users_frames_alone(directory, source, argument, message, traceback):
    write(directory, chat=source)
    with pytest.raises(LoadError) as error:
        find(directory, argument)
    assert str(error.value) == message
    lines = error.value.traceback.splitlines()
    for line in traceback:
        assert line.replace("DIR", str(directory)) in lines
    assert "importlib" not in error.value.traceback
    assert "discovery.py" not in error.value.traceback
    assert "routing" not in error.value.traceback.replace("RoutingError", "").replace("microws.errors", "")


@pytest.mark.parametrize("argument", ["chat:app", "chat", "chat.py", "factory:create()", None])
def test_a_script_that_serves_while_it_is_loaded_is_an_error(directory, capsys, argument):
    write(directory, chat=f"{APP}app.run(port=0)\n", app=f"{APP}app.run(port=0)\n")
    write(directory, factory=f"{APP}def create():\n    app.run(port=0)\n")
    assert main(["run", *([argument] if argument else [])]) == 3
    *traceback, error = capsys.readouterr().err.splitlines()
    file = "factory.py" if argument == "factory:create()" else f"{'chat' if argument else 'app'}.py"
    assert f'  File "{directory / file}", line {4 if file == "factory.py" else 3}, in ' in "\n".join(traceback)
    assert traceback[-1].endswith(
        "app.run() is called while `microws run` loads the app, which would be served twice; write above the call: "
        'if __name__ == "__main__":'
    )
    assert error.startswith("error: ")


AROUND = """
import functools
from microws import App
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from sentry_sdk.integrations.asgi import SentryAsgiMiddleware

inner = App()
sentry = SentryAsgiMiddleware(inner)
telemetry = OpenTelemetryMiddleware(inner)
built_in = getattr
partial = functools.partial(inner)

def one(scope): ...

@functools.wraps(one)
async def wrapper(*args): await inner(*args)

class Endpoint:
    def __init__(self, scope, receive, send): ...
    def __await__(self): yield
"""


@pytest.mark.parametrize("name", ["sentry", "telemetry", "built_in", "partial", "wrapper", "Endpoint"])
def test_an_app_whose_signature_takes_three_arguments_is_accepted(directory, name):
    write(directory, around=AROUND)
    assert find(directory, f"around:{name}")[0] == f"around:{name}"


def test_a_package_that_is_the_app_dir_gets_a_hint_to_its_parent(directory):
    (directory / "shop").mkdir()
    write(directory / "shop", web=APP)
    with pytest.raises(LoadError) as error:
        find(directory / "shop", "shop.web:app")
    assert str(error.value).endswith(f"; did you mean: microws run shop.web:app --app-dir {directory}")


# The command


def test_help_names_every_setting_as_a_flag(capsys):
    for arguments in (["--help"], ["dev", "--help"], ["run", "--help"]):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 0
        if "dev" in arguments:
            text = capsys.readouterr().out
            assert {"--allow-host", "--no-show-locals", "--port"} <= set(text.split())
            assert "0: never; default 0.5" in " ".join(text.split())
    text = capsys.readouterr().out
    for name in (*SETTINGS, "env_file", "factory", "app_dir", "no_access_log"):
        assert f" --{name.replace('_', '-')}" in text
    assert "{}" not in text
    assert len(text.splitlines()) < 90


def test_the_version_is_printed(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"microws {__version__}\n"


def test_without_a_command_the_help_is_shown(capsys):
    assert main([]) == 2
    assert "microws run chat:app" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (["rum"], 2, "error: there is no command 'rum'; did you mean 'run'?"),
        (["chat:app"], 2, "error: there is no command 'chat:app'; to serve an app: microws run chat:app"),
        (["chat:app", "--port", "1"], 2, "no command 'chat:app'; to serve an app: microws run chat:app --port 1"),
        (["chat.py"], 2, "error: there is no command 'chat.py'; to serve an app: microws run chat.py"),
        (["serve", "m:app"], 2, "error: there is no command 'serve'; to serve an app: microws run m:app"),
        (["start", "m:f()", "--factory"], 2, "no command 'start'; to serve an app: microws run 'm:f()' --factory"),
        (["runserver"], 2, "error: there is no command 'runserver'; to serve an app: microws run chat:app"),
        (["zzz"], 2, "error: there is no command 'zzz'; to serve an app: microws run chat:app"),
        (["--port=1", "m:app"], 2, "error: --port stands before the command; write: microws run --port=1 m:app"),
        (["--host", "::", "run", "m"], 2, "--host stands before the command; write: microws run --host :: m"),
        (["--zzz", "run", "m"], 2, "error: unknown argument '--zzz'; see microws run --help"),
        (["dev", "--workers", "2"], 2, "error: unknown argument '--workers'"),
        (["dev", "--allow-host", "a b"], 2, "error: --allow-host: "),
        (["conect", "ws://h/"], 2, "there is no command 'conect'; did you mean 'connect'?"),
        (["http://h/"], 2, "error: there is no command 'http://h/'; to measure a server: microws bench http://h/"),
        (["run", "--prot=1"], 2, "error: unknown argument '--prot'; did you mean '--port'?"),
        (["run", "--ssl-certfile", "x"], 2, "error: unknown argument '--ssl-certfile'; did you mean '--certfile'?"),
        (["run", "-w", "4"], 2, "error: unknown argument '-w'; did you mean '--workers'?"),
        (["run", "--no-acces-log"], 2, "error: unknown argument '--no-acces-log'; did you mean '--no-access-log'?"),
        (["run", "--reload"], 2, "'--reload'; to reload the app when a file changes: microws dev"),
        (["run", "chat", "8001"], 2, "error: unknown argument '8001'; for another port write --port 8001"),
        (["run", "--bind", "localhost"], 2, "got 'localhost'; for the host alone write --host localhost"),
        (["run", "--show-locals"], 2, "error: unknown argument '--show-locals'; only microws dev has it"),
        (["dev", "--workers", "2"], 2, "error: unknown argument '--workers'; only microws run has it"),
        (["dev", "--reload"], 2, "error: unknown argument '--reload'; leave it out: microws dev always reloads"),
        (["run", "chat", "zzz"], 2, "error: unknown argument 'zzz'; see microws run --help"),
        (["run", "--port", "x"], 2, "error: --port: expected a port, 0 to 65535, got 'x'"),
        (["publish"], 2, "error: expected TOPIC, got none; see microws publish --help"),
        (["publish", "t", "--hub", "local:x"], 2, "error: expected VALUE or --file FILE, got none"),
        (["publish", "t", "v", "--file", "-"], 2, "error: expected VALUE or --file FILE, got both"),
        (["publish", "t", "v", "--json", "--text"], 2, "error: expected --json or --text, got both"),
        (["publish", "t", "--file", "missing"], 2, "error: --file: missing: No such file or directory"),
        (["publish", "t", "{", "--json"], 2, "error: --json: invalid JSON"),
        (
            ["publish", "t", "v"],
            2,
            "error: expected the hub of a server as local:PATH or redis://HOST, or in MICROWS_HUB",
        ),
        (["publish", "t", "v", "--hub", "local"], 2, "error: expected local:PATH"),
        (["publish", "t", "v", "--hub", "local:missing"], 1, "error: expected a server with its hub at missing/hub"),
        (["publish", "t", "v", "--kye", "k"], 2, "error: unknown argument '--kye'; did you mean '--key'?"),
        (["run"], 3, "name it: microws run chat:app"),
        (["run", "chta:app"], 3, "no module 'chta'"),
    ],
)
@pytest.mark.usefixtures("directory")
def test_a_mistake_is_one_line_and_its_exit_code(capsys, arguments, code, line):
    assert main(arguments) == code
    [shown] = capsys.readouterr().err.splitlines()
    assert line in shown
    assert shown.startswith("error: ")


def test_an_interrupted_publish_does_not_say_that_the_server_has_the_message(monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt  # not the signal, which a job in the background ignores

    monkeypatch.setattr("microws.cli.publish.connect_hub", interrupted)
    assert main(["publish", "t", "v", "--hub", "local:x"]) == 1
    monkeypatch.setattr("pathlib.Path.read_bytes", interrupted)
    assert main(["publish", "t", "--file", "slow", "--hub", "local:x"]) == 1


def test_a_loop_that_is_not_installed_is_a_usage_error(directory, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "trio", None)
    write(directory, chat=APP)
    assert main(["run", "chat", "--loop", "trio"]) == 2
    assert capsys.readouterr().err == "error: the loop trio is not installed: pip install trio\n"


def test_an_app_is_served_until_a_signal(directory, capsys):
    write(
        directory,
        chat=f"import os, signal\n{APP}@app.on_startup\nasync def stop(): os.kill(os.getpid(), {signal.SIGINT:d})\n",
    )
    assert main(["run", "chat", "--port", "0"]) == 0
    assert "serving chat:app on http://127.0.0.1:" in capsys.readouterr().err


def test_an_address_in_use_is_exit_code_1_and_names_another_port(directory, capsys):
    write(directory, chat=APP)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["run", "chat", "--port", str(port)]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert f"127.0.0.1:{port} is in use" in line
    assert f"--port {port + 1}" in line


def test_a_failed_start_up_is_exit_code_1_with_the_users_traceback(directory, capsys):
    write(directory, main=f"{APP}@app.on_startup\nasync def connect():\n    raise LookupError('no database')\n")
    assert main(["run", "--port", "0"]) == 1
    text = capsys.readouterr().err
    assert "the app's startup failed" in text
    assert 'main.py", line 5, in connect' in text
    assert text.count("LookupError: no database") == 1


def test_a_failed_import_is_exit_code_3_with_the_users_frames_alone(directory, capsys):
    write(directory, helper="import chta\n", main="import helper\n")
    error = f"ModuleNotFoundError; if it is a package, install it in {sys.prefix}"
    assert main(["run", "main:app"]) == 3
    assert capsys.readouterr().err.splitlines() == [
        "Traceback (most recent call last):",
        f'  File "{directory}/main.py", line 1, in <module>',
        "    import helper",
        f'  File "{directory}/helper.py", line 1, in <module>',
        "    import chta",
        "ModuleNotFoundError: No module named 'chta'",
        f"error: main failed while it was imported: {error}",
    ]


def test_ctrl_c_before_it_serves_is_orderly(directory):
    write(directory, chat="raise KeyboardInterrupt\n")
    assert main(["run", "chat"]) == 0
