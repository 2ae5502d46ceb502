"""Forms: fields and files as browsers send them, and bodies that no browser sends."""

import sys
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microws.errors import FeatureUnavailable
from microws.forms import MAX_FIELDS, UploadFile, parse_form

URLENCODED = "application/x-www-form-urlencoded"
MULTIPART = "multipart/form-data; boundary=xyz"

# As browsers write names: quotes and line ends are percent-encoded by them, so they do not occur here.
NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters='"\\'), min_size=1)
CONTENT = st.binary().filter(lambda content: b"--xyz" not in content)


def multipart(*parts, boundary="xyz"):
    """A body of ``(headers, content)`` parts."""
    body = b"".join(
        b"--%s\r\n%s\r\n\r\n%s\r\n" % (boundary.encode(), "\r\n".join(headers).encode(), content)
        for headers, content in parts
    )
    return body + b"--%s--\r\n" % boundary.encode()


def disposition(options):
    return f"Content-Disposition: form-data; {options}"


class TestUrlencoded:
    def test_fields_are_in_order_and_may_stand_twice(self):
        form = parse_form(b"a=1&b=x+y%21&a=2&c", content_type=URLENCODED)
        assert form.multi_items() == [("a", "1"), ("b", "x y!"), ("a", "2"), ("c", "")]

    def test_more_than_1000_fields_are_refused(self):
        body = b"&".join([b"a=1"] * MAX_FIELDS)
        assert len(parse_form(body, content_type=URLENCODED).getlist("a")) == MAX_FIELDS
        with pytest.raises(ValueError, match="fields"):
            parse_form(body + b"&a=1", content_type=URLENCODED)

    @given(st.binary())
    def test_nothing_else_makes_it_fail(self, body):
        parse_form(body, content_type=URLENCODED)


class TestMultipart:
    @given(st.lists(st.tuples(NAMES, CONTENT, st.none() | NAMES.filter(lambda name: "/" not in name))))
    def test_fields_and_files_come_back(self, fields):
        parts = []
        expected = []
        for name, content, filename in fields:
            options = f'name="{name}"' if filename is None else f'name="{name}"; filename="{filename}"'
            parts.append(([disposition(options)], content))
            expected.append((name, content.decode(errors="replace") if filename is None else (filename, content)))
        form = parse_form(multipart(*parts), content_type=MULTIPART)
        found = [
            (name, (value.filename, value.content) if isinstance(value, UploadFile) else value)
            for name, value in form.multi_items()
        ]
        assert found == expected

    def test_a_file_has_its_type_and_its_headers(self):
        body = multipart(
            ([disposition('name="f"; filename="ü.txt"'), "Content-Type: text/plain", "X-Own: 1"], b"a\r\nb")
        )
        file = parse_form(body, content_type=MULTIPART)["f"]
        assert isinstance(file, UploadFile)
        assert (file.filename, file.content_type, file.content) == ("ü.txt", "text/plain", b"a\r\nb")
        assert file.headers["x-own"] == "1"

    def test_a_file_without_a_type_is_any_bytes(self):
        body = multipart(([disposition('name="f"; filename=""')], b""))
        assert parse_form(body, content_type=MULTIPART)["f"].content_type == "application/octet-stream"

    @pytest.mark.parametrize("filename", ["../../etc/passwd", r"C:\\etc\\passwd", r"..\etc/passwd", "/passwd"])
    def test_a_file_name_has_no_directories(self, filename):
        body = multipart(([disposition(f'name="f"; filename="{filename}"')], b""))
        assert parse_form(body, content_type=MULTIPART)["f"].filename == "passwd"

    def test_a_boundary_may_be_quoted(self):
        body = multipart(([disposition('name="a"')], b"1"), boundary="x y")
        assert parse_form(body, content_type='Multipart/Form-Data; boundary="x y"')["a"] == "1"

    @pytest.mark.parametrize(
        ("body", "content_type", "message"),
        [
            (b"", MULTIPART, "ends before"),
            (multipart(([disposition('name="a"')], b"1"))[:-10], MULTIPART, "ends before"),
            (multipart(([disposition('name="a"')], b"1")), "multipart/form-data", "expected a boundary"),
            (multipart(([disposition("")], b"1")), MULTIPART, "no name"),
            (multipart((["X: y"], b"1")), MULTIPART, "no name"),
            (multipart(([disposition('name="a"')], b"1"), boundary="other"), MULTIPART, "boundary"),
            (multipart(*[([disposition('name="a"')], b"1")] * (MAX_FIELDS + 1)), MULTIPART, "more than 1000"),
            (b"", f"multipart/form-data; boundary={'x' * 1000}", "oundary"),
        ],
    )
    def test_a_malformed_form_says_what_is_wrong(self, body, content_type, message):
        with pytest.raises(ValueError, match=message):
            parse_form(body, content_type=content_type)

    @given(
        st.lists(
            st.sampled_from([b"--xyz", b"--", b"\r\n", b"\r\n\r\n", b"Content-Disposition: form-data", b'; name="'])
            | st.binary(max_size=5)
        ).map(b"".join)
    )
    def test_nothing_makes_it_fail_in_another_way(self, body):
        with suppress(ValueError):
            parse_form(body, content_type=MULTIPART)

    def test_without_the_extra_the_error_names_what_to_install(self, monkeypatch):
        # Python's own way to say that a module is not there.
        monkeypatch.setitem(sys.modules, "python_multipart", None)
        with pytest.raises(FeatureUnavailable, match="pip install python-multipart"):
            parse_form(b"", content_type=MULTIPART)
        assert parse_form(b"a=1", content_type=URLENCODED)["a"] == "1"
