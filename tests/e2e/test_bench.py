# SPDX-FileCopyrightText: The nibble authors
# SPDX-License-Identifier: Apache-2.0

"""nibble bench as a user types it, and the checkpoint that its figures are measured on. No figure is asserted."""
import json
import subprocess
import sys

import pytest

from nibble_server import ROOT, STORIES

COMMANDS = {
    "gemm": ["--n", 4096, "--k", 4096, "--m", "1,2", "--seconds", 0, "--filter", "w4a8_folded"],
    "grouped-gemm": ["--filter", "qwen3 up", "--tokens", "1,2", "--seconds", 0],
    "moe": ["--shape", "stories-mixtral", "--tokens", "1,2", "--seconds", 0],
    "moe-layout": ["--transport", "threads", "--tokens", "1,3", "--hidden-size", 256, "--seconds", 0],
    "layer": ["--shape", "llama-3.2-1b", "--batch", 1, "--context", 16, "--prompt", 8, "--seconds", 0],
    "attention": ["--batch", 1, "--context", 64, "--prompt", 8, "--head-dim", 64, "--seconds", 0],
    "decode": [STORIES, "-q", "w4a8", "--batch", "1,2", "--steps", 2, "--repetitions", 1],
    "prefill": [STORIES, "-q", "w4a8", "--prompt", "8,32", "--max-num-batched-tokens", 16, "--repetitions", 1],
}


def bench(nibble, *arguments):
    return subprocess.run([str(nibble), "bench", *map(str, arguments)], capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("command", COMMANDS)
def test_standard_output_is_one_json_document(nibble, command):
    done = bench(nibble, command, *COMMANDS[command], "--threads", 1)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["bench"] == command and document["machine"]["threads"] == 1
    assert document["results"]
    assert document["peaks"] or command == "moe-layout"  # which computes nothing
    assert "of read" not in done.stderr  # the table is for terminals


@pytest.mark.parametrize("shape", ["tiny", "tiny-mixtral"])
@pytest.mark.parametrize("command, options", [("decode", ["--batch", "1,2", "--steps", 2]), ("prefill", ["--prompt", 8])])
def test_random_models_need_no_files(nibble, command, options, shape):
    done = bench(nibble, command, f"random:{shape}", "-q", "w4a8", *options, "--repetitions", 1, "--threads", 1)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["model"]["quantization"].startswith("random, w4a8 (folded), head ")


@pytest.mark.parametrize("arguments, named", [
    (["gemm", "--n", 0], "--n is 0, want 1 to"),
    (["gemm", "--threads", 5000], "--threads is 5000, want 0 to 1024"),
    (["gemm", "--filter", "nothing"], "--filter 'nothing'"),
    (["grouped-gemm", "--format", "w5a8"], "--format 'w5a8' is none of"),
    (["moe", "--shape", "unheard-of"], "--shape is 'unheard-of', want mixtral-8x7b"),
    (["moe-layout", "--transport", "threads", "--codecs", "int8,int9"], "int9"),
    (["layer", "--shape", "unheard-of"], "--shape is 'unheard-of', want llama-3.2-1b"),
    (["attention", "--kv-cache-dtype", "int3"], "--kv-cache-dtype is 'int3', want"),
    (["decode", STORIES, "--batch", "1,0"], "--batch is 0, want 1 to"),
    (["decode", STORIES, "--context", 1 << 23], "the model's limit is"),
    (["prefill", "no/such/model"], "no/such/model: no such directory"),
    (["prefill", "random:unheard-of"], "random:unheard-of: no such shape, want one of llama-3.2-1b"),
])
def test_bad_options_are_named(nibble, arguments, named):
    done = bench(nibble, *arguments)
    assert done.returncode == 1 and named in done.stderr and not done.stdout, done


@pytest.mark.parametrize("shape", ["tiny", "tiny-mixtral", "tiny-mixtral-active"])
def test_random_checkpoint_is_a_model(nibble, tmp_path, shape):
    pytest.importorskip("numpy")
    model = tmp_path / "random"
    script = [sys.executable, str(ROOT / "bench" / "make_random_checkpoint.py"), "--shape", shape, "--output", str(model)]
    subprocess.run(script, check=True, capture_output=True)
    inspected = json.loads(subprocess.run([str(nibble), "inspect", str(model), "--json"], check=True, capture_output=True,
                                          text=True).stdout)
    assert inspected["tokenizer_vocab_size"] == inspected["vocab_size"] == 2048
    done = bench(nibble, "decode", model, "-q", "w4a8", "--batch", 1, "--steps", 1, "--repetitions", 1)
    assert done.returncode == 0, done.stderr
    again = subprocess.run(script, capture_output=True, text=True)
    assert again.returncode == 2 and "exists already" in again.stderr
