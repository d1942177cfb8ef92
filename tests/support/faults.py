"""Finds and cuts connections to Redis."""

from shared.store.runtime import Runtime


async def pubsub_connections(runtime: Runtime, name: str = "") -> list[str]:
    """The lines of ``CLIENT LIST`` for pub/sub connections; with ``name``, only those of processes with that name."""
    listed = await runtime._commands.call("CLIENT", "LIST", "TYPE", "pubsub")
    return [line for line in listed.decode().splitlines() if f"name={name}" in line]


async def connections(runtime: Runtime, name: str) -> list[str]:
    """The lines of ``CLIENT LIST`` for all connections of the processes with that name."""
    listed = await runtime._commands.call("CLIENT", "LIST")
    return [line for line in listed.decode().splitlines() if f"name={name} " in line]


async def every_pubsub_connection_cut(runtime: Runtime) -> int:
    """Cuts every pub/sub connection; returns how many there were."""
    count: int = await runtime._commands.call("CLIENT", "KILL", "TYPE", "pubsub")
    return count
