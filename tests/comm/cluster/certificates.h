// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Certificates for tests, made when they are needed.
#pragma once

#include <memory>
#include <string>

namespace nibble::comm {

struct Certificate {
  std::string cert;  // PEM
  std::string key;   // PEM
};

// A certificate authority that signs for 127.0.0.1.
class TestAuthority {
 public:
  TestAuthority();
  ~TestAuthority();
  const std::string& cert() const;  // PEM
  Certificate Sign() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace nibble::comm
