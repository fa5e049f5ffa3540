// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#pragma once

#include <memory>

#include "base/status.h"
#include "client/load/load_options.h"
#include "client/load/transport.h"
#include "nibble/v1/nibble.pb.h"

namespace nibble::client {

// Requests as calls of nibble.v1.Nibble on one completion queue, over a few connections.
absl::StatusOr<std::unique_ptr<Transport>> MakeGrpcTransport(const LoadOptions& options,
                                                             const RequestFormat& format,
                                                             v1::SamplingParams sampling);

}  // namespace nibble::client
