// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// A blocking TLS client for tests: trusts one authority, may show a certificate.
#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "tests/comm/cluster/certificates.h"

namespace nibble::server::testing {

struct TlsClientOptions {
  std::string ca;                 // PEM
  comm::Certificate own;          // shown when the server asks; empty: none
  std::string alpn = "http/1.1";  // offered
  int max_version = TLS1_3_VERSION;
};

class TlsClient {
 public:
  TlsClient(int port, const TlsClientOptions& options) {
    context_.reset(SSL_CTX_new(TLS_client_method()));
    SSL_CTX_set_verify(context_.get(), SSL_VERIFY_PEER, nullptr);
    SSL_CTX_set_max_proto_version(context_.get(), options.max_version);
    SSL_CTX_set_security_level(context_.get(), 0);  // old versions are the server's to refuse
    if (const auto ca = ReadX509(options.ca)) {
      X509_STORE_add_cert(SSL_CTX_get_cert_store(context_.get()), ca.get());
    }
    if (!options.own.cert.empty()) {
      SSL_CTX_use_certificate(context_.get(), ReadX509(options.own.cert).get());
      const std::unique_ptr<BIO, int (*)(BIO*)> bio(
          BIO_new_mem_buf(options.own.key.data(), static_cast<int>(options.own.key.size())),
          BIO_free);
      EVP_PKEY* key = PEM_read_bio_PrivateKey(bio.get(), nullptr, nullptr, nullptr);
      SSL_CTX_use_PrivateKey(context_.get(), key);
      EVP_PKEY_free(key);
    }
    ::signal(SIGPIPE, SIG_IGN);  // OpenSSL writes so that a server that has left would end us
    fd_ = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const timeval patience = {.tv_sec = 20, .tv_usec = 0};
    ::setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (::connect(fd_, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) return;
    ssl_.reset(SSL_new(context_.get()));
    SSL_set_fd(ssl_.get(), fd_);
    const std::string protocols = static_cast<char>(options.alpn.size()) + options.alpn;
    SSL_set_alpn_protos(ssl_.get(), reinterpret_cast<const unsigned char*>(protocols.data()),
                        static_cast<unsigned>(protocols.size()));
    connected_ = SSL_connect(ssl_.get()) == 1;
    ERR_clear_error();
  }
  ~TlsClient() {
    if (fd_ >= 0) ::close(fd_);
  }
  TlsClient(const TlsClient&) = delete;
  TlsClient& operator=(const TlsClient&) = delete;

  // With TLS 1.3 a server that refuses the client's certificate says so only after this.
  bool connected() const { return connected_; }
  std::string Version() const { return SSL_get_version(ssl_.get()); }
  std::string Alpn() const {
    const unsigned char* name = nullptr;
    unsigned size = 0;
    SSL_get0_alpn_selected(ssl_.get(), &name, &size);
    return {reinterpret_cast<const char*>(name), size};
  }
  // Of the server's certificate, as text.
  std::string Serial() const {
    const std::unique_ptr<X509, void (*)(X509*)> certificate(SSL_get1_peer_certificate(ssl_.get()),
                                                             X509_free);
    unsigned char digest[32] = {};
    unsigned size = sizeof digest;
    X509_digest(certificate.get(), EVP_sha256(), digest, &size);
    return {reinterpret_cast<const char*>(digest), size};
  }
  bool Send(std::string_view bytes) {
    return connected_ && SSL_write(ssl_.get(), bytes.data(), static_cast<int>(bytes.size())) > 0;
  }
  // Ends our side of the connection without the goodbye of TLS.
  void HalfClose() { ::shutdown(fd_, SHUT_WR); }
  // Makes new keys so often.
  void ChangeKeys(int count) {
    for (int i = 0; i < count; ++i) {
      SSL_key_update(ssl_.get(), SSL_KEY_UPDATE_NOT_REQUESTED);
      if (SSL_do_handshake(ssl_.get()) != 1) break;
    }
    ERR_clear_error();
  }
  // Until `what` was seen, or the end.
  std::string ReadUntil(std::string_view what) {
    char bytes[16384];
    size_t found = buffer_.find(what);
    while (connected_ && found == std::string::npos) {
      const int size = SSL_read(ssl_.get(), bytes, sizeof bytes);
      if (size <= 0) break;
      const size_t seen = buffer_.size() < what.size() ? 0 : buffer_.size() - what.size();
      buffer_.append(bytes, static_cast<size_t>(size));
      found = buffer_.find(what, seen);
    }
    ERR_clear_error();
    const size_t end = found == std::string::npos ? buffer_.size() : found + what.size();
    std::string result = buffer_.substr(0, end);
    buffer_.erase(0, end);
    return result;
  }
  std::string Ask(std::string_view request, std::string_view last_bytes) {
    Send(request);
    return ReadUntil(last_bytes);
  }

 private:
  struct Free {
    void operator()(SSL_CTX* x) const { SSL_CTX_free(x); }
    void operator()(SSL* x) const { SSL_free(x); }
    void operator()(X509* x) const { X509_free(x); }
  };
  static std::unique_ptr<X509, Free> ReadX509(const std::string& pem) {
    const std::unique_ptr<BIO, int (*)(BIO*)> bio(
        BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())), BIO_free);
    return std::unique_ptr<X509, Free>(PEM_read_bio_X509(bio.get(), nullptr, nullptr, nullptr));
  }

  std::unique_ptr<SSL_CTX, Free> context_;
  std::unique_ptr<SSL, Free> ssl_;
  int fd_ = -1;
  bool connected_ = false;
  std::string buffer_;
};

}  // namespace nibble::server::testing
