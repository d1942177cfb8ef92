"""``tokenspool tenants erase``: erases all that Redis holds of a tenant, its keys, settings and usage included.

It runs while everything else goes on, as ``DELETE /v1/tenants/{name}`` does. If it is interrupted, the API processes finish it.
"""

import asyncio
import time
from typing import Final

from cli.errors import CommandError
from cli.output import put_json
from cli.serve import read_settings
from cli.terminal import note
from shared.errors import Problem
from shared.store.erasures import Erasure
from shared.store.runtime import open_runtime

_TIMEOUT_S: Final = 10.0
_PROGRESS_EVERY_S: Final = 1.0
_COUNTS: Final = [name for name in Erasure._fields if name not in ("since_ms", "step")]


def erase_tenant(tenant: str, *, as_json: bool) -> None:
    """Erase the tenant and note the progress. Raises CommandError if Redis fails; it can then be run again."""
    try:
        last = asyncio.run(_erase(tenant))
    except Problem as problem:
        raise CommandError(f"{problem.detail} {tenant} is erased only in part: run the command again.") from None
    if as_json:
        put_json({"name": tenant, "erased": {name: getattr(last, name, 0) for name in _COUNTS}})


async def _erase(tenant: str) -> Erasure | None:
    async with open_runtime(read_settings(), process_name="tokenspool-erase", timeout_s=_TIMEOUT_S) as runtime:
        erasures = runtime.erasures
        await erasures.begin(tenant)
        noted_s, last = time.monotonic(), await erasures.get(tenant)
        while await erasures.advance(tenant):
            last = await erasures.get(tenant) or last
            if last and time.monotonic() - noted_s >= _PROGRESS_EVERY_S:
                noted_s = time.monotonic()
                note(f"so far: {_text(last)}")
    if last:
        note(_text(last))
    note(f"nothing is left of {tenant}")
    return last


def _text(erasure: Erasure) -> str:
    return (
        f"keys revoked: {erasure.keys_revoked}; operations erased: {erasure.operations_erased}; "
        f"batches erased: {erasure.batches_erased}; "
        f"jobs erased: {erasure.jobs_erased}, {erasure.jobs_cancelled} of them cancelled; "
        f"webhook deliveries erased: {erasure.deliveries_erased}"
    )
