"""A batch's body in pieces: any cut gives the same requests, and any bytes give requests or a problem, nothing else."""

import itertools
import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from api.batches.items import BatchItems, options_of_job, options_of_query
from api.batches.lines import JsonLines, JsonRequests, Line, Splitter
from api.jobs.request import NO_BOUNDS
from shared.batch import InvalidItem, NewItem
from shared.errors import InvalidRequest, Problem, TooLarge
from shared.job import Priority
from shared.settings import load_settings

MOST_REQUESTS = 12
MOST_LINE_BYTES = 200


def _lines(**limits: int) -> JsonLines:
    return JsonLines(**{"max_requests": MOST_REQUESTS, "max_line_bytes": MOST_LINE_BYTES, **limits})


def _requests(**limits: int) -> JsonRequests:
    members = frozenset({"requests", "job"})
    return JsonRequests(members=members, **{"max_requests": MOST_REQUESTS, "max_line_bytes": MOST_LINE_BYTES, **limits})


def _split(splitter: Splitter, pieces: list[bytes]) -> list[Line]:
    found = [line for piece in pieces for line in splitter.feed(piece)]
    return [*found, *splitter.end()]


def _ending(splitter: Splitter, pieces: list[bytes]) -> Any:
    """The result of splitting: the requests, or only the refusal."""
    try:
        found = _split(splitter, pieces)
    except Problem as problem:
        return (problem.code, problem.detail, problem.errors)
    return found, splitter.job


def _cut(body: bytes, places: list[int]) -> list[bytes]:
    ends = sorted({place % (len(body) + 1) for place in places} | {0, len(body)})
    return [body[start:end] for start, end in itertools.pairwise(ends)] or [b""]


def _bytewise(body: bytes) -> list[bytes]:
    return [body[place : place + 1] for place in range(len(body))]


@pytest.mark.parametrize("cut", [lambda body: [body], _bytewise], ids=["whole", "bytewise"])
def test_a_byte_order_mark_is_not_part_of_the_first_line(cut: Any) -> None:
    """Editors on Windows write it. Anywhere else it is a character that is invalid in JSON."""
    mark = b"\xef\xbb\xbf"
    for body in (b"", b"{}", b'{"a":1}\n{"b":2}\n', b"\n\n{}", b"{}\r\n{}\r\n"):
        assert _ending(_lines(), cut(mark + body)) == _ending(_lines(), cut(body))
    assert _split(_lines(), cut(b"{}\n" + mark + b"{}")) == [Line(1, b"{}"), Line(2, mark + b"{}")]
    assert _split(_lines(), cut(mark + mark + b"{}")) == [Line(1, mark + b"{}")]
    assert _split(_lines(), cut(b"1")) == [Line(1, b"1")]
    assert _split(_lines(), cut(b"\0\xff")) == [Line(1, b"\0\xff")]


@pytest.mark.parametrize("cut", [lambda body: [body], _bytewise], ids=["whole", "bytewise"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
def test_lines_in_utf_16_are_refused_as_a_whole(encoding: str, cut: Any) -> None:
    """With a byte order mark and without. Otherwise every line would be a failed item, without a clear reason."""
    with pytest.raises(InvalidRequest) as refused:
        _split(_lines(), cut('{"custom_id":"a"}\n{"custom_id":"b"}\n'.encode(encoding)))
    (error,) = refused.value.errors
    assert (error.pointer, "UTF-16" in error.detail) == ("#", True)


PLACES = st.lists(st.integers(0, 10_000), max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.sampled_from(['"', "\\", '\\"', "]},{[", ":"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=12,
)
SOUP = st.lists(
    st.sampled_from(
        [*(bytes([byte]) for byte in b'{}[],:"\\ \n\r\t\0\xff1au'), b'"requests"', b'"job"', b"null", b"{}"]
    ),
    max_size=40,
).map(b"".join)
BODIES = st.one_of(SOUP, SOUP.map(lambda soup: b'{"requests":[' + soup), SOUP.map(lambda s: b'{"requests":[{}],' + s))


@given(
    st.lists(VALUES, min_size=1, max_size=MOST_REQUESTS),
    VALUES,
    st.sampled_from(["before", "behind", "none"]),
    st.booleans(),
    st.booleans(),
    PLACES,
)
def test_a_json_body_is_split_into_exactly_the_elements_of_its_list(
    elements: list[Any], job: Any, where: str, ascii_only: bool, spaced: bool, places: list[int]
) -> None:
    """Whatever they contain, and however it is written."""
    members = {"job": job} if where == "before" else {}
    members["requests"] = elements
    if where == "behind":
        members["job"] = job
    body = json.dumps(members, ensure_ascii=ascii_only, indent=1 if spaced else None)
    raw = body.encode(errors="replace")
    splitter = _requests(max_line_bytes=1 << 20)
    found = _split(splitter, _cut(raw, places))
    assert [line.number for line in found] == list(range(1, len(elements) + 1))
    reread = json.loads(raw)
    assert [json.loads(line.raw or b"") for line in found] == reread["requests"]
    if where == "none":
        assert splitter.job is None
    else:
        assert splitter.job is not None
        assert json.loads(splitter.job) == reread["job"]


@given(BODIES, PLACES)
@example(b'{"requests":[{"a":"\\\\"},{"b":"\\""}]}', [])
@example(b'{"requests":[' + b'{"a":[[[[[[1]]]]]]},' * 3 + b"1]}", [20])
def test_any_cutting_of_any_bytes_gives_the_same_of_a_json_body(body: bytes, places: list[int]) -> None:
    """Down to single bytes, including refusals and their positions."""
    whole = _ending(_requests(), [body])
    assert _ending(_requests(), _cut(body, places)) == whole
    assert _ending(_requests(), _bytewise(body)) == whole


@given(st.one_of(SOUP, st.lists(SOUP, max_size=20).map(b"\n".join)), PLACES)
def test_any_cutting_of_any_bytes_gives_the_same_lines(body: bytes, places: list[int]) -> None:
    """Also between a carriage return and its line feed."""
    whole = _ending(_lines(), [body])
    assert _ending(_lines(), _cut(body, places)) == whole
    assert _ending(_lines(), _bytewise(body)) == whole


@given(st.sampled_from([b"", b" ", b"\r"]), st.integers(-2, 2), PLACES)
def test_a_request_that_is_too_long_is_refused_however_it_is_cut(behind: bytes, more: int, places: list[int]) -> None:
    """Exactly at the limit; its neighbours are valid."""
    long = b'"' + b"x" * (MOST_LINE_BYTES + more - 2) + b'"'
    body = b"1\n" + long + behind + b"\n2"
    assert _split(_lines(), _cut(body, places)) == _split(_lines(), [body])
    body = b'{"requests":[1,' + long + b"," + b'{"a":"' + long[1:] + b"},2]}"
    found = _split(_requests(), _cut(body, places))
    assert found == _split(_requests(), [body])
    assert [line.raw is None for line in found] == [False, more > 0, True, False]


@given(st.binary(max_size=60))
def test_any_bytes_are_a_valid_or_an_invalid_item(raw: bytes) -> None:
    """Nothing is raised, and the message is short."""
    item = _item_of(_items(), 1, raw)
    assert isinstance(item, InvalidItem)
    assert len(item.message) < 400


def test_lines_are_numbered_as_an_editor_numbers_them() -> None:
    """Blank lines are no requests, but count; the last line may lack its line feed."""
    body = b"\n1\r\n \t\r\n\n2\n3"
    assert _split(_lines(), [body]) == [Line(2, b"1"), Line(5, b"2"), Line(6, b"3")]


@pytest.mark.parametrize("body", [b"", b"\n\n", b" \r\n"])
def test_lines_that_are_all_blank_are_400(body: bytes) -> None:
    """Such a batch would have no requests."""
    with pytest.raises(InvalidRequest):
        _split(_lines(), [body])


def test_too_many_requests_are_413_and_so_are_too_many_blank_lines() -> None:
    """Blank lines cost time too."""
    _split(_lines(), [b"1\n" * MOST_REQUESTS])
    _split(_lines(), [b"\n" * MOST_REQUESTS + b"1\n"])
    _split(_requests(), [b'{"requests":[' + b",".join([b"1"] * MOST_REQUESTS) + b"]}"])
    for body in (b"1\n" * (MOST_REQUESTS + 1), b"\n" * (MOST_REQUESTS + 1) + b"1\n"):
        with pytest.raises(TooLarge):
            _split(_lines(), [body])
    for one in (b"1", b"{}"):
        with pytest.raises(TooLarge):
            _split(_requests(), [b'{"requests":[' + b",".join([one] * (MOST_REQUESTS + 1)) + b"]}"])


@pytest.mark.parametrize(
    "body",
    [
        b"", b" ", b"[]", b"1", b"null", b'"a"', b"{}", b'{"job":{}}', b'{"requests":[]}', b'{"requests":{}}',
        b'{"requests":null}', b'{"requests":[{}]', b'{"requests":[{}', b'{"requests":["', b'{"requests":[{},]}',
        b'{"requests":[,{}]}', b'{"requests":[{}}}', b'{"requests":[{}]}}', b'{"requests":[{}]}1', b'{"requests":[{}],}',
        b'{"requests":[{}] "job":{}}', b'{"requests" [{}]}', b"{requests:[{}]}", b'{"requests":[{}],"job":}',
        b'{"requests":[{}],"more":1}', b'{"requests":[{}],"requests":[{}]}', b'{"job":{},"job":{},"requests":[{}]}',
        b'{"requests":[{}],"re\\u0071uests":[{}]}', b'\xef\xbb\xbf{"requests":[{}]}', b'{"requests":[{}],"\xff":1}',
        b'{"requests":[{}],"job":"' + b"x" * 70_000 + b'"}', b"{" + b" " * 70_000 + b'"requests":[{}]}',
    ],
)  # fmt: skip
def test_an_envelope_that_is_not_json_is_400_for_the_whole(body: bytes) -> None:
    """So is one without requests, with an unknown member, or with a repeated member."""
    with pytest.raises(InvalidRequest):
        _split(_requests(), [body])


def _items(noun: str = "line", *, with_fingerprint: bool = False) -> BatchItems:
    return BatchItems(load_settings(), noun=noun, with_fingerprint=with_fingerprint)


def _item_of(items: BatchItems, number: int, raw: bytes) -> NewItem | InvalidItem:
    return items.item_of(number, items.read(raw))


def _item(line: Any, number: int = 2, items: BatchItems | None = None) -> NewItem | InvalidItem:
    raw = line if isinstance(line, bytes) else json.dumps(line).encode()
    return _item_of(items or _items(), number, raw)


def _params(**members: Any) -> dict[str, Any]:
    return {"prompt": "Say hello.", **members}


def test_a_valid_line_becomes_a_job() -> None:
    """With the same request as a single submit."""
    item = _item({"custom_id": "row ä", "params": _params(stream=True, temperature=0.5)})
    assert isinstance(item, NewItem)
    assert (item.line, item.custom_id, item.model) == (2, "row ä", "claude-sonnet-4-6")
    assert item.job_id.startswith("job_")
    assert json.loads(item.request) == {
        "model": "claude-sonnet-4-6",
        "max_tokens": 1024,
        "temperature": 0.5,
        "messages": [{"role": "user", "content": "Say hello."}],
    }


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "line 2 is not JSON"),
        (b"secret", "line 2 is not JSON"),
        (b"{} {}", "line 2 is not JSON"),
        (b'{"custom_id":"\xff"}', "line 2 must be UTF-8"),
        (b'{"a":1e999}', "line 2 has a number that is out of range"),
        (b"[" * 10_000, "line 2 must not be nested deeper than 128"),
        ([1], "line 2 must be a JSON object"),
        ({}, "line 2 #/custom_id is missing; #/params is missing"),
        ({"custom_id": "", "params": _params()}, "line 2 #/custom_id must be a text of 1 to 64 printable characters"),
        (
            {"custom_id": "a\nb", "params": _params()},
            "line 2 #/custom_id must be a text of 1 to 64 printable characters",
        ),
        ({"custom_id": "a" * 65, "params": 1}, None),
        ({"custom_id": 7, "params": _params()}, "line 2 #/custom_id must be a text of 1 to 64 printable characters"),
        ({"custom_id": "a", "params": _params(), "body": 1}, "line 2 #/body is not known"),
        ({"custom_id": "a", "params": _params(), "se cret": 1}, "line 2 has a member that is not known"),
        (
            {"custom_id": "a", "params": _params(job={})},
            "line 2 #/params/job is not allowed in a request: the options are the whole batch's",
        ),
        (
            {"custom_id": "a", "params": _params(max_tokens=0)},
            "line 2 #/params/max_tokens must be a whole number from 1 to 10000000",
        ),
        ({"custom_id": "a", "params": []}, "line 2 #/params must be an object"),
    ],
)
def test_an_invalid_line_has_a_reason_that_quotes_nothing(line: Any, message: str | None) -> None:
    """The reason is a value, not an exception."""
    item = _item(line)
    assert isinstance(item, InvalidItem)
    assert item.line == 2
    assert message is None or item.message == message
    assert "secret" not in item.message
    assert "se cret" not in item.message


def test_a_line_that_is_too_long_says_so() -> None:
    """Its bytes are not kept."""
    assert _items().too_long(3) == InvalidItem(3, "line 3 has more than 4194304 bytes")


def test_a_custom_id_belongs_to_the_first_line_that_has_it() -> None:
    """Even if that line is invalid."""
    items = _items()
    first = _item({"custom_id": "a", "params": {}}, 1, items)
    second = _item({"custom_id": "a", "params": _params()}, 2, items)
    assert isinstance(first, InvalidItem)
    assert first.custom_id == "a"
    assert second == InvalidItem(2, "line 2 #/custom_id is that of an earlier line")


def test_bodies_of_equal_json_have_one_fingerprint() -> None:
    """Spacing and the order of members do not matter; another number, text or option does."""

    def fingerprint(*lines: bytes, query: str = "") -> str:
        items = _items(with_fingerprint=True)
        for number, raw in enumerate(lines, 1):
            _item_of(items, number, raw)
        return items.fingerprint(options_of_query([("timeout_s", query)] if query else []))

    one = fingerprint(b'{"custom_id":"a","params":{}}', b"{")
    assert fingerprint(b' {"params" : {}, "custom_id":"\\u0061"}', b"{") == one
    others = {
        fingerprint(b'{"custom_id":"b","params":{}}', b"{"),
        fingerprint(b'{"custom_id":"a","params":{}}', b"["),
        fingerprint(b'{"custom_id":"a","params":{}}'),
        fingerprint(b'{"custom_id":"a","params":{}}', b"{", query="60"),
    }
    assert len({one, *others}) == 5


def _fingerprint_with(job: bytes) -> str:
    items = _items(with_fingerprint=True)
    _item_of(items, 1, b'{"custom_id":"a","params":{}}')
    return items.fingerprint(options_of_job(job, NO_BOUNDS))


_JOB = (
    b'{"timeout_s":60,"metadata":{"run":"nightly"},"not_before":"2026-11-23T14:02:11Z",'
    b'"webhook":{"url":"https://example.com/","events":["job.failed","batch.ended"],"result":true}}'
)


@pytest.mark.parametrize(
    ("job", "fingerprint"),
    [(b"{}", "fcdc029a4058a9ea35ea95728d200a5a"), (_JOB, "5bed82e729da4d9afed1b92975148286")],
)
def test_a_body_has_the_fingerprint_of_the_version_before(job: bytes, fingerprint: str) -> None:
    """These are of a version without tags: a repeat after an upgrade finds its batch."""
    assert _fingerprint_with(job) == fingerprint


def test_each_option_changes_the_fingerprint() -> None:
    """Also one that is left out where it has its default."""
    assert _fingerprint_with(b'{"tags":[]}') == _fingerprint_with(b"{}")
    jobs = (b"{}", b'{"tags":["a"]}', b'{"tags":["b"]}', b'{"max_attempts":1}')
    assert len({_fingerprint_with(job) for job in jobs}) == len(jobs)


def test_options_in_a_query_equal_those_of_the_job_member() -> None:
    """Each member of the metadata has its own parameter."""
    options = options_of_query(
        [
            ("timeout_s", "60"),
            ("not_before", "2026-11-23T14:02:11Z"),
            ("metadata.run", "nightly"),
            ("metadata.a b", "7"),
        ]
    )
    assert (options.timeout_s, options.max_attempts, options.priority) == (60, 3, Priority.LOW)
    assert options.not_before_ms == 1_795_442_531_000
    assert options.metadata == {"run": "nightly", "a b": "7"}


@pytest.mark.parametrize(
    ("query", "pointer"),
    [
        ([("timeout_s", "0")], "timeout_s"),
        ([("timeout_s", "1.5")], "timeout_s"),
        ([("timeout_s", "\u0661")], "timeout_s"),
        ([("timeout_s", "5"), ("timeout_s", "5")], "timeout_s"),
        ([("metadata.a", "5"), ("metadata.a", "6")], "metadata.a"),
        ([("metadata.a", "x" * 513)], "metadata.a"),
        ([("metadata", "{}")], "metadata"),
        ([("priority", "high")], "priority"),
        ([("priority", "normal")], "priority"),
        ([("not_before", "soon")], "not_before"),
        ([("not_before_ms", "5")], "not_before_ms"),
        ([("se cret", "5")], "#"),
        ([("metadata.a", "\0")], "#"),
    ],
)
def test_an_invalid_query_names_its_parameter(query: list[tuple[str, str]], pointer: str) -> None:
    """Unknown parameters too: silently ignoring an option would be a surprise."""
    with pytest.raises(InvalidRequest) as refused:
        options_of_query(query)
    assert [error.pointer for error in refused.value.errors] == [pointer]
