"""Responses that send files: whole, ranges, conditional requests; and directories, which no path leaves."""

import os
import socket
from contextlib import chdir
from email.utils import formatdate
from pathlib import Path
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microws.datastructures import URL
from microws.errors import HTTPException
from microws.files import CHUNK_SIZE, SMALL_SIZE, FileResponse, StaticFiles
from microws.responses import RedirectResponse
from microws.testing import TestClient

pytestmark = pytest.mark.anyio

CONTENT = b"0123456789"
# A whole second in the past, so that a date in a header says it exactly.
MODIFIED = 1_700_000_000
DATE = formatdate(MODIFIED, usegmt=True)


def write(path, content=CONTENT):
    path.write_bytes(content)
    os.utime(path, (MODIFIED, MODIFIED))
    return path


def forget(path):
    """Have the system drop the file from memory, if it can."""
    if hasattr(os, "posix_fadvise"):
        with path.open("rb") as file:
            os.fsync(file)
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return write(tmp_path_factory.mktemp("files") / "file.txt")


async def send(response, *, method="GET", **headers):
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    async with TestClient(response, lifespan=False) as client:
        return await client.request(method, "/", headers=names)


async def refused(response, status, **options):
    with pytest.raises(HTTPException) as caught:
        await send(response, **options)
    assert caught.value.status == status
    return dict(caught.value.headers)


class TestWhole:
    async def test_a_file_is_sent_with_its_headers(self, file):
        sent = await send(FileResponse(file, headers={"x-a": "1"}))
        assert (sent.status, sent.body) == (200, CONTENT)
        assert sent.headers["content-length"] == "10"
        assert sent.headers["content-type"] == "text/plain; charset=utf-8"
        assert sent.headers["last-modified"] == DATE
        assert sent.headers["accept-ranges"] == "bytes"
        assert sent.headers["x-content-type-options"] == "nosniff"
        assert sent.headers["x-a"] == "1"
        assert sent.headers["etag"].startswith('"')
        assert "content-disposition" not in sent.headers

    @pytest.mark.parametrize("is_in_memory", [True, False])
    @pytest.mark.parametrize("size", [0, 1, SMALL_SIZE, SMALL_SIZE + 1, CHUNK_SIZE, CHUNK_SIZE + 1, 3 * CHUNK_SIZE])
    async def test_a_file_of_any_size_is_sent_whole(self, tmp_path, size, is_in_memory):
        content = os.urandom(size)
        path = write(tmp_path / "file", content)
        if not is_in_memory:
            forget(path)
        sent = await send(FileResponse(path))
        assert sent.body == content
        assert sent.headers["content-length"] == str(size)

    @pytest.mark.parametrize(("asked", "status"), [("bytes=10-19", 206), ("bytes=-10", 206), (None, 200)])
    async def test_a_part_of_a_large_file_is_sent(self, tmp_path, asked, status):
        content = os.urandom(2 * CHUNK_SIZE)
        path = write(tmp_path / "file", content)
        for method in ("GET", "HEAD"):
            sent = await send(FileResponse(path), method=method, **({} if asked is None else {"range": asked}))
            expected = {"bytes=10-19": content[10:20], "bytes=-10": content[-10:], None: content}[asked]
            assert (sent.status, sent.body) == ((status, expected) if method == "GET" else (200, b""))

    async def test_the_etag_changes_with_the_file(self, tmp_path):
        path, tags = write(tmp_path / "file"), set()
        for change in (lambda: None, lambda: write(path, CONTENT + b"!"), lambda: os.utime(path, ns=(1, 1))):
            change()
            tags.add((await send(FileResponse(path))).headers["etag"])
        assert len(tags) == 3
        assert "etag" not in (await send(FileResponse(path, etag=False))).headers

    async def test_last_modified_is_not_in_the_future(self, tmp_path):
        path = write(tmp_path / "file")
        os.utime(path, (2**33, 2**33))
        assert (await send(FileResponse(path))).headers["last-modified"] != formatdate(2**33, usegmt=True)

    @pytest.mark.parametrize(
        ("names", "content_type"),
        [
            ("a.html", "text/html; charset=utf-8"),
            ("a.CSS", "text/css; charset=utf-8"),
            ("a.js a.mjs", "text/javascript; charset=utf-8"),
            ("a.json", "application/json"),
            ("a.svg", "image/svg+xml"),
            ("a.woff2", "font/woff2"),
            ("a.wasm", "application/wasm"),
            ("a.tar.gz", "application/gzip"),
            ("a.unknown a .html", "application/octet-stream"),
        ],
    )
    def test_the_content_type_follows_from_the_suffix(self, names, content_type):
        for name in names.split():
            assert FileResponse(f"/x.html/{name}").headers["content-type"] == content_type

    @pytest.mark.parametrize(
        ("filename", "header"),
        [
            ("a b.txt", 'attachment; filename="a b.txt"'),
            ("ü.txt", "attachment; filename=\"_.txt\"; filename*=UTF-8''%C3%BC.txt"),
            ('"\\%\n', "attachment; filename=\"____\"; filename*=UTF-8''%22%5C%25%0A"),
            ("\ud800", "attachment; filename=\"_\"; filename*=UTF-8''%3F"),
        ],
    )
    def test_filename_sets_content_disposition(self, filename, header):
        assert FileResponse("a", filename=filename).headers["content-disposition"] == header

    @given(st.text())
    def test_every_filename_can_be_sent(self, filename):
        header = FileResponse("a", filename=filename).headers["content-disposition"]
        _, star, encoded = header.partition("filename*=UTF-8''")
        plain = header.partition('filename="')[2].partition('"')[0]
        assert (unquote(encoded) if star else plain) == filename.encode(errors="replace").decode()

    def test_a_given_content_type_wins_and_a_status_without_a_body_is_refused(self):
        for options in ({"content_type": "text/x"}, {"headers": {"Content-Type": "text/x"}}):
            assert FileResponse("a.html", **options).headers["content-type"] == "text/x"
        for status in (204, 304, 99):
            with pytest.raises(ValueError, match=str(status)):
                FileResponse("a", status=status)


class TestAbsent:
    @pytest.mark.parametrize("path", ["absent", ".", "file/x", "x" * 5000, "nul\0", "loop", "pipe", "socket", "\ud800"])
    async def test_a_path_without_a_regular_file_is_404(self, tmp_path, path):
        write(tmp_path / "file")
        (tmp_path / "loop").symlink_to("loop")
        os.mkfifo(tmp_path / "pipe")
        with socket.socket(socket.AF_UNIX) as unix, chdir(tmp_path):
            unix.bind("socket")
            await refused(FileResponse(path), 404)

    async def test_another_error_of_the_system_is_raised(self, file, monkeypatch):
        def no_more_files(path, flags):
            raise OSError(24, "Too many open files")

        monkeypatch.setattr("microws.files._open_without_waiting", no_more_files)
        with pytest.raises(OSError, match="Too many open files"):
            await send(FileResponse(file))


class TestConditions:
    @pytest.fixture
    async def etag(self, file):
        return (await send(FileResponse(file))).headers["etag"]

    @pytest.mark.parametrize("known", ["{}", "*", "W/{}", '"a", {}', 'W/"a",{} , "b"'])
    @pytest.mark.parametrize("method", ["GET", "HEAD"])
    async def test_a_matching_etag_is_304(self, file, etag, known, method):
        sent = await send(FileResponse(file, headers={"vary": "x"}), method=method, if_none_match=known.format(etag))
        assert (sent.status, sent.body) == (304, b"")
        assert sent.headers["etag"] == etag
        assert sent.headers["vary"] == "x"
        assert not any(name.startswith("content-") for name in sent.headers)

    @pytest.mark.parametrize("known", ['"other"', 'W/"other"', "", "no tag", '"unclosed'])
    async def test_another_etag_gets_the_file(self, file, known):
        assert (await send(FileResponse(file), if_none_match=known, if_modified_since=DATE)).status == 200

    @pytest.mark.parametrize(
        ("date", "status"),
        [
            (DATE, 304),
            (formatdate(MODIFIED + 60, usegmt=True), 304),
            (formatdate(MODIFIED - 1, usegmt=True), 200),
            # RFC 9110 §5.6.7: the obsolete forms.
            ("Tuesday, 14-Nov-23 22:13:20 GMT", 304),
            ("Tue Nov 14 22:13:20 2023", 304),
            ("yesterday", 200),
            ("", 200),
        ],
    )
    async def test_a_file_that_is_not_newer_is_304(self, file, date, status):
        assert (await send(FileResponse(file), if_modified_since=date)).status == status

    @pytest.mark.parametrize(
        ("header", "passing", "failing"),
        [
            ("if_match", ["{}", "*", '"a", {}'], ['"other"', "W/{}", ""]),
            ("if_unmodified_since", [DATE, "yesterday"], [formatdate(MODIFIED - 1, usegmt=True)]),
        ],
    )
    async def test_a_failed_precondition_is_412(self, file, etag, header, passing, failing):
        for value in passing:
            assert (await send(FileResponse(file), **{header: value.format(etag)})).status == 200
        for value in failing:
            await refused(FileResponse(file), 412, **{header: value.format(etag)})

    async def test_the_etag_wins_over_the_date(self, file, etag):
        old = formatdate(0, usegmt=True)
        assert (await send(FileResponse(file), if_match=etag, if_unmodified_since=old)).status == 200
        assert (await send(FileResponse(file), if_none_match=etag, if_modified_since=old)).status == 304

    async def test_a_given_etag_is_compared_and_without_one_only_a_star_matches(self, file):
        response = FileResponse(file, headers={"etag": 'W/"own"'})
        assert (await send(response, if_none_match='"own"')).status == 304
        await refused(response, 412, if_match='W/"own"')
        assert (await send(FileResponse(file, etag=False), if_none_match="*")).status == 304
        assert (await send(FileResponse(file, etag=False), if_none_match='""')).status == 200

    async def test_conditions_are_ignored_for_another_status_or_method(self, file):
        for response, method, status in (
            (FileResponse(file, status=404), "GET", 404),
            (FileResponse(file), "POST", 200),
        ):
            assert (await send(response, method=method, if_none_match="*", range="bytes=0-0")).status == status

    @given(
        st.sampled_from(["if_none_match", "if_match", "if_modified_since", "if_unmodified_since", "if_range", "range"]),
        st.text(st.characters(min_codepoint=32, max_codepoint=126))
        | st.text('"W/*, bytes=-0123456789')
        | st.datetimes().map(str),
    )
    async def test_no_value_of_these_headers_makes_it_fail(self, file, header, value):
        try:
            assert (await send(FileResponse(file), **{header: value.strip()})).status in (200, 206, 304)
        except HTTPException as error:
            assert error.status in (412, 416)  # noqa: PT017


class TestRanges:
    @pytest.mark.parametrize(
        ("asked", "body", "content_range"),
        [
            ("bytes=0-0", b"0", "bytes 0-0/10"),
            ("bytes=0-", CONTENT, "bytes 0-9/10"),
            ("bytes=3-5", b"345", "bytes 3-5/10"),
            ("bytes=9-9", b"9", "bytes 9-9/10"),
            ("bytes=5-100", b"56789", "bytes 5-9/10"),
            ("bytes=-3", b"789", "bytes 7-9/10"),
            ("bytes=-100", CONTENT, "bytes 0-9/10"),
            ("Bytes= 1-2 ", b"12", "bytes 1-2/10"),
            (f"bytes=1-{'9' * 900}", b"123456789", "bytes 1-9/10"),
        ],
    )
    async def test_a_range_is_sent_as_206(self, file, asked, body, content_range):
        sent = await send(FileResponse(file), range=asked)
        assert (sent.status, sent.body) == (206, body)
        assert sent.headers["content-range"] == content_range
        assert sent.headers["content-length"] == str(len(body))

    @pytest.mark.parametrize(
        "asked",
        [
            "bytes=5-4", "bytes=-", "bytes=", "bytes=a-b", "bytes=1", "bytes 1-2", "lines=1-2", "bytes=0-0,2-3",
            "bytes=--1", "bytes=1-2-3", "bytes=²-", f"bytes={'9' * 5000}-",
        ],
    )  # fmt: skip
    async def test_a_malformed_or_multiple_range_gets_the_whole_file(self, file, asked):
        sent = await send(FileResponse(file), range=asked)
        assert (sent.status, sent.body) == (200, CONTENT)
        assert "content-range" not in sent.headers

    async def test_a_range_outside_the_file_is_416_unless_it_is_empty(self, file, tmp_path):
        for asked in ("bytes=10-", "bytes=10-20", "bytes=-0", f"bytes={'9' * 900}-"):
            assert await refused(FileResponse(file), 416, range=asked) == {"content-range": "bytes */10"}
        for asked in ("bytes=0-", "bytes=-5"):
            assert (await send(FileResponse(write(tmp_path / "file", b"")), range=asked)).status == 200

    async def test_head_has_the_headers_of_get_and_ignores_a_range(self, file):
        got = await send(FileResponse(file))
        for headers in ({}, {"range": "bytes=0-0"}):
            head = await send(FileResponse(file), method="HEAD", **headers)
            assert (head.status, head.headers, head.body) == (200, got.headers, b"")

    async def test_if_range_gets_the_part_only_of_the_same_file(self, file):
        etag = (await send(FileResponse(file))).headers["etag"]
        for condition, status in [
            (etag, 206),
            (DATE, 206),
            (f"W/{etag}", 200),
            ('"other"', 200),
            ("*", 200),
            (formatdate(MODIFIED + 1, usegmt=True), 200),
        ]:
            assert (await send(FileResponse(file), range="bytes=0-0", if_range=condition)).status == status


class TestWhileSending:
    async def test_a_file_that_becomes_shorter_raises_within_the_response(self, tmp_path):
        path = write(tmp_path / "file", bytes(4 * CHUNK_SIZE))
        response = FileResponse(path)

        async def shorten(scope, receive, send):
            async def send_and_shorten(event):
                await send(event)
                os.truncate(path, 0)

            await response(scope, receive, send_and_shorten)

        with pytest.raises(RuntimeError, match="became shorter"):
            await send(shorten)

    async def test_a_file_that_becomes_longer_is_sent_at_its_first_length(self, tmp_path):
        path = write(tmp_path / "file", bytes(4 * CHUNK_SIZE))
        async with (
            TestClient(FileResponse(path), lifespan=False) as client,
            client.stream("GET", "/", max_queue=1) as response,
        ):
            os.truncate(path, 5 * CHUNK_SIZE)
            assert len(await response.read()) == 4 * CHUNK_SIZE


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A directory of static files, beside others that must not be served."""
    outside = tmp_path_factory.mktemp("outside")
    root = outside / "static"
    root.mkdir()
    for name in ("secret.txt", "static.txt"):
        (outside / name).write_text("secret")
    (outside / "static-too").mkdir()
    (outside / "static-too" / "secret.txt").write_text("secret")
    (outside / "index.html").write_text("secret")
    write(root / "file.txt")
    write(root / "ü %20.txt")
    (root / "docs").mkdir()
    (root / "docs" / "index.html").write_text("index")
    (root / "empty").mkdir()
    (root / "inside").symlink_to("docs")
    (root / "link.txt").symlink_to("file.txt")
    (root / "out").symlink_to(outside)
    (root / "out.txt").symlink_to(outside / "secret.txt")
    (root / "up").symlink_to("..")
    (root / "loop").symlink_to("loop")
    (root / "dangling").symlink_to("nowhere")
    (root / "leads-out").mkdir()
    (root / "leads-out" / "index.html").symlink_to(outside / "secret.txt")
    os.mkfifo(root / "pipe")
    return root


async def get(root, path):
    """Status and body of the answer to a request for this path below the directory."""
    try:
        sent = await send(await StaticFiles(root).response(path))
    except HTTPException as error:
        return error.status, b""
    return sent.status, sent.body


class TestStaticFiles:
    @pytest.mark.parametrize(
        ("path", "body"),
        [
            ("file.txt", CONTENT),
            ("ü %20.txt", CONTENT),
            ("link.txt", CONTENT),
            ("docs/", b"index"),
            ("docs", b"index"),
            ("docs/index.html", b"index"),
            ("inside/index.html", b"index"),
        ],
    )
    async def test_a_file_in_the_directory_is_sent(self, root, path, body):
        assert await get(root, path) == (200, body)

    @pytest.mark.parametrize(
        "path",
        [
            "absent", "empty", "empty/", "", "file.txt/", "file.txt/x", "/file.txt", "docs//index.html", "//",
            "../secret.txt", "docs/../../secret.txt", "docs/../file.txt", "./file.txt", "..", "../", ".",
            "../static-too/secret.txt", "..\\secret.txt", "docs\\index.html", "..%2fsecret.txt", "%2e%2e/secret.txt",
            "out.txt", "out/secret.txt", "out", "up/secret.txt", "up/static/file.txt/..", "leads-out/",
            "leads-out/index.html", "loop", "loop/x", "dangling",
            "pipe", "/etc/passwd", "C:/file.txt", "file.txt\0", "\0", "\ud800", "x" * 300, "x/" * 5000,
        ],
    )  # fmt: skip
    async def test_a_path_outside_or_without_a_file_is_404(self, root, path):
        assert await get(root, path) == (404, b"")

    @given(
        st.lists(
            st.sampled_from(
                [*"./\\\0", "..", "../", "out", "out.txt", "up", "static", "secret.txt", "file.txt", "docs", "%2e",
                 "%2f", "/etc/passwd", "~", "link.txt", "index.html"]
            )
            | st.text(max_size=3),
            max_size=8,
        ).flatmap(lambda parts: st.sampled_from(["", "/"]).map(lambda joint: joint.join(parts)))
    )  # fmt: skip
    async def test_no_path_leads_outside(self, root, path):
        status, body = await get(root, path)
        assert (status, body) in [(200, CONTENT), (200, b"index"), (404, b"")]

    async def test_a_directory_without_its_slash_is_redirected_if_url_is_given(self, root):
        files = StaticFiles(root)
        url = URL(scheme="http", netloc="a", path="//static/docs", query="a=b")
        response = await files.response("docs", url=url)
        assert isinstance(response, RedirectResponse)
        assert (response.status, response.headers["location"]) == (308, "/static/docs/?a=b")
        bare = URL(scheme="http", netloc="a", path="/static/docs")
        assert (await files.response("docs", url=bare)).headers["location"] == "/static/docs/"
        for path in ("docs/", "file.txt"):
            assert isinstance(await files.response(path, url=url), FileResponse)

    def test_a_missing_directory_raises_with_its_full_path(self, tmp_path):
        write(tmp_path / "file")
        with chdir(tmp_path):
            for name in ("absent", "file"):
                with pytest.raises(ValueError, match=str(Path.cwd() / name)):
                    StaticFiles(name)

    async def test_the_directory_is_its_index_and_may_be_a_link(self, root, tmp_path):
        assert await get(root / "docs", "") == (200, b"index")
        assert await get(tmp_path, "") == (404, b"")
        (tmp_path / "link").symlink_to(root)
        assert StaticFiles(tmp_path / "link").directory == root.resolve()
        assert repr(StaticFiles(root)) == f"StaticFiles('{root.resolve()}')"

    async def test_another_error_of_the_system_is_raised(self, root, monkeypatch):
        def broken(path, *, strict):
            raise OSError(5, "Input/output error")

        files = StaticFiles(root)
        monkeypatch.setattr("os.path.realpath", broken)
        with pytest.raises(OSError, match="Input/output"):
            await files.response("file.txt")
