"""How Redis's errors become ours."""

import pytest
from redis import exceptions

from shared.errors import Problem, StorageFull, StorageUnavailable
from shared.store.connect import problem_of

PROMPT = "an unmistakable prompt"


@pytest.mark.parametrize(
    "error",
    [
        exceptions.OutOfMemoryError("command not allowed when used memory > 'maxmemory'."),
        exceptions.ResponseError("OOM command not allowed when used memory > 'maxmemory'."),
        exceptions.ResponseError(
            "Error running script (call to f_5ca1ab1e): @user_script:120: @user_script: 120: "
            "-OOM command not allowed when used memory > 'maxmemory'. "
        ),
    ],
)
def test_a_full_redis_is_storage_full(error: Exception) -> None:
    """In the words of each release, inside a script and outside."""
    assert type(problem_of(error)) is StorageFull


@pytest.mark.parametrize(
    "error",
    [
        exceptions.ConnectionError("Connection closed by server."),
        exceptions.TimeoutError("Timeout"),
        exceptions.BusyLoadingError("Redis is loading the dataset in memory"),
        exceptions.ReadOnlyError("You can't write against a read only replica."),
        exceptions.ResponseError("MISCONF Errors writing to the AOF file"),
        exceptions.ResponseError(f"unknown command '{PROMPT}'"),
        exceptions.ResponseError(""),
        ConnectionRefusedError(111, "Connection refused"),
        EOFError(),
    ],
)
def test_everything_else_is_storage_unavailable(error: Exception) -> None:
    """With Retry-After; the message quotes nothing that was sent."""
    problem = problem_of(error)
    assert type(problem) is StorageUnavailable
    assert problem.retry_after_s
    assert PROMPT not in f"{problem} {problem.detail}"
    assert isinstance(problem, Problem)
