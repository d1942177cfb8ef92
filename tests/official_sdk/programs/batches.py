"""messages.batches: from create to delete, and what is refused."""

import asyncio
import time
from typing import Any

from anthropic import Anthropic, APIStatusError, AsyncAnthropic
from seen import FAST, RUN, error, tell, user


def request(custom_id: str, words: str = "", model: str = FAST) -> Any:
    return {"custom_id": custom_id, "params": {"model": model, "max_tokens": 500, "messages": user(words or "Hello.")}}


def requests(mode: str) -> list[Any]:
    return [
        request("plain", f"nonce={RUN}-batch-{mode}"),
        request("thinking", "blocks=thinking+text"),
        request("refused", "fail=400"),
    ]


SLOW = [request("slow", "tokens=400 gap-ms=50"), request("slow-too", "tokens=400 gap-ms=50")]
REFUSED: dict[str, list[Any]] = {
    "no requests": [],
    "two of one id": [request("a"), request("a")],
    "an id that is none": [request("a b")],
}


def run() -> None:
    client = Anthropic(max_retries=0)
    batch = client.messages.batches.create(requests=requests("sync"))
    tell("created", "sync", **batch_seen(batch))
    while batch.processing_status != "ended":
        time.sleep(0.05)
        batch = client.messages.batches.retrieve(batch.id)
    tell("ended", "sync", **batch_seen(batch))
    tell(
        "results", "sync", results=[line.model_dump(mode="json") for line in client.messages.batches.results(batch.id)]
    )

    slow = client.messages.batches.create(requests=SLOW)
    try:
        client.messages.batches.delete(slow.id)
    except APIStatusError as caught:
        tell("delete before the end", "sync", **error(caught))
    cancelled = client.messages.batches.cancel(slow.id)
    tell("cancel", "sync", status_is=cancelled.processing_status in ("canceling", "ended"), id=cancelled.id == slow.id)
    while cancelled.processing_status != "ended":
        time.sleep(0.05)
        cancelled = client.messages.batches.retrieve(slow.id)
    tell("cancelled", "sync", **batch_seen(cancelled))
    tell(
        "results of it",
        "sync",
        results=[line.model_dump(mode="json") for line in client.messages.batches.results(slow.id)],
    )

    others = [client.messages.batches.create(requests=[request("one")]).id for _ in range(3)]
    mine = [*reversed(others), slow.id, batch.id]
    listed = [each.id for each in client.messages.batches.list(limit=2) if each.id in mine]
    tell("listed", "sync", newest_first=listed == mine)
    page = client.messages.batches.list(limit=2, before_id=batch.id)
    back = [each.id for each in page if each.id in mine]
    tell("listed backwards", "sync", all=sorted(back) == sorted(mine[:-1]), shape=page_seen(page))

    deleted = client.messages.batches.delete(batch.id)
    tell("deleted", "sync", type=deleted.type, id=deleted.id == batch.id)
    for case, call in {
        "retrieve what is deleted": lambda: client.messages.batches.retrieve(batch.id),
        "retrieve what never was": lambda: client.messages.batches.retrieve("msgbatch_none"),
        "cancel what never was": lambda: client.messages.batches.cancel("msgbatch_none"),
        "delete what never was": lambda: client.messages.batches.delete("msgbatch_none"),
    }.items():
        try:
            call()
        except APIStatusError as caught:
            tell(case, "sync", **error(caught))
    for case, refused in REFUSED.items():
        try:
            batch = client.messages.batches.create(requests=refused)
            while batch.processing_status != "ended":
                time.sleep(0.05)
                batch = client.messages.batches.retrieve(batch.id)
            tell(case, "sync", counts=batch_seen(batch)["counts"])
        except APIStatusError as caught:
            tell(case, "sync", **error(caught))


async def run_async() -> None:
    client = AsyncAnthropic(max_retries=0)
    batches = client.messages.batches
    batch = await batches.create(requests=requests("async"))
    tell("created", "async", **batch_seen(batch))
    while batch.processing_status != "ended":
        await asyncio.sleep(0.05)
        batch = await batches.retrieve(batch.id)
    tell("ended", "async", **batch_seen(batch))
    results = [line.model_dump(mode="json") async for line in await batches.results(batch.id)]
    tell("results", "async", results=results)

    slow = await batches.create(requests=SLOW)
    try:
        await batches.delete(slow.id)
    except APIStatusError as caught:
        tell("delete before the end", "async", **error(caught))
    cancelled = await batches.cancel(slow.id)
    tell("cancel", "async", status_is=cancelled.processing_status in ("canceling", "ended"), id=cancelled.id == slow.id)
    while cancelled.processing_status != "ended":
        await asyncio.sleep(0.05)
        cancelled = await batches.retrieve(slow.id)
    tell("cancelled", "async", **batch_seen(cancelled))
    results = [line.model_dump(mode="json") async for line in await batches.results(slow.id)]
    tell("results of it", "async", results=results)

    others = [(await batches.create(requests=[request("one")])).id for _ in range(3)]
    mine = [*reversed(others), slow.id, batch.id]
    listed = [each.id async for each in batches.list(limit=2) if each.id in mine]
    tell("listed", "async", newest_first=listed == mine)
    page = await batches.list(limit=2, before_id=batch.id)
    back = [each.id async for each in page if each.id in mine]
    tell("listed backwards", "async", all=sorted(back) == sorted(mine[:-1]), shape=page_seen(page))

    deleted = await batches.delete(batch.id)
    tell("deleted", "async", type=deleted.type, id=deleted.id == batch.id)
    for case, call in {
        "retrieve what is deleted": lambda: batches.retrieve(batch.id),
        "retrieve what never was": lambda: batches.retrieve("msgbatch_none"),
        "cancel what never was": lambda: batches.cancel("msgbatch_none"),
        "delete what never was": lambda: batches.delete("msgbatch_none"),
    }.items():
        try:
            await call()
        except APIStatusError as caught:
            tell(case, "async", **error(caught))
    for case, refused in REFUSED.items():
        try:
            batch = await batches.create(requests=refused)
            while batch.processing_status != "ended":
                await asyncio.sleep(0.05)
                batch = await batches.retrieve(batch.id)
            tell(case, "async", counts=batch_seen(batch)["counts"])
        except APIStatusError as caught:
            tell(case, "async", **error(caught))


def batch_seen(batch: Any) -> dict[str, Any]:
    seen = batch.model_dump(mode="json")
    return {
        "prefix": seen["id"][:9],
        "type": seen["type"],
        "status": seen["processing_status"],
        "counts": {name: count for name, count in seen["request_counts"].items() if isinstance(count, int)},
        "has": sorted(name for name in TIMES if seen[name] is not None),
        "results_url": seen["results_url"] is not None,
    }


TIMES = ("created_at", "expires_at", "ended_at", "cancel_initiated_at", "archived_at")


def page_seen(page: Any) -> dict[str, Any]:
    ids = [batch.id for batch in page.data]
    return {"length": len(ids), "first": page.first_id == ids[0], "last": page.last_id == ids[-1]}


if __name__ == "__main__":
    run()
    asyncio.run(run_async())
