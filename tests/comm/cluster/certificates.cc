// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "tests/comm/cluster/certificates.h"

#include <openssl/bio.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>

#include "base/check.h"

namespace nibble::comm {
namespace {

struct Free {
  void operator()(X509* x) const { X509_free(x); }
  void operator()(EVP_PKEY* x) const { EVP_PKEY_free(x); }
  void operator()(BIO* x) const { BIO_free(x); }
  void operator()(X509_EXTENSION* x) const { X509_EXTENSION_free(x); }
};
template <typename T>
using Ptr = std::unique_ptr<T, Free>;

std::string Text(BIO* bio) {
  BUF_MEM* bytes = nullptr;
  BIO_get_mem_ptr(bio, &bytes);
  return {bytes->data, bytes->length};
}

std::string ToPem(X509* certificate) {
  const Ptr<BIO> bio(BIO_new(BIO_s_mem()));
  NIBBLE_CHECK(PEM_write_bio_X509(bio.get(), certificate) == 1);
  return Text(bio.get());
}

std::string ToPem(EVP_PKEY* key) {
  const Ptr<BIO> bio(BIO_new(BIO_s_mem()));
  NIBBLE_CHECK(PEM_write_bio_PrivateKey(bio.get(), key, nullptr, nullptr, 0, nullptr, nullptr) ==
               1);
  return Text(bio.get());
}

void Extend(X509* certificate, int nid, const char* value) {
  const Ptr<X509_EXTENSION> extension(X509V3_EXT_conf_nid(nullptr, nullptr, nid, value));
  NIBBLE_CHECK(extension != nullptr);
  X509_add_ext(certificate, extension.get(), -1);
}

// For an hour, with an elliptic-curve key.
Ptr<X509> Begin(EVP_PKEY* key, const char* name, long serial) {
  Ptr<X509> certificate(X509_new());
  X509_set_version(certificate.get(), 2);
  ASN1_INTEGER_set(X509_get_serialNumber(certificate.get()), serial);
  X509_gmtime_adj(X509_getm_notBefore(certificate.get()), -3600);
  X509_gmtime_adj(X509_getm_notAfter(certificate.get()), 3600);
  X509_set_pubkey(certificate.get(), key);
  X509_NAME_add_entry_by_txt(X509_get_subject_name(certificate.get()), "CN", MBSTRING_ASC,
                             reinterpret_cast<const unsigned char*>(name), -1, -1, 0);
  return certificate;
}

}  // namespace

struct TestAuthority::Impl {
  Ptr<EVP_PKEY> key;
  Ptr<X509> certificate;
  std::string cert;
};

TestAuthority::TestAuthority() : impl_(std::make_unique<Impl>()) {
  impl_->key.reset(EVP_EC_gen("P-256"));
  impl_->certificate = Begin(impl_->key.get(), "nibble test authority", 1);
  X509* certificate = impl_->certificate.get();
  X509_set_issuer_name(certificate, X509_get_subject_name(certificate));
  Extend(certificate, NID_basic_constraints, "critical,CA:TRUE");
  NIBBLE_CHECK(X509_sign(certificate, impl_->key.get(), EVP_sha256()) > 0);
  impl_->cert = ToPem(certificate);
}

TestAuthority::~TestAuthority() = default;

const std::string& TestAuthority::cert() const { return impl_->cert; }

Certificate TestAuthority::Sign() const {
  const Ptr<EVP_PKEY> key(EVP_EC_gen("P-256"));
  const Ptr<X509> certificate = Begin(key.get(), "nibble test node", 2);
  X509_set_issuer_name(certificate.get(), X509_get_subject_name(impl_->certificate.get()));
  Extend(certificate.get(), NID_subject_alt_name, "IP:127.0.0.1");
  NIBBLE_CHECK(X509_sign(certificate.get(), impl_->key.get(), EVP_sha256()) > 0);
  return {.cert = ToPem(certificate.get()), .key = ToPem(key.get())};
}

}  // namespace nibble::comm
