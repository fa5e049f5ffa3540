// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "comm/cluster/credentials.h"

#include <openssl/bio.h>
#include <openssl/pem.h>
#include <openssl/x509.h>

#include <string>

namespace nibble::comm {
namespace {

template <typename T, void (*kFree)(T*)>
struct Free {
  void operator()(T* object) const { kFree(object); }
};
using CertificatePtr = std::unique_ptr<X509, Free<X509, X509_free>>;
using KeyPtr = std::unique_ptr<EVP_PKEY, Free<EVP_PKEY, EVP_PKEY_free>>;
struct FreeBio {
  void operator()(BIO* bio) const { BIO_free(bio); }
};
using BioPtr = std::unique_ptr<BIO, FreeBio>;

BioPtr Open(const std::string& pem) {
  return BioPtr(BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())));
}

// Nobody is there to be asked for the password of a key.
int NoPassword(char*, int, int, void*) { return -1; }

CertificatePtr ReadCertificate(const std::string& pem) {
  return CertificatePtr(PEM_read_bio_X509(Open(pem).get(), nullptr, NoPassword, nullptr));
}

}  // namespace

absl::Status CheckCertificates(const ClusterSecurity& security) {
  if (!security.has_tls()) return absl::OkStatus();
  if (ReadCertificate(security.tls_ca) == nullptr) {
    return InvalidArgument("the CA certificate of the cluster is no PEM certificate");
  }
  const CertificatePtr certificate = ReadCertificate(security.tls_cert);
  if (certificate == nullptr) {
    return InvalidArgument("the certificate of this node is no PEM certificate");
  }
  const KeyPtr key(
      PEM_read_bio_PrivateKey(Open(security.tls_key).get(), nullptr, NoPassword, nullptr));
  if (key == nullptr) {
    return InvalidArgument("the key of this node is no PEM key without a password");
  }
  if (X509_check_private_key(certificate.get(), key.get()) != 1) {
    return InvalidArgument("the key of this node is not the one of its certificate");
  }
  return absl::OkStatus();
}

std::shared_ptr<grpc::ServerCredentials> ServerCredentialsOf(const ClusterSecurity& security) {
  if (!security.has_tls()) return grpc::InsecureServerCredentials();
  grpc::SslServerCredentialsOptions options(
      GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
  options.pem_root_certs = security.tls_ca;
  options.pem_key_cert_pairs.push_back(
      {.private_key = security.tls_key, .cert_chain = security.tls_cert});
  return grpc::SslServerCredentials(options);
}

std::shared_ptr<grpc::ChannelCredentials> ChannelCredentialsOf(const ClusterSecurity& security,
                                                               grpc::ChannelArguments* arguments) {
  if (!security.has_tls()) return grpc::InsecureChannelCredentials();
  if (!security.tls_server_name.empty()) {
    arguments->SetSslTargetNameOverride(security.tls_server_name);
  }
  grpc::SslCredentialsOptions options;
  options.pem_root_certs = security.tls_ca;
  options.pem_private_key = security.tls_key;
  options.pem_cert_chain = security.tls_cert;
  return grpc::SslCredentials(options);
}

}  // namespace nibble::comm
