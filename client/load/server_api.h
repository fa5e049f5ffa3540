// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What a load test asks of a server, over HTTP or gRPC.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/status.h"
#include "client/load/text_codec.h"
#include "client/load/transport.h"

namespace nibble::client {

struct SamplingOptions {  // unset: the server's
  std::optional<double> temperature;
  std::optional<double> top_p;
  std::optional<int64_t> top_k;
  std::optional<double> min_p;
  std::optional<double> frequency_penalty;
  std::optional<double> presence_penalty;
  std::optional<double> repetition_penalty;

  void Validate(std::vector<std::string>* violations) const;
};

// What all requests of a run share.
struct RequestFormat {
  std::string model;
  bool chat = false;
  bool ignore_eos = false;
  SamplingOptions sampling;
  std::string extra_body;      // JSON object, or empty
  double timeout_seconds = 0;  // as --request-timeout allows
};

struct ServedModel {
  std::string id;
  int64_t max_model_len = 0;  // 0: unknown
  int64_t vocab_size = 0;
};

// Errors name the address and what to do. Blocks, but for the transport.
class ServerApi : public TextCodec {
 public:
  virtual absl::StatusOr<std::vector<ServedModel>> ListModels() = 0;
  // For Encode and Decode.
  virtual void SetModel(const ServedModel& model) = 0;
  // INVALID_ARGUMENT for an extra_body that does not fit.
  virtual absl::StatusOr<std::unique_ptr<Transport>> MakeTransport(const RequestFormat& format) = 0;
  virtual std::string address() const = 0;
  // What blocks ends with CANCELLED soon after `interrupted` becomes true. Null: nothing does.
  virtual void SetInterrupt(const std::atomic<bool>* interrupted) = 0;
};

}  // namespace nibble::client
