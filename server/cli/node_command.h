// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// nibble serve --node-rank k, k > 0: a host of a group that another one serves.
#pragma once

#include "server/cli/signal_watch.h"
#include "server/config.h"

namespace nibble::cli {

// Joins, runs this host's ranks, and returns the exit status once the head says goodbye or a signal
// asks to stop.
int RunServeNode(const server::ServeConfig& config, SignalWatch* watch);

}  // namespace nibble::cli
