// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/http/http_stream.h"

#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstdint>
#include <utility>

#include "boost/asio/buffer.hpp"

namespace nibble::server {
namespace {

namespace asio = boost::asio;
using boost::system::error_code;

// OpenSSL's own socket BIO writes in a way that raises SIGPIPE when the client has left.
int SocketOf(BIO* bio) { return static_cast<int>(reinterpret_cast<intptr_t>(BIO_get_data(bio))); }

bool MayTryAgain() { return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR; }

int BioWrite(BIO* bio, const char* data, int size) {
  BIO_clear_retry_flags(bio);
  const ssize_t sent = ::send(SocketOf(bio), data, static_cast<size_t>(size), MSG_NOSIGNAL);
  if (sent < 0 && MayTryAgain()) BIO_set_retry_write(bio);
  return static_cast<int>(sent);
}

int BioRead(BIO* bio, char* data, int size) {
  BIO_clear_retry_flags(bio);
  const ssize_t got = ::recv(SocketOf(bio), data, static_cast<size_t>(size), 0);
  if (got < 0 && MayTryAgain()) BIO_set_retry_read(bio);
  if (got == 0) BIO_set_flags(bio, BIO_FLAGS_IN_EOF);
  return static_cast<int>(got);
}

long BioControl(BIO* bio, int command, long, void*) {
  if (command == BIO_CTRL_EOF) return BIO_test_flags(bio, BIO_FLAGS_IN_EOF) != 0 ? 1 : 0;
  return command == BIO_CTRL_FLUSH ? 1 : 0;
}

int BioCreate(BIO* bio) {
  BIO_set_init(bio, 1);
  return 1;
}

const BIO_METHOD* SocketMethod() {
  static const BIO_METHOD* const method = [] {
    BIO_METHOD* made = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "socket");
    BIO_meth_set_write(made, BioWrite);
    BIO_meth_set_read(made, BioRead);
    BIO_meth_set_ctrl(made, BioControl);
    BIO_meth_set_create(made, BioCreate);
    return made;
  }();
  return method;
}

// A handshake has a dozen at most; later there are new keys, a few in the life of a connection.
// Each costs us much more than the client that sends it.
constexpr int kMaxTlsMessages = 32;

int Clamp(size_t size) { return static_cast<int>(std::min<size_t>(size, INT_MAX)); }

}  // namespace

void HttpStream::FreeSsl::operator()(ssl_st* ssl) const { SSL_free(ssl); }

HttpStream::HttpStream(Socket socket) : socket_(std::move(socket)) {}
HttpStream::~HttpStream() = default;

bool HttpStream::StartTls(ssl_ctx_st* context) {
  ERR_clear_error();
  ssl_.reset(SSL_new(context));
  BIO* const bio = BIO_new(SocketMethod());
  if (ssl_ == nullptr || bio == nullptr) {
    BIO_free(bio);
    return false;
  }
  BIO_set_data(bio, reinterpret_cast<void*>(static_cast<intptr_t>(socket_.native_handle())));
  SSL_set_bio(ssl_.get(), bio, bio);
  SSL_set_accept_state(ssl_.get());
  SSL_set_msg_callback(ssl_.get(), OnTlsMessage);
  SSL_set_msg_callback_arg(ssl_.get(), this);
  mode_ = Mode::kTls;
  return true;
}

void HttpStream::OnTlsMessage(int is_sent, int, int type, const void*, size_t, ssl_st*,
                              void* stream) {
  if (is_sent == 0 && type == SSL3_RT_HANDSHAKE) ++static_cast<HttpStream*>(stream)->num_messages_;
}

HttpStream::Result HttpStream::TlsResult(int returned) {
  switch (SSL_get_error(ssl_.get(), returned)) {
    case SSL_ERROR_NONE:
      return Result::kOk;
    case SSL_ERROR_WANT_READ:
      return Result::kWaitReadable;
    case SSL_ERROR_WANT_WRITE:
      return Result::kWaitWritable;
    case SSL_ERROR_ZERO_RETURN:  // the client sends no more; it may still read
      return Result::kEnd;
    default:
      break;
  }
  const int reason = ERR_GET_REASON(ERR_peek_error());
  const bool is_http = ERR_GET_LIB(ERR_peek_error()) == ERR_LIB_SSL &&
                       (reason == SSL_R_HTTP_REQUEST || reason == SSL_R_HTTPS_PROXY_REQUEST);
  ERR_clear_error();
  mode_ = is_http ? Mode::kPlain : Mode::kTlsOver;
  return is_http ? Result::kPlainHttp : Result::kEnd;
}

HttpStream::Result HttpStream::Handshake() {
  ERR_clear_error();
  return TlsResult(SSL_do_handshake(ssl_.get()));
}

HttpStream::Result HttpStream::ReadSocket(char* data, size_t size, size_t* num_read) {
  error_code error;
  *num_read = socket_.read_some(asio::buffer(data, size), error);
  if (error == asio::error::would_block || error == asio::error::interrupted) {
    return Result::kWaitReadable;
  }
  return error ? Result::kEnd : Result::kOk;
}

HttpStream::Result HttpStream::Read(char* data, size_t size, size_t* num_read) {
  *num_read = 0;
  if (mode_ != Mode::kTls) return ReadSocket(data, size, num_read);
  ERR_clear_error();
  const int got = SSL_read(ssl_.get(), data, Clamp(size));
  if (got <= 0) {
    const Result result = TlsResult(got);
    if (num_messages_ <= kMaxTlsMessages) return result;
    mode_ = Mode::kTlsOver;
    return Result::kEnd;
  }
  num_messages_ = 0;
  *num_read = static_cast<size_t>(got);
  return Result::kOk;
}

HttpStream::Result HttpStream::Write(const char* data, size_t size, size_t* num_written) {
  *num_written = 0;
  if (mode_ == Mode::kTlsOver) return Result::kEnd;
  if (mode_ == Mode::kTls) {
    ERR_clear_error();
    const int put = SSL_write(ssl_.get(), data, Clamp(size));
    if (put <= 0) return TlsResult(put);
    *num_written = static_cast<size_t>(put);
    return Result::kOk;
  }
  error_code error;
  *num_written = socket_.write_some(asio::buffer(data, size), error);
  if (error == asio::error::would_block || error == asio::error::interrupted) {
    return Result::kWaitWritable;
  }
  return error ? Result::kEnd : Result::kOk;
}

void HttpStream::EndWriting() {
  if (mode_ == Mode::kTls) {
    mode_ = Mode::kTlsOver;
    ERR_clear_error();
    SSL_shutdown(ssl_.get());  // tells the end, as far as the socket takes it
    ERR_clear_error();
  }
  error_code ignored;
  socket_.shutdown(Socket::shutdown_send, ignored);
}

void HttpStream::Close() {
  error_code ignored;
  socket_.close(ignored);
  ssl_.reset();
}

}  // namespace nibble::server
