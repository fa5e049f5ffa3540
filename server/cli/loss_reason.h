// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Why a rank was lost, in one word: the label of a metric.
#pragma once

#include <string_view>

namespace nibble::cli {

// Of the sentence that a RankGroupObserver is given: "killed", "exited", "silent", "unreachable",
// or "failed" for everything else.
std::string_view LossReason(std::string_view why);

}  // namespace nibble::cli
