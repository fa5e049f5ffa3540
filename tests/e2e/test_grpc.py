# SPDX-FileCopyrightText: The nibble authors
# SPDX-License-Identifier: Apache-2.0

"""A Python gRPC client with stubs made from the public proto, the standard health service, and reflection."""
import importlib
import pathlib
import sys

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_tools import protoc

from nibble_server import ROOT


@pytest.fixture(scope="session")
def api(tmp_path_factory):
    """The generated modules: api.messages, api.services."""
    out = tmp_path_factory.mktemp("stubs")
    proto = ROOT / "proto"
    assert protoc.main(["protoc", f"-I{proto}", f"--python_out={out}", f"--grpc_python_out={out}",
                        str(proto / "nibble" / "v1" / "nibble.proto")]) == 0
    sys.path.insert(0, str(out))

    class Api:
        messages = importlib.import_module("nibble.v1.nibble_pb2")
        services = importlib.import_module("nibble.v1.nibble_pb2_grpc")

    return Api


@pytest.fixture(scope="session")
def channel(exact_server):
    with grpc.insecure_channel(exact_server.grpc_address) as channel:
        yield channel


@pytest.fixture(scope="session")
def stub(api, channel):
    return api.services.NibbleStub(channel)


def test_generate_from_text_and_from_ids(api, stub, reference):
    prompt = reference["prompts"][0]
    sampling = api.messages.SamplingParams(max_tokens=32, temperature=0, ignore_eos=True, skip_special_tokens=False)
    ids = api.messages.TokenIds(ids=prompt["ids"])
    for request in (api.messages.GenerateRequest(text=prompt["text"], sampling=sampling),
                    api.messages.GenerateRequest(token_ids=ids, sampling=sampling)):
        responses = list(stub.Generate(request))
        assert "".join(response.text for response in responses) == prompt["greedy_text"]
        assert [i for response in responses for i in response.token_ids] == prompt["greedy_ids"]
        last = responses[-1]
        assert last.finish_reason == api.messages.FINISH_REASON_LENGTH
        assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (len(prompt["ids"]), 32)


def test_chat_answers_like_http(api, stub, exact_client):
    messages = [api.messages.ChatMessage(role="user", content="Tell me a story about a brave dog.")]
    sampling = api.messages.SamplingParams(max_tokens=30, temperature=0.9, seed=5)
    text = "".join(r.text for r in stub.Chat(api.messages.ChatRequest(messages=messages, sampling=sampling)))
    http = exact_client.chat.completions.create(
        model="stories-llama", messages=[{"role": "user", "content": "Tell me a story about a brave dog."}],
        max_tokens=30, temperature=0.9, seed=5)
    assert text == http.choices[0].message.content


def test_choices_and_logprobs(api, stub):
    request = api.messages.GenerateRequest(text="Once upon a time", n=2, sampling=api.messages.SamplingParams(
        max_tokens=6, seed=3, logprobs=2))
    tokens = {0: [], 1: []}
    logprobs = {0: [], 1: []}
    for response in stub.Generate(request):
        tokens[response.output_index].extend(response.token_ids)
        logprobs[response.output_index].extend(response.logprobs)
    for index in (0, 1):
        assert len(tokens[index]) == 6
        assert [entry.sampled.token_id for entry in logprobs[index]] == tokens[index]
        assert all(len(entry.top) == 2 and entry.top[0].rank == 1 for entry in logprobs[index])


def test_stop_string_is_reported(api, stub):
    request = api.messages.GenerateRequest(text="Once upon a time", sampling=api.messages.SamplingParams(
        max_tokens=64, temperature=0, stop=["village"]))
    responses = list(stub.Generate(request))
    assert responses[-1].finish_reason == api.messages.FINISH_REASON_STOP
    assert responses[-1].stop_string == "village"
    assert "village" not in "".join(response.text for response in responses)


def test_tokenize_round_trip_and_models(api, stub, reference):
    case = reference["prompts"][0]
    tokenized = stub.Tokenize(api.messages.TokenizeRequest(text=case["text"]))
    assert list(tokenized.token_ids) == case["ids"]
    text = stub.Detokenize(api.messages.DetokenizeRequest(token_ids=tokenized.token_ids)).text
    assert text.endswith(case["text"])
    models = stub.ListModels(api.messages.ListModelsRequest()).models
    assert [model.id for model in models] == ["stories-llama"]
    assert models[0].max_model_len == 2048


@pytest.mark.parametrize("fields, code", [
    (dict(), grpc.StatusCode.INVALID_ARGUMENT),
    (dict(text="x", model="other"), grpc.StatusCode.NOT_FOUND),
    (dict(text="word " * 5000), grpc.StatusCode.INVALID_ARGUMENT),
    (dict(text="x", n=-1), grpc.StatusCode.INVALID_ARGUMENT),
    (dict(text="x", n=10**9), grpc.StatusCode.INVALID_ARGUMENT),
    (dict(text="x", sampling=dict(temperature=float("nan"))), grpc.StatusCode.INVALID_ARGUMENT),
    (dict(text="x", sampling=dict(max_tokens=-5)), grpc.StatusCode.INVALID_ARGUMENT),
    (dict(text="x", sampling=dict(stop=["x"] * 100_000)), grpc.StatusCode.INVALID_ARGUMENT),
    (dict(token_ids=dict(ids=[-1])), grpc.StatusCode.INVALID_ARGUMENT),
    (dict(token_ids=dict(ids=[10**6])), grpc.StatusCode.INVALID_ARGUMENT),
])
def test_errors(api, stub, fields, code):
    with pytest.raises(grpc.RpcError) as raised:
        list(stub.Generate(api.messages.GenerateRequest(**fields)))
    assert raised.value.code() == code
    assert raised.value.details()


def test_oversized_message_is_refused(api, stub):
    with pytest.raises(grpc.RpcError) as raised:
        list(stub.Generate(api.messages.GenerateRequest(text="x" * (20 << 20))))
    assert raised.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_cancelled_calls_and_deadlines_free_their_memory(api, stub, exact_server):
    aborted = exact_server.metric("vllm:request_success_total", finished_reason="abort")

    def request(n):
        return api.messages.GenerateRequest(text="Once", n=n, sampling=api.messages.SamplingParams(max_tokens=1900, ignore_eos=True))

    calls = [stub.Generate(request(64)) for _ in range(8)]
    for call in calls:
        next(call)
        call.cancel()
    assert exact_server.wait_until_idle() == (0, 0, 0)
    with pytest.raises(grpc.RpcError) as raised:
        list(stub.Generate(request(128), timeout=0.3))  # a minute of work
    assert raised.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert exact_server.wait_until_idle() == (0, 0, 0)
    assert exact_server.metric("vllm:request_success_total", finished_reason="abort") - aborted >= 64


def test_health_and_reflection(channel):
    health = health_pb2_grpc.HealthStub(channel)
    for service in ("", "nibble.v1.Nibble"):
        assert health.Check(health_pb2.HealthCheckRequest(service=service)).status == 1  # SERVING
    services = ProtoReflectionDescriptorDatabase(channel).get_services()
    assert {"nibble.v1.Nibble", "grpc.health.v1.Health"} <= set(services)
