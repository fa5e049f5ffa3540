// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// API keys in front of all HTTP routes, also those that do not exist.
#pragma once

#include <memory>

#include "server/auth/api_keys.h"
#include "server/http/http_server.h"

namespace nibble::server {

// Without a valid key a request gets 401 with both challenges, so that tools and browsers know what
// to send, or 403 (see CheckAccess). Only /health, /health/ready and /health/live need none:
// whoever asks them (the kubelet, balancers) has no secrets.
HttpGuard MakeKeyGuard(std::shared_ptr<const ApiKeys> keys);

}  // namespace nibble::server
