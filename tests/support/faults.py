"""Faults of Redis that a test makes on purpose."""

from shared.store.runtime import Runtime


async def pubsub_connections(runtime: Runtime, name: str = "") -> list[str]:
    """The pub/sub connections that Redis has, as ``CLIENT LIST`` shows them; of the processes called ``name``."""
    listed = await runtime._commands.call("CLIENT", "LIST", "TYPE", "pubsub")
    return [line for line in listed.decode().splitlines() if f"name={name}" in line]


async def connections(runtime: Runtime, name: str) -> list[str]:
    """All connections of the processes called ``name``."""
    listed = await runtime._commands.call("CLIENT", "LIST")
    return [line for line in listed.decode().splitlines() if f"name={name} " in line]


async def every_pubsub_connection_cut(runtime: Runtime) -> int:
    """Returns how many there were."""
    count: int = await runtime._commands.call("CLIENT", "KILL", "TYPE", "pubsub")
    return count
