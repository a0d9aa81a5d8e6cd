"""What an application does with the unmodified OpenAI SDK. Arguments: base URL, picture file, the bundle's name."""

import base64
import enum
import json
import pathlib
import sys

import openai
import pydantic

URL, PICTURE, NAME = sys.argv[1:]
client = openai.OpenAI(base_url=URL, api_key="none", max_retries=0)
PIXELS = "data:image/png;base64," + base64.b64encode(pathlib.Path(PICTURE).read_bytes()).decode()


def shown(question):
    return [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": PIXELS}}, {"type": "text", "text": question}]}]


def said(question):
    return [{"role": "user", "content": question}]


def text():
    reply = client.chat.completions.create(model="local", messages=said("Hello?"), max_tokens=5, temperature=0.7)
    assert reply.model == NAME, reply.model
    assert reply.object == "chat.completion" and reply.id.startswith("chatcmpl-")
    assert reply.choices[0].finish_reason in ("stop", "length")
    assert reply.usage.completion_tokens <= 5 and reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    again = client.chat.completions.create(model=NAME, messages=said("Hello?"), max_completion_tokens=5)
    assert again.choices[0].message.content == reply.choices[0].message.content, "greedy: the same every time"


def picture():
    seen, unseen = (
        client.chat.completions.create(model="local", messages=messages, max_tokens=4)
        for messages in (shown("What is it?"), said("What is it?"))
    )
    assert seen.usage.prompt_tokens > unseen.usage.prompt_tokens, "the picture's tokens are counted"


def stream():
    whole = client.chat.completions.create(model="local", messages=shown("What is it?"), max_tokens=8)
    stream = client.chat.completions.create(
        model="local", messages=shown("What is it?"), max_tokens=8, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert {chunk.model for chunk in chunks} == {NAME}
    assert len({chunk.id for chunk in chunks}) == 1
    content = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert content == whole.choices[0].message.content, (content, whole.choices[0].message.content)
    assert chunks[-1].usage == whole.usage and not chunks[-1].choices
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert chunks[-2].routing["reasons"] == ["PIN"]


def logprobs():
    reply = client.chat.completions.create(model="local", messages=said("Hello?"), max_tokens=3, logprobs=True, top_logprobs=5)
    tokens = reply.choices[0].logprobs.content
    assert len(tokens) == reply.usage.completion_tokens
    for token in tokens:
        assert len(token.top_logprobs) == 5
        # Decoding is greedy: the token is the likeliest one.
        assert 0 >= token.logprob == token.top_logprobs[0].logprob >= token.top_logprobs[4].logprob
    assert client.chat.completions.create(model="local", messages=said("Hello?"), max_tokens=3).choices[0].logprobs is None


class Verdict(enum.Enum):
    YES = "yes"
    NO = "no"


class Seen(pydantic.BaseModel):
    verdict: Verdict


def schema():
    reply = client.chat.completions.parse(model="local", messages=shown("Is it?"), response_format=Seen)
    assert isinstance(reply.choices[0].message.parsed.verdict, Verdict)
    confidence = reply.routing["confidence"]
    assert 0 <= confidence["p"] <= 1 and confidence["source"] == "candidates", confidence
    assert abs(sum(candidate["probability"] for candidate in confidence["candidates"]) - 1) < 1e-6


def auto():
    raw = client.chat.completions.with_raw_response.create(model="auto", messages=shown("Is it?"), max_tokens=4)
    reply = raw.parse()
    assert raw.headers["x-router-model"] == reply.model == NAME
    assert raw.headers["x-router-reason"] == reply.routing["reasons"][0]
    assert raw.headers["x-router-decision-id"] == reply.routing["decision_id"]
    assert reply.routing["where"] == "local", "there is no pool here"
    chunks = list(client.chat.completions.create(model="auto", messages=shown("Is it?"), max_tokens=4, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == reply.choices[0].message.content


def errors():
    def refused(kind, field, **request):
        try:
            client.chat.completions.create(**{"model": "local", "messages": said("Hello?"), **request})
        except kind as error:
            assert error.body["param"] == field, error.body
            return error
        raise AssertionError(f"{request} was taken")

    unknown = refused(openai.NotFoundError, "model", model="gpt-5")
    assert unknown.code == "model_not_found"
    refused(openai.BadRequestError, "n", n=2)
    refused(openai.BadRequestError, "tools", tools=[{"type": "function", "function": {"name": "f"}}])
    refused(openai.BadRequestError, "response_format", response_format={"type": "json_object"})
    away = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://example.org/a.jpg"}}]}]
    refused(openai.BadRequestError, "messages[0].content[0].image_url.url", messages=away)
    refused(openai.BadRequestError, "messages", messages=[])


def models():
    assert [model.id for model in client.models.list()] == ["auto", "local", NAME]


for check in (text, picture, stream, logprobs, schema, auto, errors, models):
    check()
    print(check.__name__, "ok")
