"""After a worker has started, Redis holds the models that the upstreams serve."""

from typing import Any

import msgspec
import pytest

from shared.model_info import NO_DETAILS, ModelInfo
from shared.routes import ProviderName
from tests.running.crew import Crew
from tests.running.test_upstream_connection import a_provider, an_upstream, whole
from tests.support.wait import wait_until
from worker.outcome import UpstreamError


async def models_of(crew: Crew) -> list[ModelInfo]:
    async def are_told() -> bool:
        return bool(await crew.runtime.workers.models())

    await wait_until(are_told, "the models")
    return await crew.runtime.workers.models()


async def test_a_worker_tells_its_upstreams_models(crew: Crew) -> None:
    await crew.worker(idle_check_s=3_600)
    first = (await models_of(crew))[0]
    assert msgspec.structs.replace(first, details=NO_DETAILS) == ModelInfo(
        "claude-opus-4-6", "claude-opus-4-6 (simulated)", "2026-01-01T00:00:00Z"
    )
    assert first.details.max_input_tokens > 0
    assert crew.simulator.calls == [], "no call that costs anything"


@pytest.mark.parametrize("provider", [ProviderName.OPENAI])
async def test_a_chat_servers_models_are_told_in_the_same_form(crew: Crew) -> None:
    await crew.worker(idle_check_s=3_600)
    first = (await models_of(crew))[0]
    assert first == ModelInfo("claude-opus-4-6", "claude-opus-4-6", "2026-01-01T00:00:00Z")


async def test_models_that_cannot_be_read_are_said_once_and_change_nothing(crew: Crew) -> None:
    known = b'[{"id":"known","display_name":"Known","created_at":"2026-01-01T00:00:00Z"}]'
    await crew.runtime.workers.publish_models("anthropic", known)
    nowhere: dict[str, Any] = {"anthropic_base_url": "http://127.0.0.1:1"}
    hand = await crew.worker(idle_check_s=0.01, **nowhere)
    await wait_until(lambda: bool(hand.log.named("models_unread")), "the line")
    await wait_until(lambda: hand.worker._models._read_s > 0, "a read")
    assert [model.id for model in await crew.runtime.workers.models()] == ["known"]
    assert len(hand.log.named("models_unread")) == 1


async def test_the_lists_of_several_upstreams_are_one(crew: Crew) -> None:
    def told(*ids: str) -> bytes:
        return b"[%b]" % b",".join(
            b'{"id":"%b","display_name":"%b","created_at":""}' % (name.encode(), name.encode()) for name in ids
        )

    await crew.runtime.workers.publish_models("openai", told("c", "b"))
    await crew.runtime.workers.publish_models("anthropic", told("b", "a"))
    await crew.runtime.workers.publish_models("newer", b'["in a way of its own"]')
    assert [model.id for model in await crew.runtime.workers.models()] == ["b", "a", "c"]


async def test_pages_are_asked_for_until_there_are_five() -> None:
    page = b'{"data":[{"id":"a"},{"id":"b"}],"has_more":true,"last_id":"b"}'
    name = ProviderName.ANTHROPIC
    async with an_upstream(whole("200 OK", page)) as upstream, a_provider(upstream, name) as asked:
        assert [model.id for model in await asked.models()] == ["a", "b"]
        first, *others = [line.split()[1] for line in upstream.lines]
        assert first == "/v1/models?limit=1000"
        assert others == ["/v1/models?limit=1000&after_id=b"] * 4


@pytest.mark.parametrize("name", list(ProviderName))
async def test_a_server_without_a_list_is_told_as_a_failure_that_shows_it_can_be_reached(name: ProviderName) -> None:
    async with an_upstream(whole("404 Not Found", b"")) as upstream, a_provider(upstream, name) as asked:
        with pytest.raises(UpstreamError) as raised:
            await asked.models()
        assert raised.value.failure.error.code == "upstream_rejected"
