"""What came so far of a job, as the API shows it."""

from tests.routes.conftest import CalledApi, problem_of
from tests.support.author import Author
from tests.support.builders import an_answer

SHOWN = {"text": "Hello", "content": [{"type": "text", "text": "Hello"}], "last_token_at": None}


async def _begun(api: CalledApi) -> Author:
    """A running job whose followers have seen a beginning."""
    await api.submitted()
    author = await Author.claim_next(api.runtime)
    await author.write(*an_answer("Hel", "lo")[:4])
    return author


async def test_a_failed_job_has_it_unless_the_result_is_left_out(api: CalledApi) -> None:
    """It is never in the place of a result."""
    author = await _begun(api)
    await author.fail()
    for _ in range(2):
        job = await api.job(author.job_id)
        assert (job["result"], job["partial"]) == (None, SHOWN)
        short = await api.job(author.job_id, result="false")
        assert not {"result", "partial"} & short.keys()
        assert (await api.job(author.job_id, result="false", partial="true"))["partial"] == SHOWN
        await api.runtime.partials.keep_due()


async def test_a_job_that_has_not_ended_shows_it_on_request_alone(api: CalledApi) -> None:
    author = await _begun(api)
    assert "partial" not in await api.job(author.job_id)
    assert (await api.job(author.job_id, partial="true"))["partial"] == SHOWN
    await author.succeed()
    assert (await api.job(author.job_id, partial="true"))["partial"] is None


async def test_a_job_that_never_ran_has_none(api: CalledApi) -> None:
    job = await api.submitted()
    assert (await api.job(job["id"], partial="true"))["partial"] is None
    await api.http.post(f"/v1/jobs/{job['id']}/cancel")
    assert (await api.job(job["id"]))["partial"] is None


async def test_a_cancel_returns_it_and_lists_do_not(api: CalledApi) -> None:
    author = await _begun(api)
    cancelled = (await api.http.post(f"/v1/jobs/{author.job_id}/cancel")).json()
    assert (cancelled["status"], cancelled["partial"]) == ("cancelled", SHOWN)
    (listed,) = (await api.http.get("/v1/jobs")).json()["data"]
    assert "partial" not in listed


async def test_another_tenant_does_not_see_it(api: CalledApi) -> None:
    author = await _begun(api)
    foreign = await api.http.get(f"/v1/jobs/{author.job_id}?partial=true", headers={"X-Tenant": "another"})
    problem_of(foreign, 404, "not_found")
