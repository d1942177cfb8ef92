"""The product's words: no phrase that a reader has to decode, and no word in another's place; see docs/glossary.md."""

import re
import subprocess
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[2]

_PLACES: Final = (
    *("api", "worker", "shared", "cli", "simulator", "docs", "examples", "scripts"),
    *("README.md", "CHANGELOG.md", "Makefile", "Dockerfile", "docker-compose.yml"),
)

_HELD: Final[tuple[str, ...]] = ()
"""Beginnings of paths that are still being rewritten. To be emptied."""

_STATUS: Final = r"(?:HTTP |status )?\b[2-5]\d\d\b"

_WORDS: Final = {
    "for ever: final, permanent": r"\bfor ?ever\b",
    "as it stands: in its present state": r"\bas (?:it|they) stands?\b",
    "told: logged, published, rendered, sent": r"\b(?:re)?told\b",
    "So long …: as long as, while": r"(?:^\W*|[.;:] )So (?:long|often)\b",
    "Of those …: name them": r"(?:^\W*|[.;:] )Of those\b",
    "behind, of time or order: after": (
        r"\bbehind\b(?![ -](?:(?:such )?(?:a|an|any|one|the|its|your|our|some)[ -])?"
        r"(?:\w+(?:'s)? )?(?:prox(?:y|ies)|load balancer|NAT|gateway|address(?:es)?)\b)"
    ),
    "an answer that is a response": (
        rf"\banswer(?:s|ed)?:? (?:is |has |with |them |it )?(?:a |an )?{_STATUS}"
        rf"|{_STATUS}(?:,)? (?:as|is) (?:an|the) answer\b"
        r"|\b(?:HTTP|error|problem|health|ready) answers?\b"
        r"|\banswers? (?:to|of) an? (?:HTTP )?request\b"
        r"|\banswer(?:: | = )(?:\w+\.)?(?:\w+)?Response\b"
        r"|\banswer\.(?:headers|status\w*|raise_for_status)\b"
        r"|\bdef \w*_answer\([^)]*\) -> (?:\w+)?Response\b"
    ),
}
"""What is wrong and what to write → the pattern that finds it."""


def _files() -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "--", *_PLACES], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    return [name for name in listed if not name.startswith(_HELD) and not name.endswith(".png")]


@pytest.mark.parametrize("advice", _WORDS)
def test_no_file_of_the_product_has_the_phrase(advice: str) -> None:
    """Found by pattern: a phrase that no pattern finds is still wrong."""
    if not (ROOT / ".git").exists():
        pytest.skip("no git here: the list of files is unknown")
    pattern = re.compile(_WORDS[advice], re.MULTILINE)
    found = [
        f"{name}:{number}: {line.strip()}"
        for name in _files()
        if name != "docs/glossary.md"  # which names the words to avoid
        for number, line in enumerate((ROOT / name).read_text(encoding="utf-8").splitlines(), 1)
        if pattern.search(line)
    ]
    assert found == [], advice
