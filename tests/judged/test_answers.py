"""llmock's answers: texts of every kind, tools, and invalid tool calls."""

import msgspec
from llmock.scenarios import Match, Reply, ToolCall, ToolFault

from shared.job import Job
from tests.judged.judge import Judge, text_of
from tests.judged.surface import Surface
from tests.running.crew import FAST, Crew

TEXTS = {
    "nothing": "",
    "white space": " \n\t ",
    "one word": "word",
    "lines": "a\nb\r\nc\rd\u2028e\x85f\x0bg",
    "what looks like events": 'event: message_stop\ndata: {"type":"message_stop"}\n\ndata: [DONE]\n\n',
    "what JSON escapes": '"\\\x00\x1f\x7f</script>',
    "beyond the basic plane": "🦀👩\u200d👩\u200d👧 𝔘𝔫𝔦 عربى\ufeff\u202e",
    "much": "word " * 2_000,
    "one long word": "x" * 100_000,
}

REASONS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "content_filter": "refusal",
}


def a_request_with_a_tool(model: str = FAST, nonce: str = "nonce=n1 ") -> bytes:
    """A request that offers a tool."""
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    return msgspec.json.encode(
        {
            "model": model,
            "max_tokens": 1000,
            "messages": [{"role": "user", "content": f"{nonce}How is the weather in Paris?"}],
            "tools": [{"name": "get_weather", "description": "The weather of a city.", "input_schema": schema}],
        }
    )


def tool_calls_of(job: Job) -> list[tuple[str, object]]:
    """The name and input of each tool call."""
    assert job.result is not None
    content = msgspec.json.decode(bytes(job.result))["message"]["content"]
    return [(block["name"], block["input"]) for block in content if block["type"] == "tool_use"]


def stop_reason_of(job: Job) -> str:
    assert job.result is not None
    reason: str = msgspec.json.decode(bytes(job.result))["stop_reason"]
    return reason


async def test_every_text_comes_through_whole(crew: Crew, judge: Judge, surface: Surface) -> None:
    await crew.worker()
    judge.reset()
    judge.add(*(Reply(text, match=Match(model=f"model-{n}")) for n, text in enumerate(TEXTS.values())))
    jobs = await crew.all_ended([await crew.submit(model=f"model-{n}") for n in range(len(TEXTS))])
    assert [text_of(job) for job in jobs] == list(TEXTS.values())
    await judge.passes(surface)


async def test_every_reason_to_stop_is_a_success(crew: Crew, judge: Judge, surface: Surface) -> None:
    await crew.worker()
    judge.reset()
    judge.add(*(Reply("An answer.", finish_reason=reason, match=Match(model=reason)) for reason in REASONS))
    jobs = await crew.all_ended([await crew.submit(model=reason) for reason in REASONS])
    assert {text_of(job) for job in jobs} == {"An answer."}
    assert [stop_reason_of(job) for job in jobs] == list(REASONS.values())
    await judge.passes(surface)


async def test_tool_calls_come_through_whole(crew: Crew, judge: Judge, surface: Surface) -> None:
    await crew.worker()
    calls = (ToolCall("get_weather", {"city": "São Paulo", "days": [1, 2.5, None]}), ToolCall("get_weather", {}))
    judge.reset().add(Reply("I look.", calls))
    job = await crew.ended(await crew.submit(request=a_request_with_a_tool()))
    assert (text_of(job), stop_reason_of(job)) == ("I look.", "tool_use")
    assert tool_calls_of(job) == [(call.name, call.arguments) for call in calls]
    await judge.passes(surface)


async def test_a_tool_that_was_never_offered_is_the_callers_to_judge(
    crew: Crew, judge: Judge, surface: Surface
) -> None:
    await crew.worker()
    judge.reset().break_tool_call("unknown_tool")
    job = await crew.ended(await crew.submit(request=a_request_with_a_tool()))
    assert (job.state, job.attempts) == ("succeeded", 1)
    assert [name for name, _ in tool_calls_of(job)] == ["llmock_unknown_tool"]
    await judge.passes(surface)


async def test_a_tool_called_with_rubbish_is_asked_for_again(crew: Crew, judge: Judge, surface: Surface) -> None:
    await crew.worker()
    judge.reset().break_tool_call("malformed_arguments")
    job = await crew.ended(await crew.submit(request=a_request_with_a_tool()))
    assert (job.state, job.attempts) == ("succeeded", 2)
    ((name, arguments),) = tool_calls_of(job)
    assert name == "get_weather"
    assert isinstance(arguments, dict)
    assert arguments["city"]
    await judge.passes(surface)


async def test_a_tool_call_that_max_tokens_cut_is_the_whole_answer(crew: Crew, judge: Judge, surface: Surface) -> None:
    """At max_tokens the Messages API ends the block in the middle of its JSON, and the stop reason asks the caller to
    raise it. Nothing was lost on the way, and a retry would not get further.
    """
    await crew.worker()
    judge.reset().add(
        Reply(tool_calls=(ToolCall("get_weather", {"city": "Paris"}),), finish_reason="length", times=None),
        ToolFault("malformed_arguments", times=None),
    )
    job = await crew.ended(await crew.submit(request=a_request_with_a_tool()))
    assert (job.state, job.attempts) == ("succeeded", 1)
    assert stop_reason_of(job) == "max_tokens"
    await judge.passes(surface)
