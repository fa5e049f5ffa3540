// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Whether the process of a peer still runs.
#pragma once

#include <sys/types.h>

namespace nibble::comm::shm {

// Watches one process of this host. A process that ended but was not waited for yet (a zombie) is
// gone too: its parent may be slow.
class PeerProcess {
 public:
  PeerProcess() = default;
  explicit PeerProcess(pid_t pid);
  ~PeerProcess();
  PeerProcess(PeerProcess&& other) noexcept;
  PeerProcess& operator=(PeerProcess&& other) noexcept;

  bool watching() const { return pid_ != 0; }
  bool Gone() const;

 private:
  pid_t pid_ = 0;
  // Immune to a pid that is used again; -1 where the kernel has none: then by number.
  int pidfd_ = -1;
  bool gone_at_first_ = false;
};

}  // namespace nibble::comm::shm
