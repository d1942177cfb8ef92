"""Which tokenspool this is."""

from importlib import metadata


def version() -> str:
    """Of the installed distribution; "0" where it is not installed."""
    try:
        return metadata.version("tokenspool")
    except metadata.PackageNotFoundError:
        return "0"
