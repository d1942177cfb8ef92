"""Follows a batch's events as a browser does, and collects what each item showed."""

import asyncio
import json
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any, Self

from tests.support.follower import TERMINAL, Cut, asking
from tests.support.sse_frames import Frame, SseFrames

_AGAIN_S = 0.05


@dataclass
class Seen:
    """What a client has seen of one item."""

    text: str = ""
    custom_id: str | None = None
    ends: list[dict[str, Any]] = field(default_factory=list)
    """Its terminal events; there should be exactly one."""
    names: list[str] = field(default_factory=list)


@dataclass
class BatchFollower:
    """Follows one batch over any number of connections. It reconnects to the next of ``urls`` in turn."""

    urls: list[str]
    batch_id: str
    query: str = "tokens=true"
    frames: list[Frame] = field(default_factory=list)
    items: defaultdict[str, Seen] = field(default_factory=lambda: defaultdict(Seen))
    connections: int = 0
    comments: list[str] = field(default_factory=list)
    progress: list[dict[str, Any]] = field(default_factory=list)
    ended: dict[str, Any] | None = None

    async def follow_once(self, *, most_bytes: int | None = None, receive_buffer: int | None = None) -> str:
        """Makes one connection; returns ``ended`` (the batch did), ``eof`` (a clean end), ``cut`` or ``refused``."""
        url = self.urls[self.connections % len(self.urls)]
        self.connections += 1
        path = f"/v1/batches/{self.batch_id}/events?{self.query}"
        parser = SseFrames()
        left = most_bytes
        try:
            async with asking(url, path, receive_buffer=receive_buffer) as response:
                if response.status != 200:
                    return "refused"
                while piece := await response.read_some():
                    for frame in parser.feed(piece):
                        self._see(frame)
                    if left is not None:
                        left -= len(piece)
                        if left <= 0:
                            return "cut"
                return "ended" if self.ended is not None else "eof"
        except (Cut, OSError):
            return "cut"
        finally:
            self.comments += parser.comments

    async def follow(self) -> Self:
        """Reconnects until the batch has ended."""
        while self.ended is None:
            await self.follow_once()
            if self.ended is None:
                await asyncio.sleep(_AGAIN_S)
        return self

    def _see(self, frame: Frame) -> None:
        assert self.ended is None, f"{frame.event} behind the end"
        assert (frame.id is not None) == (frame.event == "ended")
        self.frames.append(frame)
        members: list[tuple[str, Any]] = json.loads(frame.data, object_pairs_hook=list)
        names = [name for name, _ in members]
        assert len(names) == len(set(names)), f"a member twice in {frame.event}"
        data = json.loads(frame.data)
        if frame.event == "progress":
            self.progress.append(data)
            return
        if frame.event == "ended":
            self.ended = data
            return
        assert names[:2] == ["custom_id", "job_id"]
        item = self.items[data["job_id"]]
        item.custom_id = data["custom_id"]
        assert not item.ends, f"{frame.event} behind the end of {data['job_id']}"
        item.names.append(frame.event)
        match frame.event:
            case "reset":
                item.text = ""
            case "snapshot":
                item.text = data["text"]
            case "delta":
                item.text += data["text"]
            case "content_block_delta":
                delta = data["delta"]
                item.text += delta["text"] if delta["type"] == "text_delta" else ""
            case name if name in TERMINAL:
                item.ends.append(data)
            case _:
                pass
