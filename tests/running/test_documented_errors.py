"""docs/simulator.md says how each error is provoked; here each of its lines is tried."""

import re
from pathlib import Path
from typing import Any, Final

import pytest

from shared.errors import JOB_ERROR_CODES
from tests.running.crew import Crew

_PAGE: Final = Path(__file__).resolve().parents[2] / "docs" / "simulator.md"
_ROW: Final = re.compile(r"^\| `(\w+)` \| (?:`([^`]+)`)? ?\| (.*?) ?\|$", re.MULTILINE)
_ROWS: Final = _ROW.findall(_PAGE.read_text(encoding="utf-8").split("## Words")[0])


def test_each_error_has_a_line() -> None:
    """In the order in which docs/protocol.md lists them."""
    assert [code for code, _, _ in _ROWS] == list(JOB_ERROR_CODES)


@pytest.mark.parametrize(
    ("code", "prompt", "options"), [row for row in _ROWS if row[2] == "" or row[2].startswith("`--")]
)
async def test_the_prompt_provokes_the_error(crew: Crew, code: str, prompt: str, options: str) -> None:
    """With these options, on a route that nothing has shut."""
    members: dict[str, Any] = {
        name.replace("-", "_"): int(value) for name, value in re.findall(r"--([a-z-]+) (\d+)", options)
    }
    await crew.worker()
    job = await crew.ended(await crew.submit(prompt, **members))
    assert job.error is not None
    assert job.error.code == code
