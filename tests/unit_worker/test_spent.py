"""The usage that is recorded for a failed call."""

from shared.completion import Completion
from shared.job import Usage
from shared.routes import ProviderName, Route
from tests.support.builders import an_id
from worker.governor import Permit, Spent
from worker.outcome import Failure, Refusal, classify
from worker.upstream_call import UpstreamCall

REFUSED: Failure = classify(Refusal(502, message="x"))


def a_call(completion: Completion) -> UpstreamCall:
    """A permitted call with an input of about ten tokens."""
    route = Route(ProviderName.OPENAI, "m")
    permit = Permit("c", an_id(), "tenant-a", "", route, opened_ms=0, is_probe=False, input_estimate=10)
    return UpstreamCall(permit, completion)


def test_a_refusal_costs_nothing() -> None:
    assert a_call(Completion()).spent(REFUSED) == Spent(Usage(), is_estimated=False)


def test_an_error_inside_an_answer_costs_the_received_part() -> None:
    """Chat servers send a status there too, as if no answer had begun."""
    heard = Completion()
    heard.add("message_start", b'{"message":{}}')
    heard.add("content_block_start", b'{"index":0,"content_block":{"type":"text"}}')
    heard.add("content_block_delta", b'{"index":0,"delta":{"type":"text_delta","text":"four"}}')
    assert a_call(heard).spent(REFUSED) == Spent(Usage(input_tokens=10, output_tokens=1), is_estimated=True)
