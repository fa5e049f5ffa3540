// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// From the engine's deltas to the bytes of one answer, streamed or whole.
//
//   io thread:     MakeAnswerSink -> service.Generate(request, sink) -> sink->Begin(generation)
//   engine thread: OnDelta ... OnDelta          (the first may come before Begin)
//
// The engine keeps the sink until the last delta, the sink keeps the responder, the responder keeps
// the disconnect callback, and that keeps only the Generation: no circle.
#pragma once

#include <cstdint>
#include <memory>

#include "engine/tokenizer/tokenizer.h"
#include "server/admission/generation_service.h"
#include "server/http/http_server.h"
#include "server/openai/api_request.h"
#include "server/openai/sse_writer.h"

namespace nibble::server {

class AnswerSink : public GenerationSink {
 public:
  // After Generate() succeeded: from now on a client that leaves cancels `generation`.
  virtual void Begin(std::shared_ptr<Generation> generation) = 0;
};

struct AnswerOptions {
  AnswerHeader header;
  bool chat = false;
  bool stream = false;
  bool include_usage = false;
  bool logprobs = false;
  int64_t choices_per_prompt = 1;
  int64_t num_choices = 1;
  int64_t max_queued_bytes = 0;  // streams only
};

// `tokenizer` must outlive the sink.
std::shared_ptr<AnswerSink> MakeAnswerSink(AnswerOptions options,
                                           const engine::Tokenizer* tokenizer,
                                           std::shared_ptr<HttpResponder> responder);

}  // namespace nibble::server
