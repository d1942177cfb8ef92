"""Structured logs: one JSON line per event, on standard error.

Call sites pass names and numbers only, never a prompt, an answer or a key. A prompt is identified by its hash.
"""

import logging
import re
import sys
import threading
from collections.abc import MutableMapping
from types import TracebackType
from typing import Any, Final

import structlog

Logger = structlog.typing.FilteringBoundLogger

_MOST_LEAVES: Final = 10
"""How many errors of an uncaught exception group are logged."""


def configure_logging(level: str) -> None:
    """A process's ``main`` calls this once."""
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
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_LibraryLine())
    logging.basicConfig(level=max(threshold, logging.WARNING), handlers=[handler])
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):  # `uvicorn --factory` installs its own handlers
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    sys.excepthook = _on_uncaught
    threading.excepthook = lambda caught: _on_uncaught(caught.exc_type, caught.exc_value, caught.exc_traceback)
    sys.unraisablehook = lambda caught: _on_uncaught(caught.exc_type, caught.exc_value, caught.exc_traceback)
    # At DEBUG these log the model's answer, chunk by chunk.
    for name in ("sse_starlette", "anthropic", "httpx2", "httpcore2", "aiohttp"):
        logging.getLogger(name).setLevel(logging.WARNING)


def get_logger(part: str) -> Logger:
    """A logger that adds ``part`` to its lines."""
    logger: Logger = structlog.get_logger(part=part)
    return logger


def _on_uncaught(_kind: type[BaseException], error: BaseException | None, _trace: TracebackType | None) -> None:
    """Logs an uncaught error without its message: Python's own hook would print the message, which may quote a user."""
    if isinstance(error, KeyboardInterrupt):
        return
    leaves = _leaves_of(error) if error is not None else []
    get_logger("process").critical("uncaught", errors=[_type_and_place(leaf) for leaf in leaves])


def _leaves_of(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for each in error.exceptions for leaf in _leaves_of(each)][:_MOST_LEAVES]
    return [error]


def _error_by_name(_logger: Any, _method: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Replaces an exception by its type and place: its message may quote what a user sent."""
    error = line.pop("exc_info", None)
    if error is True:
        error = sys.exc_info()[1]
    elif isinstance(error, tuple):
        error = error[1]
    for name, value in line.items():
        if isinstance(value, BaseException):
            line[name] = type(value).__name__
    if isinstance(error, BaseException):
        line.update(_type_and_place(error))
    return line


class _LibraryLine(logging.Formatter):
    """Formats a library's record: the first line of its message, and an exception's type and place."""

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage().partition("\n")[0]
        if record.name == "asyncio":  # it logs the repr of tasks and callbacks, with results and arguments
            message = re.split(r"[(<{\['\"]", message, maxsplit=1)[0]
        elif record.name == "uvicorn.access":  # a query may have a follow token
            message = re.sub(r'\?[^ "]*', "", message)
        line = f"{record.levelname} {record.name} {message}"
        if record.exc_info and record.exc_info[1]:
            line += "".join(f" {name}={value}" for name, value in _type_and_place(record.exc_info[1]).items())
        return line


def _type_and_place(error: BaseException) -> dict[str, str]:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    found = {"error": type(error).__name__}
    if trace is not None:
        found["at"] = f"{trace.tb_frame.f_code.co_filename.rsplit('/', 1)[-1]}:{trace.tb_lineno}"
    return found
