// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// nibble inspect --experts: how a model's tokens spread over its experts.
#pragma once

#include <string>
#include <string_view>

#include "base/status.h"
#include "engine/moe/expert_load.h"
#include "server/cli/commands.h"

namespace nibble::cli {

absl::Status InspectExperts(const InspectOptions& options);

// nibble:moe_expert_tokens_total of an answer of /metrics; `where` is for messages. NOT_FOUND when
// there is none, INVALID_ARGUMENT for numbers out of range. Layers before the last one that are not
// there are dense.
absl::StatusOr<engine::ExpertLoad> ExpertLoadOfMetrics(std::string_view metrics,
                                                       const std::string& where);

}  // namespace nibble::cli
