"""The version of tokenspool."""

from importlib import metadata


def version() -> str:
    """The installed distribution's version; "0" if it is not installed."""
    try:
        return metadata.version("tokenspool")
    except metadata.PackageNotFoundError:
        return "0"
