"""Logs hold names and numbers only: no prompt, answer or key ever reaches one."""

import json
import logging
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from shared.telemetry import configure_logging, get_logger

PROMPT = "an unmistakable prompt"


_SET = ("", "sse_starlette", "anthropic", "httpx2", "httpcore2", "aiohttp")


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """configure_logging is for a process; here it is undone."""
    hooks = sys.excepthook, threading.excepthook, sys.unraisablehook
    levels = {name: logging.getLogger(name).level for name in _SET}
    handlers = logging.getLogger().handlers[:]
    yield
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    logging.getLogger().handlers[:] = handlers
    structlog.reset_defaults()
    sys.excepthook, threading.excepthook, sys.unraisablehook = hooks


def _configure(level: str) -> None:
    """As in a process of its own: pytest's handlers are not there."""
    logging.getLogger().handlers.clear()
    configure_logging(level)


def _lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    captured = capsys.readouterr()
    assert captured.out == ""
    return [json.loads(line) for line in captured.err.splitlines()]


def _quoting() -> ValueError:
    try:
        raise ValueError(f"cannot read {PROMPT!r}")
    except ValueError as error:
        return error


def test_a_line_is_json_with_its_part_level_and_time(capsys: pytest.CaptureFixture[str]) -> None:
    """One event, one line, on standard error."""
    _configure("INFO")
    get_logger("worker").info("job_ended", job_id="job_1", tokens=5)
    (line,) = _lines(capsys)
    assert line.pop("timestamp").endswith("Z")
    assert line == {"part": "worker", "event": "job_ended", "level": "info", "job_id": "job_1", "tokens": 5}


def test_the_level_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    """Less is not written at all."""
    _configure("WARNING")
    logger = get_logger("worker")
    logger.info("no")
    logger.warning("yes")
    assert [line["event"] for line in _lines(capsys)] == ["yes"]


@pytest.mark.parametrize("how", ["exception", "exc_info is the error", "exc_info is a triple", "as a value"])
def test_an_exception_is_told_by_type_and_place_alone(capsys: pytest.CaptureFixture[str], how: str) -> None:
    """Its message may quote what a user sent."""
    _configure("DEBUG")
    logger = get_logger("worker")
    error = _quoting()
    if how == "exception":
        try:
            raise error
        except ValueError:
            logger.exception("run_failed")
    elif how == "exc_info is the error":
        logger.error("run_failed", exc_info=error)
    elif how == "exc_info is a triple":
        logger.error("run_failed", exc_info=(type(error), error, error.__traceback__))
    else:
        logger.error("run_failed", error=error)
    captured = capsys.readouterr().err
    assert "unmistakable" not in captured
    line = json.loads(captured)
    assert line["error"] == "ValueError"
    if how != "as a value":
        assert line["at"].startswith("test_telemetry.py:")


def test_an_exception_that_another_one_caused_is_not_quoted_either(capsys: pytest.CaptureFixture[str]) -> None:
    """Nor its context."""
    _configure("DEBUG")
    try:
        try:
            raise _quoting()
        except ValueError as cause:
            raise KeyError(PROMPT) from cause
    except KeyError:
        get_logger("worker").exception("run_failed")
    captured = capsys.readouterr().err
    assert "unmistakable" not in captured
    assert json.loads(captured)["error"] == "KeyError"


def test_libraries_log_no_exception_text_either(capsys: pytest.CaptureFixture[str]) -> None:
    """asyncio and uvicorn log what escaped, with a traceback and the repr of a task."""
    _configure("DEBUG")
    error = _quoting()
    triple = (type(error), error, error.__traceback__)
    logging.getLogger("asyncio").error(
        f"Task exception was never retrieved\nfuture: <Task finished exception={error!r}>", exc_info=triple
    )
    logging.getLogger("asyncio").error(f"Exception in callback Run.go({PROMPT!r})", exc_info=triple)
    logging.getLogger("uvicorn.error").error("Exception in ASGI application\n", exc_info=triple)
    captured = capsys.readouterr().err
    assert "unmistakable" not in captured
    assert [line.split(" error=")[0] for line in captured.splitlines()] == [
        "ERROR asyncio Task exception was never retrieved",
        "ERROR asyncio Exception in callback Run.go",
        "ERROR uvicorn.error Exception in ASGI application",
    ]
    assert captured.count("error=ValueError at=test_telemetry.py:") == 3


def test_uvicorns_access_log_has_no_query(capsys: pytest.CaptureFixture[str]) -> None:
    """A follow token is in one. ``tokenspool serve`` has no access log, ``uvicorn --factory`` has one."""
    _configure("DEBUG")
    logging.getLogger("uvicorn.access").error('%s - "%s %s HTTP/%s" %d', "::1", "GET", "/v1/a?token=tsf_x", "1.1", 200)
    assert capsys.readouterr().err == 'ERROR uvicorn.access ::1 - "GET /v1/a HTTP/1.1" 200\n'


def test_a_loop_that_reports_a_failed_task_quotes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """As asyncio's own handler words it."""
    import asyncio

    _configure("DEBUG")
    loop = asyncio.new_event_loop()
    future = loop.create_future()
    future.set_exception(_quoting())
    loop.call_exception_handler(
        {"message": "Future exception was never retrieved", "exception": future.exception(), "future": future}
    )
    loop.close()
    captured = capsys.readouterr().err
    assert "Future exception was never retrieved" in captured
    assert "unmistakable" not in captured


def test_the_sdks_own_debug_lines_are_off(capsys: pytest.CaptureFixture[str]) -> None:
    """They print what the model says, chunk by chunk."""
    _configure("DEBUG")
    for name in (
        "anthropic",
        "anthropic._base_client",
        "httpx2",
        "httpcore2.http11",
        "aiohttp.client",
        "sse_starlette.sse",
    ):
        logging.getLogger(name).debug("chunk: %s", PROMPT)
        logging.getLogger(name).info("chunk: %s", PROMPT)
    assert capsys.readouterr().err == ""
    assert sys.exc_info() == (None, None, None)


def test_what_nobody_caught_is_told_by_type_and_place(capsys: pytest.CaptureFixture[str]) -> None:
    """In the process's main, in a thread, in a finaliser: Python would print the message, and so what it quotes."""

    class Finalised:
        def __del__(self) -> None:
            raise _quoting()

    def fail() -> None:
        raise _quoting()

    _configure("INFO")
    group = BaseExceptionGroup(PROMPT, [_quoting(), BaseExceptionGroup(PROMPT, [_quoting()])])
    sys.excepthook(type(group), group, None)
    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    thing: Finalised | None = Finalised()
    assert thing is not None
    thing = None
    main, other, finaliser = _lines(capsys)
    assert [error["error"] for error in main["errors"]] == ["ValueError", "ValueError"]
    for line in (main, other, finaliser):
        assert (line["event"], line["level"]) == ("uncaught", "critical")
        assert line["errors"][0]["at"].startswith("test_telemetry.py:")
        assert PROMPT not in str(line)
