#!/usr/bin/env python3
# SPDX-FileCopyrightText: The nibble authors
# SPDX-License-Identifier: Apache-2.0
"""One case of compare_peers.py on openvino-genai, run by the Python that has it: prints {"tokens_per_s": ...}.

Token ids are random, and new for every call, so that no prefix is cached. Decoding is the time of a long generation less
that of one token behind as long a prompt.
"""
import argparse
import json
import time

import numpy
import openvino
import openvino_genai

DECODE_TOKENS = 32
BATCH_CONTEXT, BATCH_TOKENS = 64, 16


class Pipeline:
    def __init__(self, model, threads):
        self.pipeline = openvino_genai.LLMPipeline(model, "CPU", INFERENCE_NUM_THREADS=threads)
        self.random = numpy.random.default_rng(1)

    def seconds(self, batch, prompt, generated):
        ids = openvino.Tensor(self.random.integers(1000, 100000, (batch, prompt)).astype(numpy.int64))
        mask = openvino.Tensor(numpy.ones((batch, prompt), numpy.int64))
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = generated
        config.ignore_eos = True
        config.do_sample = False
        start = time.perf_counter()
        self.pipeline.generate(openvino_genai.TokenizedInputs(ids, mask), config)
        return time.perf_counter() - start

    def decode(self, batch, prompt, generated):
        self.seconds(batch, prompt, 3)  # the first calls compile and pack weights
        first = self.seconds(batch, prompt, 1)
        return batch * generated / (self.seconds(batch, prompt, generated + 1) - first)

    def prefill(self, prompt):
        self.seconds(1, 32, 2)
        self.seconds(1, prompt, 1)
        return prompt / self.seconds(1, prompt, 1)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--case", required=True)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    pipeline = Pipeline(arguments.model, arguments.threads)
    kind, _, count = arguments.case.partition("-")
    if kind == "prefill":
        rate = pipeline.prefill(int(count))
    elif kind == "batch":
        rate = pipeline.decode(int(count), BATCH_CONTEXT, BATCH_TOKENS)
    else:
        rate = pipeline.decode(1, 1, DECODE_TOKENS)
    print(json.dumps({"tokens_per_s": rate}))


if __name__ == "__main__":
    main()
