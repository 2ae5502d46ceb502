"""Which files an app was loaded from, and which have changed."""

import os
import sys
import types

import pytest

from microws.dev import watching
from microws.dev.watching import LoadedFiles, clock, files_below, has_changed, signature, signatures


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module that is loaded from the folder."""

    def load(name, file):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("x = 1")
        found = types.ModuleType(name)
        found.__file__ = str(tmp_path / file)
        monkeypatch.setitem(sys.modules, name, found)
        return found.__file__

    return load


def test_environments_and_hidden_folders_are_left_out(tmp_path):
    for file in (
        "a.py",
        "sub/b.py",
        ".git/c.py",
        "node_modules/d.py",
        "env/pyvenv.cfg",
        "env/e.py",
        "site-packages/f.py",
    ):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text("")
    (tmp_path / ".hidden.py").write_text("")
    (tmp_path / "sub" / "g.txt").write_text("")
    assert set(files_below(str(tmp_path), (".py",))) == {str(tmp_path / "a.py"), str(tmp_path / "sub" / "b.py")}
    assert len(list(files_below(str(tmp_path)))) == 3


def test_a_large_folder_is_read_in_part(tmp_path, monkeypatch):
    monkeypatch.setattr(watching, "_MAX_FILES", 3)
    for number in range(10):
        (tmp_path / f"{number}").write_text("")
    assert len(list(files_below(str(tmp_path)))) == 3


def test_loaded_are_the_modules_below_the_folder_and_the_pages_beside_them(tmp_path, module):
    own, deep = module("one", "one.py"), module("two", "sub/two.py")
    module("three", "lib/site-packages/three.py")
    (tmp_path / "page.html").write_text("")
    (tmp_path / "data.json").write_text("")
    loaded = LoadedFiles(tmp_path, {}, clock() + 10**9)
    assert loaded.look().keys() == {own, deep, str(tmp_path / "page.html")}
    assert loaded.look() == {}
    assert loaded.changed() is None
    later = module("four", "four.py")
    assert loaded.look().keys() == {later}


def test_a_change_is_seen_and_so_is_a_replaced_and_a_removed_file(tmp_path, module):
    file = module("one", "one.py")
    for change in ("write", "replace", "remove"):
        loaded = LoadedFiles(tmp_path, signatures([file]), clock())
        loaded.look()
        assert loaded.changed() is None
        if change == "write":
            (tmp_path / "one.py").write_text("xx = 1")
        elif change == "replace":
            (tmp_path / "new").write_text("xx = 1")
            os.utime(tmp_path / "new", ns=(signature(file)[0],) * 2)
            os.replace(tmp_path / "new", file)  # noqa: PTH105
        else:
            os.unlink(file)  # noqa: PTH108
        assert loaded.changed() == file


def test_a_file_that_was_written_while_it_was_loaded_has_changed(tmp_path, module):
    since = clock()
    file = module("one", "one.py")
    loaded = LoadedFiles(tmp_path, {}, since)
    assert loaded.look() == {file: None}
    assert loaded.changed() == file


def test_what_was_changed_before_the_look_is_compared_with_before(tmp_path, module):
    file = module("one", "one.py")
    before = signatures([file])
    (tmp_path / "one.py").write_text("other")
    loaded = LoadedFiles(tmp_path, before, clock())
    loaded.look()
    assert loaded.changed() == file


def test_an_absent_file_has_no_signature(tmp_path):
    assert signature(str(tmp_path / "absent")) is None
    assert has_changed(str(tmp_path / "absent"), None)
