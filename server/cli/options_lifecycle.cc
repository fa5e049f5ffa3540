// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Options of nibble serve for probes and for its end.
#include "CLI/CLI.hpp"
#include "server/cli/options.h"

namespace nibble::cli {

void AddLifecycleOptions(CLI::App* app, server::LifecycleOptions* options) {
  app->add_option("--step-timeout", options->step_timeout_seconds,
                  "seconds that one step of the engine may take: /health and gRPC health say no "
                  "while one takes longer, /health/live when that lasts. A long prompt is many "
                  "steps of --max-num-batched-tokens each, which count one by one; raise this, or "
                  "lower that, for a model whose single steps take so long")
      ->capture_default_str();
  app->add_option("--health-port", options->health_port,
                  "port of a plain-HTTP listener with /health, /health/ready and /health/live "
                  "alone: for probes that have no client certificate (0: any free port, -1: none)")
      ->capture_default_str();
  app->add_option("--drain-delay", options->drain_delay_seconds,
                  "seconds that SIGTERM leaves load balancers to notice that the server is not "
                  "ready: requests are still taken")
      ->capture_default_str();
  app->add_option("--shutdown-timeout", options->shutdown_timeout_seconds,
                  "seconds that SIGTERM waits for answers in progress, after --drain-delay")
      ->capture_default_str();
}

}  // namespace nibble::cli
