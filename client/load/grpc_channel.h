// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Connections over gRPC, and what they have in common. For the sources of this folder that speak
// gRPC: its headers cost seconds each.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "grpcpp/grpcpp.h"

#include "base/status.h"
#include "client/load/load_options.h"

namespace nibble::client {

// `count` connections of their own to options.grpc. INVALID_ARGUMENT naming a file that cannot be
// read.
absl::StatusOr<std::vector<std::shared_ptr<grpc::Channel>>> MakeChannels(const LoadOptions& options,
                                                                         int count);

// The key and the headers, as metadata.
std::vector<std::pair<std::string, std::string>> MakeMetadata(const LoadOptions& options);

// "RESOURCE_EXHAUSTED: the queue is full".
absl::Status FromGrpc(const grpc::Status& status);

}  // namespace nibble::client
