"""The sums of usage."""

from datetime import date

import msgspec

from shared.usage import METRICS, Group, Grouping, Summary, UsageRow, UsageSums, field_of, rows_of

MONDAY, TUESDAY = date(2026, 11, 23), date(2026, 11, 24)

_ROWS = [
    UsageRow(TUESDAY, "b", None, UsageSums(calls=1, cost_nano_usd=10)),
    UsageRow(MONDAY, "b", "key_2", UsageSums(calls=2, output_tokens=5)),
    UsageRow(MONDAY, "b", "key_1", UsageSums(calls=4, unpriced_calls=4)),
    UsageRow(MONDAY, "a", None, UsageSums(calls=8, input_tokens=3)),
]


def test_sums_add_up_metric_by_metric() -> None:
    """Every metric is included."""
    one = UsageSums(*range(1, len(METRICS) + 1))
    assert one + one == UsageSums(*range(2, 2 * len(METRICS) + 1, 2))
    assert one + UsageSums() == one


def test_a_field_survives_a_round_trip() -> None:
    """A model's name may contain anything."""
    written = {
        field_of(model, key, metric): amount
        for model, key in (("m", None), ("m", "key_1"), ("vendor/m:1\nx", "key_1"))
        for amount, metric in enumerate(METRICS, start=1)
    }
    whole = UsageSums(*range(1, len(METRICS) + 1))
    assert rows_of(MONDAY, written.items()) == [
        UsageRow(MONDAY, "m", None, whole),
        UsageRow(MONDAY, "m", "key_1", whole),
        UsageRow(MONDAY, "vendor/m:1\nx", "key_1", whole),
    ]


def test_a_metric_of_a_newer_version_is_left_out() -> None:
    """During a deploy both versions count."""
    fields = [
        (field_of("m", None, "calls"), 3),
        (field_of("m", None, "web_searches"), 5),
        (field_of("n", None, "x"), 1),
    ]
    assert rows_of(MONDAY, fields) == [UsageRow(MONDAY, "m", None, UsageSums(calls=3))]


def test_rows_are_summed_by_their_group() -> None:
    """They are sorted by day, model and key; rows without a key come first."""
    assert [
        (group.day, group.model, group.key, group.sums.calls) for group in _grouped(_ROWS, frozenset(Grouping))
    ] == [
        (MONDAY, "a", None, 8),
        (MONDAY, "b", "key_1", 4),
        (MONDAY, "b", "key_2", 2),
        (TUESDAY, "b", None, 1),
    ]
    assert [(group.day, group.sums.calls) for group in _grouped(_ROWS, frozenset({Grouping.DAY}))] == [
        (MONDAY, 14),
        (TUESDAY, 1),
    ]
    assert [(group.key, group.sums.calls) for group in _grouped(_ROWS, frozenset({Grouping.KEY}))] == [
        (None, 9),
        ("key_1", 4),
        ("key_2", 2),
    ]
    assert [group.sums for group in _grouped(_ROWS, frozenset())] == [_summary_of(_ROWS).total]
    assert _grouped([], frozenset()) == []


def test_every_grouping_has_the_same_total() -> None:
    """Nothing is lost or counted twice."""
    for by in (set[Grouping](), {Grouping.DAY}, {Grouping.MODEL}, {Grouping.KEY, Grouping.DAY}, set(Grouping)):
        sums = [group.sums for group in _grouped(_ROWS, frozenset(by))]
        assert sum(sums, UsageSums()) == _summary_of(_ROWS).total


def test_a_cost_is_in_dollars_and_null_only_if_no_price_is_known() -> None:
    """Zero would mean that it was free."""
    assert UsageSums().cost_usd == 0
    assert UsageSums(calls=2, cost_nano_usd=10_500_000).cost_usd == 0.0105
    assert UsageSums(calls=2, unpriced_calls=1, cost_nano_usd=1).cost_usd == 1e-9
    assert UsageSums(calls=2, unpriced_calls=2).cost_usd is None


def test_metrics_are_whole_numbers() -> None:
    """HINCRBY accepts nothing else."""
    assert {field.type for field in msgspec.structs.fields(UsageSums)} == {int}


def test_groups_come_in_pages() -> None:
    """Each page begins after the last group of the page before, even if that group no longer exists."""
    summary = _summary_of(_ROWS, frozenset(Grouping))
    first = summary.groups(limit=3)
    assert [group.key for group in first] == [None, "key_1", "key_2"]
    assert summary.groups(after=first[-1][:-1]) == summary.groups()[3:]
    assert summary.groups(after=("", MONDAY, "a", "gone", None)) == summary.groups()[1:]


def _summary_of(rows: list[UsageRow], by: frozenset[Grouping] = frozenset()) -> Summary:
    summary = Summary(by)
    summary.add(rows)
    return summary


def _grouped(rows: list[UsageRow], by: frozenset[Grouping]) -> list[Group]:
    return _summary_of(rows, by).groups()
