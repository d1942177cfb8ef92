"""What a person does on the page: submit, cut, watch a takeover, find, retry all, sign in."""

import asyncio
import json
import os
from pathlib import Path
from typing import Any, Final

import pytest

from shared.api_key import DEFAULT_SCOPES, Scope
from shared.limits import NO_LIMITS
from tests.dashboard.conftest import MODEL, Serve, Tab, a_tab
from tests.support.browser import CHROMIUM
from tests.support.deployment import a_deployment, a_simulator
from tests.support.follower import ask
from tests.support.served import Served
from tests.support.wait import wait_until

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here (Debian: apt-get install chromium)"),
]

_PICTURES = os.environ.get("DASHBOARD_PICTURES")
"""A folder for pictures of the pages, as a person sees them; none are kept without it."""

_HOSTILE: Final = (
    "<script>alert(1)</script><img src=x onerror=alert(2)><a href='javascript:alert(3)'>x</a>"
    "<img src='http://192.0.2.1/spy.png'>![](http://192.0.2.1/a.png) data:text/html,<script>alert(4)</script>"
)


async def _picture(tab: Tab, name: str) -> None:
    if _PICTURES:
        picture = await tab.page.picture()
        await asyncio.to_thread(Path(_PICTURES, f"{name}.png").write_bytes, picture)


async def _submitted(served: Served, prompt: str, **more: Any) -> str:
    body = {"prompt": prompt, "model": MODEL, **more}
    status, job, _ = await ask(served.url, "/v1/jobs", method="POST", body=body)
    assert status == 202
    return str(job["id"])


async def _state(served: Served, job_id: str) -> str:
    _, job, _ = await ask(served.url, f"/v1/jobs/{job_id}")
    return str(job["status"])


async def _ended(served: Served, *job_ids: str) -> None:
    async def have() -> bool:
        return all([await _state(served, job_id) not in ("queued", "running") for job_id in job_ids])

    await wait_until(have, "the ends", timeout_s=30)


@pytest.mark.parametrize("is_dark", [False, True])
@pytest.mark.parametrize("width", [1280, 390])
async def test_a_cut_connection_resumes_and_the_answer_is_whole(serve: Serve, is_dark: bool, width: int) -> None:
    served = await serve()
    async with a_tab(served.url, is_dark=is_dark, width=width) as tab:
        await tab.open("playground")
        await tab.shows("No job yet")
        await tab.fill("textarea", "nonce=q tokens=60 gap-ms=25")
        await tab.press("Submit")
        await tab.shows("q.1.3")
        await tab.press("Cut my connection")
        await tab.shows("connection cut after event")
        await tab.shows("q.1.59")
        await tab.shows("succeeded")
        text = await tab.page.text(".answer")
        assert text.split() == [f"q.1.{number}" for number in range(60)]
        await _picture(tab, f"playground-{'dark' if is_dark else 'light'}-{width}")
        assert not await tab.page.run("document.documentElement.scrollWidth > innerWidth"), "the page scrolls sideways"


async def test_ten_thousand_tokens_are_shown_whole(serve: Serve) -> None:
    served = await serve()
    async with a_tab(served.url) as tab:
        await tab.open("playground")
        await tab.shows("No job yet")
        await tab.fill("input[name=max_tokens]", "20000")
        await tab.fill("textarea", "nonce=n tokens=10000 gap-ms=0")
        await tab.press("Submit")
        await tab.shows("succeeded")
        text = await tab.page.text(".answer")
        assert text.split() == [f"n.1.{number}" for number in range(10_000)]


async def test_what_models_and_users_write_is_inert(serve: Serve) -> None:
    """In prompts, answers, metadata, tags, end users and errors: shown as the text that it is."""
    served = await serve()
    job_id = await _submitted(
        served, "text=html tokens=20", job={"metadata": {"a": _HOSTILE[:80]}, "tags": ["<b>t</b>"], "end_user": "<i>"}
    )
    failed = await _submitted(served, f"fail=400 {_HOSTILE}")
    await _ended(served, job_id, failed)
    async with a_tab(served.url) as tab:
        await tab.open("jobs")
        await tab.shows(job_id)
        await tab.open(f"jobs/{job_id}")
        await tab.shows("<b>t</b>")
        await tab.shows("<script>alert(1)</script>")
        await tab.open(f"jobs/{failed}")
        await tab.shows("upstream_rejected")
        await tab.open("playground")
        await tab.shows("No job yet")
        await tab.fill("textarea", f"text=html tokens=20 {_HOSTILE}")
        await tab.press("Submit")
        await tab.shows("succeeded")
        for kind in ("img", "script:not([type=module])", "[href^=javascript]", "b"):
            assert await tab.page.run(f"document.querySelectorAll({json.dumps('main ' + kind)}).length") == 0


async def test_one_job_shows_why_it_waits_and_what_was_tried(serve: Serve) -> None:
    served = await serve()
    await served.api.runtime.tenants.set("default", {"running_jobs": 1})
    running = await _submitted(served, "tokens=3000 gap-ms=50")
    waiting = await _submitted(served, "nonce=w tokens=5 rst=3x1")
    async with a_tab(served.url) as tab:
        await tab.open(f"jobs/{waiting}")
        await tab.shows("The tenant already runs 1 of at most 1 jobs.")
        await _picture(tab, "job-waits")
        await tab.open(f"jobs/{running}")
        await tab.press("Cancel")
        await tab.shows("cancelled")
        await tab.open(f"jobs/{waiting}")
        await tab.shows("succeeded")
        await tab.shows("upstream_truncated")
        assert await tab.page.run("document.querySelectorAll('.timeline rect').length") >= 4
        await tab.press("Replay")

        async def is_replayed() -> bool:
            return await tab.page.text("dialog .answer") == "".join(f"w.2.{number} " for number in range(5))

        await wait_until(is_replayed, "the answer of the second attempt alone")
        await _picture(tab, "job-ended")


async def test_all_that_failed_are_retried(serve: Serve) -> None:
    """The dialog names the count, and each is retried once."""
    served = await serve()
    failed = [await _submitted(served, f"nonce=r{number} fail=400x1") for number in range(30)]
    await _ended(served, *failed)
    async with a_tab(served.url) as tab:
        await tab.open("jobs?status=failed")
        await tab.shows(failed[0])
        await _picture(tab, "jobs-failed")
        await tab.press("Retry all that match")
        await tab.shows("Retry 30 jobs that match")
        await tab.press("Yes, all 30")
        await tab.shows("retry: ended")
    _, page, _ = await ask(served.url, "/v1/jobs?limit=100")
    assert sorted(job["retry_of"] for job in page["data"] if job["retry_of"]) == sorted(failed)


async def test_a_key_signs_in_and_shows_what_it_may_do(serve: Serve) -> None:
    served = await serve(auth="keys")

    async def key(*scopes: Scope) -> str:
        made = await served.api.runtime.api_keys.create(
            "acme", env="test", name="", scopes=frozenset(scopes), limits=NO_LIMITS
        )
        assert made is not None
        return made.text

    async with a_tab(served.url) as tab:
        await tab.open("overview")
        await tab.shows("Sign in with an API key")
        await tab.fill("input[name=key]", "ts_live_nonsense")
        await tab.press("Sign in")
        await tab.shows("That key is not valid")
        await _picture(tab, "sign-in")
        await tab.fill("input[name=key]", await key(*DEFAULT_SCOPES))
        await tab.press("Sign in")
        await tab.shows("acme")
        await tab.shows("Newest jobs")
        assert await tab.page.run("sessionStorage.length") == 0
        await tab.press("Sign out")
        await tab.shows("Sign in with an API key")
        await tab.fill("input[name=key]", await key(Scope.READ))
        await tab.press("Sign in")
        await tab.shows("Newest jobs")
        assert "Playground" not in await tab.page.text("nav")
        assert await tab.page.run("location.href") == f"{served.url}/#/overview"
        # Chromium itself notes the 401 of a page that asks who it is; nothing else may have complained.
        await tab.page.run("complaints = complaints.filter(text => !/401/.test(text))")


async def test_the_overview_shows_what_the_api_says(serve: Serve) -> None:
    """Each second, and with the line of the last hour."""
    served = await serve()
    job_id = await _submitted(served, "tokens=5")
    await _ended(served, job_id)
    async with a_tab(served.url) as tab:
        await tab.open("")
        await tab.shows(job_id)
        await tab.shows("could start")
        _, stats, _ = await ask(served.url, "/v1/stats")
        names = await tab.page.run("[...document.querySelectorAll('.figure dt')].map(one => one.textContent)")
        values = await tab.page.run("[...document.querySelectorAll('.figure dt + dd')].map(one => one.textContent)")
        figures = dict(zip(names, values, strict=True))
        assert (figures["Waiting"], figures["Running"]) == ("0", "0")
        assert figures["Succeeded"] == str(stats["ended_last_hour"]["succeeded"]) == "1"
        assert await tab.page.run("document.querySelectorAll('.lines svg[role=img]').length") == 4
        await tab.shows(stats["workers"][0]["name"])
        await _picture(tab, "overview")


async def test_a_killed_worker_is_replaced_before_ones_eyes(tmp_path: Path) -> None:
    """Real processes: the button kills the worker that writes, the other one takes over, and the text is whole."""
    with a_simulator(tmp_path) as llm, a_deployment(llm, TOKENSPOOL_DEV_CONTROLS="on") as deployment:
        await deployment.make_whole(apis=1, workers=2)
        async with a_tab(deployment.apis[0].url) as tab:
            await tab.open("playground")
            await tab.shows("No job yet")
            await tab.fill("textarea", "nonce=k tokens=100 gap-ms=50")
            await tab.press("Submit")
            await tab.shows("k.1.5")
            await tab.press("Kill the worker")
            await tab.shows("you killed")
            await tab.shows("begins anew (worker_lost)")
            await tab.shows("succeeded")
            assert (await tab.page.text(".answer")).split() == [f"k.2.{number}" for number in range(100)]
            await _picture(tab, "takeover")
