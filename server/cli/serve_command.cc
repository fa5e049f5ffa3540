// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// nibble serve
#include "base/log.h"
#include "server/cli/access_setup.h"
#include "server/cli/commands.h"
#include "server/cli/heap_limits.h"
#include "server/cli/node_command.h"
#include "server/cli/parallel_setup.h"
#include "server/cli/serving_stack.h"
#include "server/cli/signal_watch.h"

namespace nibble::cli {
namespace {

std::string OnSignal(const server::LifecycleOptions& options) {
  if (options.drain_delay_seconds == 0) return "no new requests; finishing those in progress";
  return fmt::format(
      "not ready; requests are taken for another {} s, then those in progress are finished",
      options.drain_delay_seconds);
}

}  // namespace

int RunServe(const server::ServeConfig& given) {
  LimitHeap();
  server::ServeConfig config = given;
  config.parallel.cluster_secret = TakeSecretFromEnvironment();
  TakeApiKeyFromEnvironment(&config.guards);
  if (const absl::Status valid = config.Validate(); !valid.ok()) return Fail(valid);
  static SignalWatch watch;
  if (config.parallel.node_rank > 0) return RunServeNode(config, &watch);
  const absl::StatusOr<AccessSetup> access = SetUpAccess(config.guards);
  if (!access.ok()) return Fail(access.status());
  if (access->log != nullptr) {
    watch.OnHangup([weak = std::weak_ptr<server::RequestLog>(access->log)] {
      if (const auto log = weak.lock()) log->Reopen();
    });
  }
  absl::StatusOr<std::unique_ptr<ServingStack>> stack = ServingStack::Start(config, *access);
  if (!stack.ok()) return Fail(stack.status());
  const std::stop_token stop = watch.StartServing(OnSignal(config.lifecycle));
  PrintMessage((*stack)->Banner());
  WaitFor(stop);
  const absl::Status failure = (*stack)->Failure();
  const absl::Status drained = (*stack)->Shutdown();
  if (drained.ok()) {
    log::Info("all requests are finished; bye");
  } else {
    log::Warning("--shutdown-timeout {} s is over, answers were cut off: {}",
                 config.lifecycle.shutdown_timeout_seconds, std::string(drained.message()));
  }
  if (!failure.ok()) return Fail(Annotate(failure, "nothing was served any more"));
  return 0;
}

}  // namespace nibble::cli
