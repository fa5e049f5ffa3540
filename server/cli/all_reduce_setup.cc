// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/cli/all_reduce_setup.h"

namespace nibble::cli {

absl::StatusOr<comm::AllReduceOptions> ToAllReduceOptions(const server::AllReduceFlags& flags) {
  NIBBLE_ASSIGN_OR_RETURN(comm::AllReduceOptions options, comm::ParseAllReduce(flags.all_reduce));
  options.codec.group_size = flags.group_size;
  options.codec.scale =
      flags.scale == "log2" ? comm::ScaleFormat::kLog2Int8 : comm::ScaleFormat::kBf16;
  options.codec.spikes = flags.spikes;
  const bool coded =
      options.codec.is_integer() || options.mode == comm::AllReduceOptions::Mode::kAuto;
  options.codec.rotation = flags.rotation && coded;
  NIBBLE_RETURN_IF_ERROR(comm::Validate(options.codec));
  return options;
}

}  // namespace nibble::cli
