// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The page that a browser gets from the server itself: a chat, and a live view of what the server
// does. It is made of files of this folder that the binary holds; all it knows it asks of the
// public API and of /metrics.
#pragma once

#include "server/http/http_server.h"

namespace nibble::server {

// Adds the routes / and /web/NAME. REQUIRES: before server->Start().
void RegisterWeb(HttpServer* server);

}  // namespace nibble::server
