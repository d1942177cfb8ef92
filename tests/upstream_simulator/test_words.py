"""The two grammars, without a server: model names, and words in prompts."""

import pytest

from simulator.pace import DEFAULT, MAX_TOKENS, NAMED, Pace, pace_of
from simulator.words import HEAD, ODD, ROWS, STOP, Fault, Kind, Row, WordError, Words, grammar, parse_words


@pytest.mark.parametrize(
    ("model", "pace"),
    [
        ("sim-t50-g20-f50", Pace(tokens=50, gap_ms=20, first_ms=50)),
        ("sim-f0-t3", Pace(tokens=3, gap_ms=DEFAULT.gap_ms, first_ms=0)),
        ("sim-g0.5", Pace(tokens=DEFAULT.tokens, gap_ms=0.5, first_ms=DEFAULT.first_ms)),
        ("sim-t999999", Pace(tokens=MAX_TOKENS, gap_ms=DEFAULT.gap_ms, first_ms=DEFAULT.first_ms)),
        ("claude-sonnet-4-6", DEFAULT),
        ("simulated", NAMED["simulated"]),
        ("simulated-fast", NAMED["simulated-fast"]),
        ("sim", None),
        ("sim-50x20ms", None),
        ("sim-t50-", None),
        ("simulated-quick", None),
    ],
)
def test_a_models_name_is_its_pace(model: str, pace: Pace | None) -> None:
    assert pace_of(model) == pace


def test_a_prompt_beats_the_models_name() -> None:
    words = parse_words("tokens=5 first-ms=1.5")
    assert words.pace(Pace(tokens=50, gap_ms=20, first_ms=50)) == Pace(tokens=5, gap_ms=20, first_ms=1.5)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_row_has_an_example_that_asks_for_something(row: Row) -> None:
    assert parse_words(row.example) != Words()
    assert row.example in grammar()
    assert row.meaning in grammar()


def test_a_prompt_without_words_asks_for_nothing() -> None:
    assert parse_words("", "Why is the sky blue?") == Words()


@pytest.mark.parametrize(
    "prose",
    ['print(x, end="")', "nofail=529", "x,fail=529", "text=hello", "blocks=text+", "stop=now", "echo:this", "fail="],
)
def test_what_only_looks_like_a_word_is_prose(prose: str) -> None:
    assert parse_words(prose) == Words()


@pytest.mark.parametrize(
    "word",
    [
        "fail=529x",
        "fail=700",
        "fail=529,retryafter=1",
        "fail=400,body=htlm",
        "pause=3,ms=long",
        "odd=nulls,ms=1",
        "tokens=5s",
        "end=3,type=x",
        "slice=0",
        "pings=1,every-ms=x",
    ],
)
def test_a_mistyped_word_is_an_error(word: str) -> None:
    with pytest.raises(WordError, match=word.split("=", maxsplit=1)[0]):
        parse_words(word)


def test_faults_have_a_value_calls_and_options() -> None:
    words = parse_words("fail=529x2,retry-after=a%20b,percent=10 end=head stall=stop slice=7")
    assert words.endings == (
        Fault("fail", 529, calls=2, percent=10, options={"retry-after": "a b"}),
        Fault("end", HEAD),
        Fault("stall", STOP),
    )
    assert words.oddities == (Fault("slice", 7),)


def test_a_later_word_beats_an_earlier_one_and_faults_add_up() -> None:
    words = parse_words("nonce=a fail=500", "nonce=b fail=529")
    assert words.nonce == "b"
    assert [fault.value for fault in words.endings] == [500, 529]


def test_odd_shapes_are_faults_of_their_own() -> None:
    words = parse_words("odd=nulls+no-idsx2 odd=gzip,percent=10")
    assert words.oddities == (Fault("nulls", 1, calls=2), Fault("no-ids", 1, calls=2), Fault("gzip", 1, percent=10))


@pytest.mark.parametrize("name", list(ODD))
def test_every_odd_shape_is_in_the_grammar(name: str) -> None:
    assert f"odd={name} " in grammar()
    assert ODD[name] in grammar()


def test_what_is_behind_echo_is_not_read() -> None:
    words = parse_words("nonce=a echo: fail=529 echo: x")
    assert words.echo == "fail=529 echo: x"
    assert words.endings == ()


def test_a_share_of_calls_is_always_the_same_share() -> None:
    fault = Fault("fail", 529, percent=10)
    meant = [fault.is_meant_for(f"n{number}", 1) for number in range(2_000)]
    assert 120 < sum(meant) < 280
    assert meant == [fault.is_meant_for(f"n{number}", 1) for number in range(2_000)]
    assert not any(Fault("fail", 529, percent=0).is_meant_for(f"n{number}", 1) for number in range(2_000))


def test_words_far_into_a_long_prompt_are_not_looked_for() -> None:
    assert parse_words("x " * 60_000 + "fail=529") == Words()


def test_the_kinds_of_rows_are_all_in_use() -> None:
    assert {row.kind for row in ROWS} == set(Kind)
