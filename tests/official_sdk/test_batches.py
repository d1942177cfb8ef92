"""messages.batches with the official SDK. The stand-in has no batches, so the expected results are written here."""

from typing import Any, Final

import pytest

from tests.official_sdk.conftest import Sdk
from tests.support.deployment import Deployment

pytestmark = pytest.mark.timeout(90)

_NOTHING: Final = {"processing": 0, "succeeded": 0, "errored": 0, "canceled": 0, "expired": 0}


def _refused(error: str, status: int, error_type: str, type_attribute: str | None) -> dict[str, Any]:
    return {
        "error": error,
        "bases": ["APIStatusError", "APIError"],
        "status": status,
        "type": error_type,
        "type_attribute": type_attribute,
        "has_message": True,
        "has_request_id": True,
    }


async def test_a_batch_lives_from_create_to_delete(sdk: Sdk, deployment: Deployment) -> None:
    """Created, polled, read, cancelled, listed in both directions and deleted, by programs of both versions."""
    ours = await sdk.sees("batches", deployment.apis[0].url)
    for mode in ("sync", "async"):
        seen = {case: value for (case, of), value in ours.items() if of == mode}
        assert sum(seen["created"].pop("counts").values()) == 3  # live: some may have ended already
        born = {"prefix": "msgbatch_", "type": "message_batch"}
        assert seen["created"] == {
            **born,
            "status": "in_progress",
            "has": ["created_at", "expires_at"],
            "results_url": False,
        }
        assert seen["ended"] == {
            **born,
            "status": "ended",
            "counts": {**_NOTHING, "succeeded": 2, "errored": 1},
            "has": ["created_at", "ended_at", "expires_at"],
            "results_url": True,
        }
        results = {line["custom_id"]: line["result"] for line in seen["results"]["results"]}
        assert {name: result["type"] for name, result in results.items()} == {
            "plain": "succeeded",
            "thinking": "succeeded",
            "refused": "errored",
        }
        said = "".join(f"{sdk.run}-batch-{mode}.1.{index} " for index in range(8))
        assert [block["text"] for block in results["plain"]["message"]["content"]] == [said]
        assert [block["type"] for block in results["thinking"]["message"]["content"]] == ["thinking", "text"]
        assert results["refused"]["error"]["type"] == "error"
        assert results["refused"]["error"]["error"]["type"] == "invalid_request_error"

        assert seen["cancel"] == {"status_is": True, "id": True}
        assert seen["cancelled"] == {
            **born,
            "status": "ended",
            "counts": {**_NOTHING, "canceled": 2},
            "has": ["cancel_initiated_at", "created_at", "ended_at", "expires_at"],
            "results_url": True,
        }
        assert [line["result"] for line in seen["results of it"]["results"]] == [{"type": "canceled"}] * 2

        assert seen["listed"] == {"newest_first": True}
        assert seen["listed backwards"] == {"all": True, "shape": {"length": 2, "first": True, "last": True}}
        assert seen["deleted"] == {"type": "message_batch_deleted", "id": True}

        is_new = sdk.version == "2.12"

        def refused(error: str, status: int, error_type: str, is_new: bool = is_new) -> dict[str, Any]:
            return _refused(error, status, error_type, error_type if is_new else None)

        absent = refused("NotFoundError", 404, "not_found_error")
        assert seen["delete before the end"] == refused("ConflictError", 409, "conflict_error")
        for case in (
            "retrieve what is deleted",
            "retrieve what never was",
            "cancel what never was",
            "delete what never was",
        ):
            assert seen[case] == absent, case
        assert seen["no requests"] == refused("BadRequestError", 400, "invalid_request_error")
        # On purpose unlike the Anthropic API: what is wrong with one request is that request's own error.
        assert seen["two of one id"] == {"counts": {**_NOTHING, "succeeded": 1, "errored": 1}}
        # And a custom_id may hold more than theirs.
        assert seen["an id that is none"] == {"counts": {**_NOTHING, "succeeded": 1}}
