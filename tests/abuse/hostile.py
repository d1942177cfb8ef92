"""Texts that have a meaning in some format on their way, and values that must never be taken for objects."""

import base64
import gzip
import marshal
import os
import pickle
from typing import Any

CANARY = "kanarienvogel-inert-2d8c"

_SSE = [
    *("\r", "\n", "\r\n", "\n\n", "\r\r", "\u2028", "\u2029", "\u0085", "\x0b\x0c", "\ufeff", "\x1c\x1d\x1e"),
    "data: x\n\nevent: succeeded\ndata: {}\n\n",
    "\r\rid: 9-9\r\revent: reset\rdata: {}\r\r",
    "id: 9999999999999-0\n\nretry: 1\n\n: a comment\n\n",
    "data: [DONE]\n\n[DONE]\n\ndata: [DONE]",
    "[DONE]",
    '"}}\n\ndata: {"text":"',
    "\\u0000 \\n \\",
]
_PAGES = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "</title><svg onload=alert(1)>",
    "[a link](javascript:alert(1)) ![](https://example.invalid/x.png)",
    "{{7*7}} ${7*7} <%= 7*7 %> {0.__class__} %s %n",
]
_TERMINALS = ["\x1b]0;a title\x07", "\x1b[2J\x1b[H", "\x1b]52;c;aGk=\x07", "\x9b31m", "\x08\x08\x7f", "\u202etxt.exe"]
_LINES = ['{"custom_id":"x"}\n{"custom_id":"y"}', "a\u2028b\u2029c\u0085d", '"}\n{"line":1,"status":"succeeded"}\n']
_HEADERS = ["x\r\nSet-Cookie: a=b\r\n\r\n<html>", "x\nX-Api-Key: y"]
_REDIS = ["\r\n*1\r\n$8\r\nFLUSHALL\r\n", "$-1\r\n", "FLUSHALL\r\n", "+OK\r\n:1\r\n"]
_LUA = ["'); redis.call('FLUSHALL') --", "]] redis.call('FLUSHALL') [[", "\\'..redis.call('FLUSHALL')..\\'"]


class Hostile:
    """An object that runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self._command = command

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (self._command,)


def pickles(command: str) -> list[bytes]:
    """Pickles by every protocol, plain and compressed."""
    plain = [pickle.dumps(Hostile(command), protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]
    arq = pickle.dumps({"t": 1, "f": "run", "a": (Hostile(command),), "k": {}, "et": 1}, 5)  # the form of arq's jobs
    code = marshal.dumps(compile(f"import os; os.system({command!r})", CANARY, "exec"))
    return [*plain, arq, code, gzip.compress(plain[-1])]


def texts(command: str) -> list[str]:
    """All hostile texts, without the character U+0000, which no prompt may have."""
    packed = pickles(command)
    words = [
        *_SSE, *_PAGES, *_TERMINALS, *_LINES, *_HEADERS, *_REDIS, *_LUA,
        *(value.decode("latin-1") for value in packed),
        *(base64.b64encode(value).decode() for value in packed),
        f"__import__('os').system({command!r})",
        f"!!python/object/apply:os.system [{command!r}]",
    ]  # fmt: skip
    return [word for word in [*(f"{word} {CANARY}" for word in words), *words] if "\0" not in word]
