"""The call that counts a request's tokens. It uses no tokens, so it needs no permit and no row in the ledger."""

import asyncio

import msgspec

from shared.routes import Route
from shared.settings import Settings
from shared.store.queue import Claim
from worker.outcome import Answered, Breakage, How, Outcome, UpstreamError, classify
from worker.providers.base import Provider


async def count_tokens(provider: Provider, route: Route, claim: Claim, settings: Settings) -> Outcome:
    """Makes one call. The result is ``{"input_tokens": n}``."""
    spec = claim.spec
    try:
        async with asyncio.timeout(spec.first_token_timeout_s or settings.first_token_timeout_s):
            count = await provider.count_tokens(
                claim.request,
                model=route.model,
                beta=spec.anthropic_beta,
                version=spec.anthropic_version,
                connect_timeout_s=spec.connect_timeout_s or settings.connect_timeout_s,
            )
    except UpstreamError as error:
        return error.failure
    except TimeoutError:
        return classify(Breakage(How.UNANSWERED))
    return Answered(msgspec.json.encode({"input_tokens": count}), usage=None, first_content_s=None)
