// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/cli/loss_reason.h"

namespace nibble::cli {

std::string_view LossReason(std::string_view why) {
  const auto says = [&](std::string_view words) {
    return why.find(words) != std::string_view::npos;
  };
  // Who finds a rank silent kills it: the first cause counts. The texts are those of
  // engine/exec/rank_group_supervisor.cc, comm/ranks and comm/cluster.
  if (says("no answer for") || says("has not loaded") || says("does not read")) return "silent";
  if (says("killed by signal")) return "killed";
  if (says("exited with status")) return "exited";
  if (says(" on node ")) return "unreachable";
  return "failed";
}

}  // namespace nibble::cli
