# SPDX-FileCopyrightText: The nibble authors
# SPDX-License-Identifier: Apache-2.0

"""The official openai client, unmodified."""
import math

import openai
import pytest

MODEL = "stories-llama"
DOG = [{"role": "user", "content": "Tell me a story about a brave dog."}]


def test_models_lists_the_served_name(client):
    models = client.models.list().data
    assert [model.id for model in models] == [MODEL]


def test_chat_answers(client):
    answer = client.chat.completions.create(model=MODEL, messages=DOG, max_tokens=40, temperature=0)
    choice = answer.choices[0]
    assert choice.message.role == "assistant"
    assert len(choice.message.content) > 40
    assert choice.finish_reason == "length"
    assert answer.usage.completion_tokens == 40
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 40


def test_greeting_ends_by_itself(exact_client):
    answer = exact_client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "Hello"}], temperature=0)
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].message.content.startswith("Hello!")


def test_stream_equals_the_whole_answer(client):
    options = dict(model=MODEL, messages=DOG, max_tokens=60, temperature=0.8, seed=7)
    whole = client.chat.completions.create(**options)
    text, reasons, usage = "", [], None
    for chunk in client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}):
        if not chunk.choices:
            usage = chunk.usage
            continue
        text += chunk.choices[0].delta.content or ""
        if chunk.choices[0].finish_reason:
            reasons.append(chunk.choices[0].finish_reason)
    assert text == whole.choices[0].message.content
    assert reasons == [whole.choices[0].finish_reason]
    assert usage.completion_tokens == whole.usage.completion_tokens


def test_greedy_text_is_the_reference(exact_client, reference):
    for prompt in reference["prompts"]:
        answer = exact_client.completions.create(model=MODEL, prompt=prompt["text"], max_tokens=32, temperature=0,
                                                 extra_body={"ignore_eos": True, "skip_special_tokens": False})
        assert answer.choices[0].text == prompt["greedy_text"], prompt["text"]


def test_token_ids_are_prompts_too(exact_client, reference):
    prompt = reference["prompts"][0]
    answer = exact_client.completions.create(model=MODEL, prompt=prompt["ids"], max_tokens=8, temperature=0)
    assert prompt["greedy_text"].startswith(answer.choices[0].text)
    assert answer.usage.prompt_tokens == len(prompt["ids"])


def test_several_prompts_and_choices(client):
    answer = client.completions.create(model=MODEL, prompt=["Once upon a time", "The dragon"], n=2, max_tokens=5, seed=1)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.usage.completion_tokens <= 20


def test_n_choices_differ_and_repeat_with_the_seed(client):
    options = dict(model=MODEL, messages=DOG, n=3, seed=11, max_tokens=30, temperature=1.0)
    first = [choice.message.content for choice in client.chat.completions.create(**options).choices]
    second = [choice.message.content for choice in client.chat.completions.create(**options).choices]
    assert first == second
    assert len(set(first)) == 3


def test_streamed_choices_are_separate(client):
    options = dict(model=MODEL, messages=DOG, n=3, seed=11, max_tokens=30, temperature=1.0)
    whole = [choice.message.content for choice in client.chat.completions.create(**options).choices]
    texts = ["", "", ""]
    for chunk in client.chat.completions.create(**options, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == whole


def test_stop_strings_end_the_answer(exact_client):
    options = dict(model=MODEL, prompt="Once upon a time", max_tokens=64, temperature=0)
    full = exact_client.completions.create(**options).choices[0].text
    stop = full.split()[3]  # the middle of the text
    cut = exact_client.completions.create(**options, stop=[stop])
    assert cut.choices[0].text == full[:full.index(stop)]
    assert cut.choices[0].finish_reason == "stop"
    kept = exact_client.completions.create(**options, stop=stop, extra_body={"include_stop_str_in_output": True})
    assert kept.choices[0].text == full[:full.index(stop) + len(stop)]


def test_chat_logprobs(exact_client):
    answer = exact_client.chat.completions.create(model=MODEL, messages=DOG, max_tokens=5, temperature=0, logprobs=True,
                                                  top_logprobs=4)
    content = answer.choices[0].logprobs.content
    assert len(content) == 5
    for token in content:
        assert token.logprob <= 0
        assert len(token.top_logprobs) == 4
        assert token.top_logprobs[0].token == token.token  # greedy: the sampled token is the most likely one
        assert token.top_logprobs[0].logprob == token.logprob
        logprobs = [top.logprob for top in token.top_logprobs]
        assert logprobs == sorted(logprobs, reverse=True)
        assert bytes(token.bytes).decode(errors="replace") == token.token
    assert "".join(token.token for token in content) == answer.choices[0].message.content


def test_logprobs_are_the_reference(exact_client, reference):
    for prompt in reference["prompts"][:4]:
        answer = exact_client.completions.create(model=MODEL, prompt=prompt["ids"], max_tokens=1, temperature=0, logprobs=5)
        expected = prompt["top10"][0][1] - prompt["logsumexp"]
        assert math.isclose(answer.choices[0].logprobs.token_logprobs[0], expected, abs_tol=2e-3)
        assert len(answer.choices[0].logprobs.top_logprobs[0]) == 5


def test_logit_bias_forces_a_token(exact_client):
    answer = exact_client.completions.create(model=MODEL, prompt="Once upon", max_tokens=4, temperature=0,
                                             logit_bias={"44": 100})
    ids = exact_client.completions.create(model=MODEL, prompt="Once upon", max_tokens=4, temperature=0)
    assert answer.choices[0].text == ",,,,"
    assert ids.choices[0].text != ",,,,"


def test_min_tokens_holds_the_end_back(exact_client):
    options = dict(model=MODEL, messages=[{"role": "user", "content": "Hello"}], temperature=0, max_tokens=60)
    short = exact_client.chat.completions.create(**options).usage.completion_tokens
    longer = exact_client.chat.completions.create(**options, extra_body={"min_tokens": short + 10})
    assert longer.usage.completion_tokens >= short + 10


@pytest.mark.parametrize("field, value, error", [
    ("model", "gpt-4", openai.NotFoundError),
    ("temperature", -1, openai.BadRequestError),
    ("temperature", 1e9, openai.BadRequestError),
    ("top_p", 0, openai.BadRequestError),
    ("max_tokens", 0, openai.BadRequestError),
    ("max_tokens", 10**9, openai.BadRequestError),
    ("n", 10**9, openai.BadRequestError),
    ("n", 0, openai.BadRequestError),
    ("top_logprobs", 1000, openai.BadRequestError),
    ("stop", ["x"] * 100_000, openai.BadRequestError),
    ("messages", [], openai.BadRequestError),
    ("messages", [{"role": "user", "content": "word " * 5000}], openai.BadRequestError),
    ("tools", [{"type": "function", "function": {"name": "f", "parameters": {}}}], openai.BadRequestError),
    ("response_format", {"type": "json_object"}, openai.BadRequestError),
    ("logit_bias", {"999999": 1}, openai.BadRequestError),
])
def test_errors_name_the_field(client, field, value, error):
    options = dict(model=MODEL, messages=DOG, max_tokens=5, logprobs=True)
    options[field] = value
    with pytest.raises(error) as raised:
        client.chat.completions.create(**options)
    body = raised.value.body
    assert body["message"]
    assert body["type"]
    if field != "messages":
        assert field in body["message"] or field == body["param"], body
    client.chat.completions.create(model=MODEL, messages=DOG, max_tokens=2)  # still serving
