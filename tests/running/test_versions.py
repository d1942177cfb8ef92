"""The ``anthropic-version`` of a call: the caller's own, or the worker's if the caller sent none."""

import pytest

from shared.job import JobKind, JobState
from shared.routes import ProviderName
from shared.settings import Settings, load_settings
from tests.running.crew import FAST, Crew
from tests.running.test_upstream_connection import A_REQUEST, a_provider, an_upstream, whole
from worker.providers import open_providers
from worker.providers.anthropic import AnthropicProvider

_CALLERS = "2023-01-01"


@pytest.mark.parametrize(
    ("version", "sent"), [(_CALLERS, _CALLERS), ("", "2023-06-01"), ("a\r\nx-api-key: b", "2023-06-01")]
)
async def test_a_call_has_its_callers_version(version: str, sent: str) -> None:
    """For answers and counts. Without one, or with an invalid one, the version that accepts every member is sent."""
    name = ProviderName.ANTHROPIC
    async with an_upstream(whole("200 OK", b'{"input_tokens":1}')) as upstream, a_provider(upstream, name) as asked:
        async with asked.stream(A_REQUEST, model=FAST, version=version, connect_timeout_s=5) as stream:
            await stream.read()
        await asked.count_tokens(A_REQUEST, model=FAST, version=version, connect_timeout_s=5)
        assert [headers["anthropic-version"] for headers, _ in upstream.requests] == [sent, sent]


async def test_the_version_of_calls_without_one_is_a_setting() -> None:
    """Also for requests of the models."""
    async with an_upstream(whole("200 OK", b'{"data":[],"input_tokens":1}')) as upstream:
        settings = load_settings(
            anthropic_base_url=upstream.url, anthropic_api_key="made-up", anthropic_version="2026-10-21"
        )
        asked = open_providers(settings, [ProviderName.ANTHROPIC])[ProviderName.ANTHROPIC]
        try:
            await asked.count_tokens(A_REQUEST, model=FAST, connect_timeout_s=5)
            await asked.models()
        finally:
            await asked.close()
        assert [headers["anthropic-version"] for headers, _ in upstream.requests] == ["2026-10-21"] * 2


def test_the_default_is_the_version_that_refuses_no_member() -> None:
    """2026-10-21 refuses sampling parameters, citations of users and documents of assistants."""
    assert Settings().anthropic_version == "2023-06-01"


@pytest.mark.parametrize("kind", list(JobKind))
async def test_a_job_takes_its_version_to_the_call(crew: Crew, kind: JobKind, monkeypatch: pytest.MonkeyPatch) -> None:
    """For every kind of job."""
    sent: list[str] = []
    headers_of = AnthropicProvider._headers_of

    def noting(provider: AnthropicProvider, beta: str, version: str) -> dict[str, str]:
        headers = headers_of(provider, beta, version)
        sent.append(headers["anthropic-version"])
        return headers

    monkeypatch.setattr(AnthropicProvider, "_headers_of", noting)
    await crew.worker()
    for version in (_CALLERS, ""):
        job_id = await crew.submit(kind=kind, anthropic_version=version)
        assert (await crew.ended(job_id)).state is JobState.SUCCEEDED
    assert sent == [_CALLERS, "2023-06-01"]
