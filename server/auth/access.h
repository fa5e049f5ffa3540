// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Who may use the server: the one decision that HTTP and gRPC share.
#pragma once

#include <string_view>
#include <vector>

#include "base/status.h"
#include "server/auth/api_keys.h"

namespace nibble::server {

struct Presented {
  std::vector<std::string_view> authorization;  // every header of that name
  std::vector<std::string_view> origin;         // likewise; HTTP only
  std::string_view host;                        // HTTP only
};

// OK; UNAUTHENTICATED when there is no key, more than one, or a wrong one; PERMISSION_DENIED when a
// browser sends the key that it remembers (Basic) for a page of another host. Messages have nothing
// of what was presented.
absl::Status CheckAccess(const ApiKeys& keys, const Presented& presented);

}  // namespace nibble::server
