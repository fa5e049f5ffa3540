// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#pragma once

#include <memory>
#include <string>

#include "base/status.h"
#include "client/http/http_streams.h"
#include "client/load/server_api.h"

namespace nibble::client {

// A server of the OpenAI API. `path`: where requests go ("/v1/completions"), behind the address's
// own. Encode and Decode ask /tokenize and /detokenize, which nibble and vLLM have.
std::unique_ptr<ServerApi> MakeHttpApi(HttpStreamsOptions options, std::string path);

}  // namespace nibble::client
