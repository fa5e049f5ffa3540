// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// TLS files for tests of servers, in a folder that goes with the object.
#pragma once

#include <filesystem>
#include <string>

#include "tests/comm/cluster/certificates.h"
#include "tests/testing/temp_dir.h"

namespace nibble::testing {

// Writes a file beside its place and renames it into it: no reader sees a half of it.
inline std::string Replace(const TempDir& folder, const std::string& name,
                           const std::string& text) {
  folder.Write("." + name, text);
  std::filesystem::rename(folder.File("." + name), folder.File(name));
  return folder.File(name);
}

// An authority, and a certificate that it signed: cert.pem, key.pem.
struct TlsFiles {
  TlsFiles() { Renew(); }
  void Renew() const {
    const comm::Certificate made = authority.Sign();
    Replace(folder, "cert.pem", made.cert);
    Replace(folder, "key.pem", made.key);
  }
  std::string cert() const { return folder.File("cert.pem"); }
  std::string key() const { return folder.File("key.pem"); }

  TempDir folder;
  comm::TestAuthority authority;
};

}  // namespace nibble::testing
