# SPDX-FileCopyrightText: The nibble authors
# SPDX-License-Identifier: Apache-2.0

"""quantize, eval, inspect and chat, as a user types them; the README's options against --help."""
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import time

import openai
import pytest

from nibble_server import ROOT, STORIES, Server
from ranks import HOLDABLE, held, in_progress, rank_processes, wait_until

STORIES_TEXT = ROOT / "tests" / "fixtures" / "data" / "generated_stories.txt"


def run(nibble, *arguments, **options):
    result = subprocess.run([str(nibble), *map(str, arguments)], capture_output=True, text=True, timeout=600, **options)
    assert result.returncode == 0, result.stderr
    return result.stdout


def perplexity(nibble, model, *options):
    output = run(nibble, "eval", "perplexity", model, "--data", STORIES_TEXT, "--context", 512, "--stride", 256, "--json",
                 *options)
    return json.loads(output)


@pytest.fixture(scope="session")
def exact(nibble):
    return perplexity(nibble, STORIES, "--dtype", "float32")


def test_perplexity_is_the_reference(exact, reference):
    expected = next(text for text in reference["perplexity"]["texts"]
                    if text["file"] == STORIES_TEXT.name and text["limit"] is None)
    assert exact["scored"] == expected["scored"]
    assert abs(exact["perplexity"] / expected["perplexity"] - 1) < 1e-3


def test_w4a8_is_within_three_percent(nibble, exact):
    assert perplexity(nibble, STORIES, "--quantization", "w4a8")["perplexity"] < exact["perplexity"] * 1.03


def test_quantized_checkpoint_equals_quantizing_at_load(nibble, tmp_path):
    output = tmp_path / "stories-w4a8"
    run(nibble, "quantize", STORIES, "--output", output, "--scheme", "w4a8")
    report = json.loads((output / "quantize_report.json").read_text())
    assert len(report["layers"]) == 4 and len(report["layers"][0]["modules"]) == 7
    assert (perplexity(nibble, output, "--limit", 2000)["perplexity"] ==
            perplexity(nibble, STORIES, "--quantization", "w4a8", "--limit", 2000)["perplexity"])
    inspected = json.loads(run(nibble, "inspect", output, "--json"))
    assert inspected["quantization"] == "w4a8"
    with Server(nibble, model=output) as server:
        client = openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)
        answer = client.chat.completions.create(model="stories-w4a8", messages=[{"role": "user", "content": "Hello"}])
        assert answer.choices[0].message.content
    again = subprocess.run([str(nibble), "quantize", str(STORIES), "--output", str(output)], capture_output=True, text=True)
    assert again.returncode == 1 and "--overwrite" in again.stderr, again.stderr
    twice = subprocess.run([str(nibble), "quantize", str(output), "--output", str(tmp_path / "x")], capture_output=True,
                           text=True)
    assert twice.returncode == 1 and "quantized" in twice.stderr, twice.stderr


CALIBRATED = ("--method", "gptq", "--calibration-data", STORIES_TEXT, "--calibration-samples", 16,
              "--calibration-length", 256)


def test_gptq_gains_over_rounding(nibble, tmp_path, exact):
    """The table on standard output, the perplexity check, and what it measures."""
    output = tmp_path / "out"
    table = run(nibble, "quantize", STORIES, "--output", output, *CALIBRATED, "--eval-data", STORIES_TEXT)
    report = json.loads((output / "quantize_report.json").read_text())
    assert report["method"] == "gptq" and report["all"]["output_error"] < 0.9 * report["all"]["output_error_before"]
    evaluation = report["evaluation"]
    assert f"{evaluation['perplexity']:.4f}, of the source {evaluation['source_perplexity']:.4f}" in table
    assert evaluation["perplexity"] == pytest.approx(perplexity(nibble, output)["perplexity"], rel=1e-9)
    assert evaluation["perplexity"] < 1.02 * exact["perplexity"]  # 2.9 % by rounding to nearest


def killed_at(command, path):
    """Whether it was killed when `path` was there, and before it was done."""
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while not path.exists() and process.poll() is None:
        time.sleep(0.002)
    process.kill()
    assert process.wait(60) in (0, -signal.SIGKILL)
    return path.exists()  # with what is partial; what is whole has another place


def test_quantize_killed_goes_on(nibble, tmp_path):
    def tensors(folder):
        return (folder / "model.safetensors").read_bytes()

    whole = tmp_path / "whole"
    run(nibble, "quantize", STORIES, "--output", whole, *CALIBRATED)
    output, partial = tmp_path / "out", tmp_path / "out.partial"
    command = [str(nibble), "quantize", str(STORIES), "--output", str(output), *map(str, CALIBRATED)]
    for layer in ("00000", "00002"):
        while not killed_at(command, partial / "layers" / layer):
            shutil.rmtree(output)  # it was done before it could be killed: again
        assert not output.exists()
    other = subprocess.run(command + ["--group-size", "64"], capture_output=True, text=True)
    assert other.returncode == 1 and 'group size is "64", was "128"' in other.stderr, other.stderr
    run(nibble, "quantize", STORIES, "--output", output, *CALIBRATED)
    assert tensors(output) == tensors(whole)
    assert not partial.exists()
    assert json.loads((output / "quantize_report.json").read_text())["resumed_layers"] >= 3


def test_inspect(nibble):
    inspected = json.loads(run(nibble, "inspect", STORIES, "--json", "--tensors"))
    assert inspected["architecture"] == "LlamaForCausalLM"
    assert inspected["parameters"] == 4196608
    assert "model.embed_tokens.weight" in [tensor["name"] for tensor in inspected["tensor_list"]]
    assert "4196608" in run(nibble, "inspect", STORIES)


def test_chat_by_pipe(nibble, exact_server):
    output = subprocess.run([str(nibble), "chat", "--url", exact_server.url, "--temperature", "0", "--stats"],
                            input="Hello\n/reset\n/nonsense\n\nHello\n", capture_output=True, text=True, timeout=60)
    assert output.returncode == 0, output.stderr
    lines = output.stdout.splitlines()
    assert len(lines) == 2 and lines[0] == lines[1] and lines[0].startswith("Hello!"), output.stdout
    assert "unknown command /nonsense" in output.stderr
    assert "tokens/s" in output.stderr


def test_chat_without_a_server_says_what_to_do(nibble):
    output = subprocess.run([str(nibble), "chat", "--url", "http://127.0.0.1:1"], capture_output=True, text=True)
    assert output.returncode == 1
    assert "127.0.0.1:1" in output.stderr and "nibble serve" in output.stderr


def read_until(terminal, text, seconds=60):
    seen, deadline = "", time.monotonic() + seconds
    while text not in seen:
        assert time.monotonic() < deadline, f"no {text!r} in {seen!r}"
        if select.select([terminal], [], [], 0.2)[0]:
            seen += os.read(terminal, 4096).decode(errors="replace")
    return seen


@pytest.fixture
def holdable(nibble):
    with Server(nibble, *HOLDABLE) as running:
        yield running


def test_ctrl_c_cancels_the_answer_and_the_chat_goes_on(nibble, holdable):
    server = holdable
    terminal, other = pty.openpty()
    process = subprocess.Popen([str(nibble), "chat", "--url", server.url, "--temperature", "1"], stdin=other, stdout=other,
                               stderr=other, start_new_session=True,
                               preexec_fn=lambda: __import__("fcntl").ioctl(0, __import__("termios").TIOCSCTTY, 0))
    os.close(other)
    try:
        read_until(terminal, "> ")
        with held(rank_processes(server.process.pid).values()):
            os.write(terminal, b"Tell me a very long story about a brave dog.\n")
            wait_until(lambda: in_progress(server) == 1, server.log)
            os.write(terminal, b"\x03")
            assert "[cancelled]" in read_until(terminal, "\n> ")
        assert server.wait_until_idle() == (0, 0, 0)
        assert server.metric("vllm:request_success_total", finished_reason="abort") == 1
        os.write(terminal, b"Hello\n")
        assert len(read_until(terminal, "\n> ")) > len("Hello\r\n\r\n> ")
        os.write(terminal, b"/exit\n")
        assert process.wait(60) == 0
    finally:
        process.kill()
        os.close(terminal)


def help_options(nibble, *command):
    text = subprocess.run([str(nibble), *command, "--help"], capture_output=True, text=True).stdout
    return set(re.findall(r"(--[a-z][a-z0-9-]*)", text)) - {"--help", "--version", "--log-level"}


def test_readme_documents_every_serve_option(nibble):
    readme = (ROOT / "README.md").read_text()
    table = readme.split("<!-- serve options -->")[1].split("<!-- end -->")[0]
    documented = set(re.findall(r"`(--[a-z][a-z0-9-]*)", table))
    options = help_options(nibble, "serve")
    assert documented == options, f"only in README: {documented - options}; only in --help: {options - documented}"


def test_readme_documents_every_quantize_option(nibble):
    readme = (ROOT / "quantize" / "README.md").read_text()
    table = readme.split("<!-- quantize options -->")[1].split("<!-- end -->")[0]
    documented = set(re.findall(r"`(--[a-z][a-z0-9-]*)", table))
    options = help_options(nibble, "quantize")
    assert documented == options, f"only in README: {documented - options}; only in --help: {options - documented}"
