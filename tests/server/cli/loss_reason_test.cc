// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/cli/loss_reason.h"

#include "gtest/gtest.h"

namespace nibble::cli {
namespace {

TEST(LossReasonTest, IsOneWord) {
  EXPECT_EQ(LossReason("rank 1 (pid 4711): killed by signal 9 (SIGKILL)"), "killed");
  EXPECT_EQ(LossReason("rank 1 (pid 4711): exited with status 1"), "exited");
  EXPECT_EQ(LossReason("rank 1 (pid 4711): no answer for 5.0 s"), "silent");
  EXPECT_EQ(LossReason("rank 1 (pid 4711): does not read its channel: 9 bytes wait: killed"),
            "silent");
  EXPECT_EQ(LossReason("rank 3 on node 1 (10.77.0.2): nothing was heard from it for 5000 ms"),
            "unreachable");
  EXPECT_EQ(LossReason("node 1 (10.77.0.2): rank 3 (pid 12): killed by signal 9 (SIGKILL)"),
            "killed");
  EXPECT_EQ(LossReason("rank 3 on node 1 (10.77.0.2): no answer for 5.0 s"), "silent");
  EXPECT_EQ(LossReason("rank 1 (pid 4711): sent what is no message of a rank"), "failed");
}

}  // namespace
}  // namespace nibble::cli
