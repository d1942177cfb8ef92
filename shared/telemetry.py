"""Structured logs: one JSON line an event, on standard error.

Call sites pass names and numbers only. A prompt, an answer or a key is never an argument; a prompt is named by its hash.
"""

import logging
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

Logger = structlog.typing.FilteringBoundLogger


def configure_logging(level: str) -> None:
    """Once per process, by its ``main``."""
    threshold = logging.getLevelNamesMapping()[level]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _error_by_name,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(
        level=max(threshold, logging.WARNING), stream=sys.stderr, format="%(levelname)s %(name)s %(message)s"
    )
    # At DEBUG these print chunk by chunk what the model says.
    for name in ("sse_starlette", "anthropic", "httpx2", "httpcore2", "aiohttp"):
        logging.getLogger(name).setLevel(logging.WARNING)


def get_logger(part: str) -> Logger:
    """A logger whose lines carry ``part``."""
    logger: Logger = structlog.get_logger(part=part)
    return logger


def _error_by_name(_logger: Any, _method: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """An exception becomes its type and place: its message may quote what a user sent."""
    error = line.pop("exc_info", None)
    if error is True:
        error = sys.exc_info()[1]
    if isinstance(error, BaseException):
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        line["error"] = type(error).__name__
        if trace is not None:
            line["at"] = f"{trace.tb_frame.f_code.co_filename.rsplit('/', 1)[-1]}:{trace.tb_lineno}"
    return line
