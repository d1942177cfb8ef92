"""The pages for batches, webhooks, usage, keys and tenants, as their users work with them."""

import asyncio
import json
from pathlib import Path

import pytest

from shared.api_key import TENANT_SCOPES, Scope
from tests.pages.conftest import TENANT, Window, client
from tests.support.browser import CHROMIUM
from tests.support.receiver import receiving, response
from tests.support.wait import wait_until

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here (Debian: apt-get install chromium)"),
]

HOSTILE = (
    "<script>hurt=1</script>",
    "<img src=x onerror=hurt=1>",
    "[x](javascript:hurt=1)",
    "<a href=javascript:hurt=1>x</a>",
    "![x](http://elsewhere.example/x.png)",
    "<iframe src=data:text/html,x>",
)


def _lines(*items: tuple[str, str]) -> str:
    params = [{"custom_id": name, "params": {"prompt": prompt, "max_tokens": 400}} for name, prompt in items]
    return "\n".join(map(json.dumps, params))


def _saved_lines(folder: Path) -> list[int]:
    return [len(path.read_text().splitlines()) for path in folder.glob("batch_*.jsonl")]


async def test_a_batch_is_dropped_watched_downloaded_and_retried(window: Window, tmp_path: Path) -> None:
    """From the file to its end; what failed is retried as a batch of its own."""
    await window.sign_in(await window.key(*TENANT_SCOPES))
    await window.page.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    await window.go("batches")
    await window.shows(".drop", "Drop a JSON-lines file")
    await window.keep_pictures("batches-empty")
    good = [(f"good-{n}", f"nonce=g{n} tokens=20 gap-ms=10") for n in range(40)]
    bad = [(f"bad-{n}", f"nonce=b{n} fail=400x1 tokens=3") for n in range(5)]
    slow = [("slow", "nonce=slow tokens=300 gap-ms=20")]
    await window.drop(".drop", "prompts.jsonl", _lines(*good, *bad, *slow))
    await window.shows(".grid [title='slow: running']")
    await window.page.run("document.querySelector('.grid [title^=slow]').click()")
    await window.shows(".answer", "slow.1.5 ")
    await window.keep_pictures("batch-running")
    await window.shows(".head .state", "ended")
    await window.shows(".spans", "46 of 46")
    await window.shows("p.hint", "upstream_rejected 5")
    await window.until("document.querySelectorAll('.grid .failed').length === 5", "five red cells")
    await window.keep_pictures("batch-ended")
    await window.press("Download results")
    await wait_until(lambda: _saved_lines(tmp_path) == [46], "the whole download")
    await window.press("Retry what did not succeed")
    await window.shows(".hint", "Retry of")
    await window.shows(".spans", "5 of 5")
    await window.shows(".head .state", "ended")
    await window.go("batches")
    await window.shows("tbody tr:nth-child(2) .failed", "5")
    await window.keep_pictures("batches")
    await window.is_clean()


async def test_all_of_500_failed_jobs_are_retried(window: Window) -> None:
    """The dialog names their number, and the operation's counts reach it."""
    key = await window.key(*TENANT_SCOPES)
    async with client(window, key) as http:
        for part in range(10):
            bodies = [{"prompt": f"nonce=n{part}-{n} fail=400x1 tokens=1", "max_tokens": 9} for n in range(50)]
            sent = await asyncio.gather(
                *[http.post("/v1/jobs", json={**one, "job": {"tags": ["t"]}}) for one in bodies]
            )
            assert {one.status_code for one in sent} == {202}
        await window.sign_in(key)
        await window.go("jobs?tag=t&status=failed")

        async def have_failed() -> bool:
            found = await http.post(
                "/v1/jobs/retry", json={"filter": {"status": "failed", "tag": "t"}, "dry_run": True}
            )
            return bool(found.json()["matched"] == 500)

        await wait_until(have_failed, "500 failures", timeout_s=60)
    await window.press("Retry all that match…")
    await window.shows("dialog[open]", "Retry 500")
    await window.press("Yes, all 500")
    await window.shows("[role=status]", "done 500")
    await window.is_clean()


async def test_a_key_that_may_read_alone_finds_nothing_to_press(window: Window) -> None:
    """No page and no button for what the API would refuse."""
    async with client(window, await window.key(*TENANT_SCOPES)) as http:
        lines = _lines(("row", "nonce=r fail=400"))
        batch = (await http.post("/v1/batches", content=lines, headers={"Content-Type": "application/jsonl"})).json()
    await window.sign_in(await window.key(Scope.READ))
    assert await window.page.run("[...document.querySelectorAll('nav a')].map(one => one.textContent).join()") == (
        "Overview,Jobs,Batches,Webhooks,Usage"
    )
    await window.go("batches")
    await window.shows("tbody a", batch["id"])
    assert await window.page.run("document.querySelector('.drop')") is None
    await window.go(f"batches/{batch['id']}")
    await window.shows(".head .state", "ended")
    buttons = "[...document.querySelectorAll('.head button')].map(one => one.textContent).join()"
    assert await window.page.run(buttons) == "Download results,Download failures"
    await window.go("keys")  # typed by hand: it is not there
    await window.shows("nav a[aria-current]", "Overview")
    await window.is_clean()


async def test_a_failed_delivery_shows_its_attempts_and_is_sent_again(window: Window) -> None:
    """The receiver fails twice, which is all; sent again it begins anew."""
    key = await window.key(*TENANT_SCOPES)
    async with receiving() as receiver, client(window, key) as http:
        receiver.respond_with(response(500), response(503))
        body = {"prompt": "tokens=1", "max_tokens": 9, "job": {"webhook": {"url": f"{receiver.url}/<b>hook</b>"}}}
        assert (await http.post("/v1/jobs", json=body)).status_code == 202
        await window.sign_in(key)
        await window.go("webhooks")
        await window.shows(".delivery .state", "failed")
        await window.shows(".delivery summary", "2 attempts")
        await window.shows(".delivery .story li", "503")
        await window.keep_pictures("webhooks")
        await window.press("Send again")
        await window.shows(".delivery .state", "delivered")
        await window.shows(".delivery summary", "1 attempt")
        await window.press("Show the signing secret")
        await window.shows("code", "whsec_")
    await window.is_clean()


async def test_a_key_is_made_changed_rotated_and_revoked(window: Window) -> None:
    """Its text is shown once, and works until it is revoked."""
    await window.sign_in(await window.key(*TENANT_SCOPES))
    await window.go("keys")
    await window.press("Make a key")
    await window.fill("dialog input[name=name]", "nightly <b>job</b>")
    await window.fill("dialog input[name=usd_per_day]", "2.5")
    await window.keep_pictures("keys-make")
    await window.press("Make")
    await window.shows("dialog .secret", "ts_")
    made = await window.page.text("dialog .secret")
    await window.press("I have it")
    await window.shows("tbody td", "nightly <b>job</b>")
    await window.shows("tbody td", "Dollars a day: $2.50")
    async with client(window, made) as http:
        assert (await http.get("/v1/limits")).json()["key"]["usd_per_day"]["limit_usd"] == 2.5
    assert not await window.has(made)
    await window.keep_pictures("keys")
    row = "[...document.querySelectorAll('tr')].find(one => one.textContent.includes('nightly'))"

    async def press_in_row(name: str) -> None:
        await window.page.run(
            f"[...{row}.querySelectorAll('button')].find(one => one.textContent === '{name}').click()"
        )

    await press_in_row("Change")
    await window.fill("dialog input[name=usd_per_day]", "")
    await window.press("Change")
    await window.until(f"!{row}.textContent.includes('Dollars')", "no limit")
    await press_in_row("Rotate")
    await window.fill("dialog input[name=grace_s]", "0")
    await window.press("Rotate")
    await window.shows("dialog .secret", "ts_")
    rotated = await window.page.text("dialog .secret")
    assert rotated != made
    await window.press("I have it")
    await press_in_row("Revoke")
    await window.press("Revoke")
    await window.shows("tbody .state", "revoked")
    await window.is_clean()


async def test_usage_is_drawn_and_listed_and_limits_show_what_is_left(window: Window) -> None:
    """By model and by end user; the figures are those of the API."""
    key = await window.key(*TENANT_SCOPES)
    async with client(window, key) as http:
        for number, user in enumerate(("ann", "ben", "<img src=x onerror=hurt=1>")):
            body = {"prompt": f"nonce={number} tokens=5", "max_tokens": 9, "model": "claude-sonnet-4-6"}
            await http.post("/v1/jobs", json={**body, "job": {"end_user": user}})

        async def are_counted() -> bool:
            return bool((await http.get("/v1/usage")).json()["total"]["calls"] == 3)

        await wait_until(are_counted, "three calls")
    await window.sign_in(key)
    await window.go("usage?measure=tokens")
    await window.shows("tbody td", "claude-sonnet-4-6")
    await window.shows("tfoot td", "3")
    assert await window.page.run("document.querySelectorAll('.chart rect').length") == 1
    await window.shows("h2", f"Limits of the tenant {TENANT}")
    await window.shows(".list .number", "of")
    await window.keep_pictures("usage")
    await window.go("usage?by=end_user&measure=calls")
    await window.shows("tbody td", "<img src=x onerror=hurt=1>")
    assert await window.page.run("document.querySelectorAll('.chart rect').length") == 3
    await window.keep_pictures("usage-by-end-user")
    assert await window.page.run("typeof hurt") == "undefined"
    await window.is_clean()


async def test_an_operator_makes_limits_and_erases_a_tenant(window: Window) -> None:
    """And a tenant that exists is not overwritten."""
    await window.sign_in(await window.key(*TENANT_SCOPES, Scope.OPERATOR))
    await window.go("tenants")
    for refusal in ("", "exists already"):
        await window.press("Make a tenant")
        await window.fill("dialog input[name=name]", "globex")
        await window.fill("dialog input[name=running_jobs]", "7")
        await window.press("Make")
        await window.shows("dialog .failure" if refusal else "tbody td", refusal or "Running jobs: 7")
    await window.press("Leave it")
    await window.keep_pictures("tenants")
    await window.press("Erase")
    await window.fill("dialog[open] input", "globex")
    await window.press("Erase all of it")
    await window.until(
        "!document.querySelector('main').textContent.includes('globex')", "globex to be gone", timeout_s=40
    )
    await window.is_clean()


async def test_hostile_texts_are_shown_as_texts(window: Window) -> None:
    """In custom ids, prompts, answers, metadata and error messages: nothing runs, nothing is fetched, nothing is a link."""
    key = await window.key(*TENANT_SCOPES)
    async with client(window, key) as http:
        items = [(text[:64], f"echo: {text}") for text in HOSTILE]
        items.append(("broken", f"fail=400,message={'%3Cimg+src=x+onerror=hurt=1%3E'}"))
        batch = (
            await http.post(
                "/v1/batches",
                params={"metadata.note": HOSTILE[1]},
                content=_lines(*items),
                headers={"Content-Type": "application/jsonl"},
            )
        ).json()
    await window.sign_in(key)
    await window.go(f"batches/{batch['id']}")
    await window.shows(".head .state", "ended")
    await window.shows(".facts dd", HOSTILE[1])
    await window.until(f"document.querySelectorAll('.grid .succeeded').length === {len(HOSTILE)}", "all cells")
    for number, text in enumerate(HOSTILE):
        place = len(HOSTILE) - number + 1
        await window.page.run(f"document.querySelector('.grid .cell:nth-child({place})').click()")
        await window.shows(".answer", text)
        await window.shows(".bar h2", text[:64])
    await window.page.run("document.querySelector('.grid .cell:nth-child(1)').click()")
    await window.shows(".columns .failure", "upstream_rejected")
    await window.keep_pictures("hostile")
    assert await window.page.run("typeof hurt") == "undefined"
    assert await window.page.run("document.querySelectorAll('main img, main script, main iframe').length") == 0
    assert (
        await window.page.run("[...document.querySelectorAll('main a')].every(one => one.hash.startsWith('#/'))")
        is True
    )
    await window.is_clean()
