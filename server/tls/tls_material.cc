// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/tls/tls_material.h"

#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>

#include <ctime>
#include <string_view>
#include <utility>
#include <vector>

#include "base/mapped_file.h"

namespace nibble::server {
namespace {

constexpr size_t kMaxFileBytes = size_t{1} << 20;
// Mutual authentication of bytes and forward secrecy; TLS 1.3 has no others.
constexpr const char* kCiphers =
    "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:"
    "ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-RSA-CHACHA20-POLY1305:"
    "ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-GCM-SHA384";

struct Free {
  void operator()(X509* x) const { X509_free(x); }
  void operator()(EVP_PKEY* x) const { EVP_PKEY_free(x); }
  void operator()(BIO* x) const { BIO_free(x); }
};
template <typename T>
using Ptr = std::unique_ptr<T, Free>;

// Nobody is there to be asked for the password of a key.
int NoPassword(char*, int, int, void*) { return -1; }

Ptr<BIO> Open(const std::string& pem) {
  return Ptr<BIO>(BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())));
}

std::string LastError() {
  const unsigned long code = ERR_peek_last_error();
  ERR_clear_error();
  const char* reason = ERR_reason_error_string(code);
  return reason == nullptr ? "unknown error" : reason;
}

// All certificates of a text; empty when there is none or one is broken.
std::vector<Ptr<X509>> ReadCertificates(const std::string& pem) {
  std::vector<Ptr<X509>> certificates;
  const Ptr<BIO> bio = Open(pem);
  while (X509* next = PEM_read_bio_X509(bio.get(), nullptr, NoPassword, nullptr)) {
    certificates.emplace_back(next);
  }
  // The end of a good text is "no start line"; anything else is a broken one.
  const bool at_end = ERR_GET_REASON(ERR_peek_last_error()) == PEM_R_NO_START_LINE;
  ERR_clear_error();
  if (!at_end) certificates.clear();
  return certificates;
}

std::string Text(const ASN1_TIME* time) {
  const Ptr<BIO> bio(BIO_new(BIO_s_mem()));
  ASN1_TIME_print(bio.get(), time);
  char* data = nullptr;
  const long size = BIO_get_mem_data(bio.get(), &data);
  return {data, static_cast<size_t>(size)};
}

std::string Text(const X509_NAME* name) {
  const Ptr<BIO> bio(BIO_new(BIO_s_mem()));
  X509_NAME_print_ex(bio.get(), name, 0, XN_FLAG_RFC2253);
  char* data = nullptr;
  const long size = BIO_get_mem_data(bio.get(), &data);
  return {data, static_cast<size_t>(size)};
}

int64_t UnixSeconds(const ASN1_TIME* time) {
  std::tm utc = {};
  return ASN1_TIME_to_tm(time, &utc) == 1 ? static_cast<int64_t>(::timegm(&utc)) : 0;
}

absl::Status CheckPair(const TlsOptions& options, TlsMaterial* material) {
  const std::vector<Ptr<X509>> chain = ReadCertificates(material->cert_chain);
  if (chain.empty()) {
    return InvalidArgument("--ssl-certfile {}: no PEM certificates", options.cert_file);
  }
  X509* const certificate = chain.front().get();
  const Ptr<EVP_PKEY> key(
      PEM_read_bio_PrivateKey(Open(material->private_key).get(), nullptr, NoPassword, nullptr));
  ERR_clear_error();
  if (key == nullptr) {
    return InvalidArgument("--ssl-keyfile {}: no PEM key without a password", options.key_file);
  }
  if (X509_check_private_key(certificate, key.get()) != 1) {
    ERR_clear_error();
    return InvalidArgument("--ssl-keyfile {} is not the key of --ssl-certfile {}", options.key_file,
                           options.cert_file);
  }
  material->subject = Text(X509_get_subject_name(certificate));
  material->not_after = Text(X509_get0_notAfter(certificate));
  material->not_after_unix_seconds = UnixSeconds(X509_get0_notAfter(certificate));
  if (X509_cmp_current_time(X509_get0_notAfter(certificate)) < 0) {
    return InvalidArgument("--ssl-certfile {}: the certificate ended on {}", options.cert_file,
                           material->not_after);
  }
  if (X509_cmp_current_time(X509_get0_notBefore(certificate)) > 0) {
    return InvalidArgument("--ssl-certfile {}: the certificate begins on {}", options.cert_file,
                           Text(X509_get0_notBefore(certificate)));
  }
  return absl::OkStatus();
}

// The first of ours that the client knows; a client that knows others only is told so, instead of
// being answered in a protocol it does not expect.
int SelectAlpn(SSL*, const unsigned char** out, unsigned char* out_size, const unsigned char* in,
               unsigned int in_size, void*) {
  static constexpr std::string_view kHttp11("\x08http/1.1");
  unsigned char* selected = nullptr;
  const int result = SSL_select_next_proto(&selected, out_size,
                                           reinterpret_cast<const unsigned char*>(kHttp11.data()),
                                           kHttp11.size(), in, in_size);
  *out = selected;
  return result == OPENSSL_NPN_NEGOTIATED ? SSL_TLSEXT_ERR_OK : SSL_TLSEXT_ERR_ALERT_FATAL;
}

absl::Status UsePair(const TlsMaterial& material, SSL_CTX* context) {
  std::vector<Ptr<X509>> chain = ReadCertificates(material.cert_chain);
  const Ptr<EVP_PKEY> key(
      PEM_read_bio_PrivateKey(Open(material.private_key).get(), nullptr, NoPassword, nullptr));
  if (chain.empty() || key == nullptr ||
      SSL_CTX_use_certificate(context, chain.front().get()) != 1 ||
      SSL_CTX_use_PrivateKey(context, key.get()) != 1) {
    return InvalidArgument("the server's certificate cannot be used: {}", LastError());
  }
  for (size_t i = 1; i < chain.size(); ++i) {
    if (SSL_CTX_add1_chain_cert(context, chain[i].get()) != 1) {
      return InvalidArgument("the certificate chain cannot be used: {}", LastError());
    }
  }
  return absl::OkStatus();
}

absl::Status CheckClients(const TlsMaterial& material, ClientCertificates clients,
                          SSL_CTX* context) {
  if (clients == ClientCertificates::kNone) return absl::OkStatus();
  X509_STORE* const store = SSL_CTX_get_cert_store(context);
  for (const Ptr<X509>& authority : ReadCertificates(material.ca)) {
    if (X509_STORE_add_cert(store, authority.get()) != 1 ||
        SSL_CTX_add_client_CA(context, authority.get()) != 1) {
      return InvalidArgument("a certificate of --ssl-ca-certs cannot be used: {}", LastError());
    }
  }
  int mode = SSL_VERIFY_PEER;
  if (clients == ClientCertificates::kRequired) mode |= SSL_VERIFY_FAIL_IF_NO_PEER_CERT;
  SSL_CTX_set_verify(context, mode, nullptr);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<TlsMaterial> ReadTlsMaterial(const TlsOptions& options) {
  TlsMaterial material;
  NIBBLE_ASSIGN_OR_RETURN(material.cert_chain, ReadFile(options.cert_file, kMaxFileBytes));
  NIBBLE_ASSIGN_OR_RETURN(material.private_key, ReadFile(options.key_file, kMaxFileBytes));
  NIBBLE_RETURN_IF_ERROR(CheckPair(options, &material));
  if (options.clients == ClientCertificates::kNone) return material;
  NIBBLE_ASSIGN_OR_RETURN(material.ca, ReadFile(options.ca_file, kMaxFileBytes));
  if (ReadCertificates(material.ca).empty()) {
    return InvalidArgument("--ssl-ca-certs {}: no PEM certificates", options.ca_file);
  }
  return material;
}

absl::StatusOr<std::shared_ptr<ssl_ctx_st>> MakeServerContext(const TlsMaterial& material,
                                                              ClientCertificates clients) {
  ERR_clear_error();
  const std::shared_ptr<SSL_CTX> context(SSL_CTX_new(TLS_server_method()), SSL_CTX_free);
  if (context == nullptr) return Internal("cannot make a TLS context: {}", LastError());
  SSL_CTX_set_min_proto_version(context.get(), TLS1_2_VERSION);
  if (SSL_CTX_set_cipher_list(context.get(), kCiphers) != 1) {
    return Internal("cannot set the TLS ciphers: {}", LastError());
  }
  SSL_CTX_set_options(context.get(), SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION |
                                         SSL_OP_CIPHER_SERVER_PREFERENCE |
                                         // HTTP says itself where a message ends, and who closes
                                         // its side without a goodbye may still read.
                                         SSL_OP_IGNORE_UNEXPECTED_EOF);
  // Idle connections hold no buffers; what a write could not send may move before it is repeated.
  SSL_CTX_set_mode(context.get(), SSL_MODE_RELEASE_BUFFERS | SSL_MODE_ENABLE_PARTIAL_WRITE |
                                      SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
  // A read ends at each message of TLS itself, so that a flood of them has no turn to itself.
  SSL_CTX_clear_mode(context.get(), SSL_MODE_AUTO_RETRY);
  // Clients keep their session as a ticket; a cache here would be memory that they fill.
  SSL_CTX_set_session_cache_mode(context.get(), SSL_SESS_CACHE_OFF);
  static constexpr std::string_view kSessionContext = "nibble";
  SSL_CTX_set_session_id_context(context.get(),
                                 reinterpret_cast<const unsigned char*>(kSessionContext.data()),
                                 kSessionContext.size());
  SSL_CTX_set_alpn_select_cb(context.get(), SelectAlpn, nullptr);
  NIBBLE_RETURN_IF_ERROR(UsePair(material, context.get()));
  NIBBLE_RETURN_IF_ERROR(CheckClients(material, clients, context.get()));
  ERR_clear_error();
  return context;
}

}  // namespace nibble::server
