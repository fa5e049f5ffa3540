// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "comm/cluster/grpc_log.h"

#include <grpc/support/log.h>

#include <mutex>

#include "base/log.h"
#include "comm/cluster/limited_log.h"

namespace nibble::comm {
namespace {

void Write(gpr_log_func_args* line) {
  static LimitedLog errors;
  if (line->severity == GPR_LOG_SEVERITY_ERROR) {
    errors.Write(fmt::format("gRPC: {}", line->message));
  } else {  // only comes when GRPC_VERBOSITY asks for it
    log::Info("gRPC: {}", line->message);
  }
}

}  // namespace

void LimitGrpcLog() {
  static std::once_flag once;
  std::call_once(once, [] { gpr_set_log_function(Write); });
}

}  // namespace nibble::comm
