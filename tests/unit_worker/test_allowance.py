"""What an upstream's headers report about its limits; headers that cannot be parsed are ignored."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.routes import Limits
from worker.rate_limit_headers import Allowance, anthropic_allowance, openai_allowance

NOON_S = 1_774_440_000.0  # 2026-03-25T12:00:00Z

ANTHROPIC = {
    "anthropic-ratelimit-requests-limit": "4000",
    "anthropic-ratelimit-requests-remaining": "3999",
    "anthropic-ratelimit-requests-reset": "2026-03-25T12:00:00Z",
    "anthropic-ratelimit-input-tokens-limit": "2000000",
    "anthropic-ratelimit-input-tokens-remaining": "1999000",
    "anthropic-ratelimit-output-tokens-limit": "400000",
}


def test_anthropics_limits_are_learned() -> None:
    assert anthropic_allowance(ANTHROPIC, now_s=NOON_S) == Allowance(Limits(4000, 2_000_000, 400_000))


def test_the_wait_for_a_used_up_limit_ends_with_its_next_free_request() -> None:
    """The reset is when all 4,000 requests are free again; the first one is free 4,000 times sooner."""
    used_up = ANTHROPIC | {
        "anthropic-ratelimit-requests-remaining": "0",
        "anthropic-ratelimit-requests-reset": "2026-03-25T12:01:00Z",
    }
    allowance = anthropic_allowance(used_up, now_s=NOON_S)
    assert allowance is not None
    assert allowance.exhausted_s == pytest.approx(60 / 4000)


def test_openais_requests_are_learned() -> None:
    headers = {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "1m0s",
        "x-ratelimit-limit-tokens": "150000",
    }
    assert openai_allowance(headers) == Allowance(Limits(requests=60), 1.0)


@pytest.mark.parametrize(
    ("span", "seconds"),
    [("6m0s", 360), ("120ms", 0.12), ("1h2m3s", 3723), ("1.5s", 1.5), ("soon", 0), ("1s!", 0), ("", 0)],
)
def test_a_span_in_each_form(span: str, seconds: float) -> None:
    headers = {
        "x-ratelimit-limit-requests": "1",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": span,
    }
    allowance = openai_allowance(headers)
    assert allowance is not None
    assert allowance.exhausted_s == pytest.approx(seconds)


def test_who_says_nothing_has_no_allowance() -> None:
    assert anthropic_allowance({"content-type": "text/event-stream"}) is None
    assert openai_allowance({"content-type": "text/event-stream"}) is None


texts = st.text(max_size=40) | st.sampled_from(
    ["0", "-1", "1e9", "9" * 30, "٣", "2026-03-25", "2026-03-25T12:00:00", "∞s"]
)


@given(names=st.lists(st.sampled_from(list(ANTHROPIC))), data=st.data())
def test_rubbish_is_never_an_error(names: list[str], data: st.DataObject) -> None:
    headers = ANTHROPIC | {name: data.draw(texts) for name in names}
    allowance = anthropic_allowance(headers, now_s=NOON_S)
    assert allowance is not None
    assert allowance.exhausted_s >= 0
    assert all(limit is None or limit > 0 for limit in allowance.limits)
    spoilt = {name.replace("anthropic-ratelimit", "x-ratelimit"): text for name, text in headers.items()}
    openai_allowance({"x-ratelimit-limit-requests": data.draw(texts), **spoilt})
