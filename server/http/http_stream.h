// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The bytes of one connection, plain or through TLS, by calls that never block: what they wait for
// is the caller's to wait for, on the socket. OpenSSL works on the socket itself, so that a
// connection does the same with and without TLS, and an idle one holds no buffer. Not thread-safe.
#pragma once

#include <cstddef>
#include <memory>

#include "boost/asio/ip/tcp.hpp"

struct ssl_ctx_st;
struct ssl_st;

namespace nibble::server {

class HttpStream {
 public:
  enum class Result {
    kOk,
    kWaitReadable,
    kWaitWritable,
    kPlainHttp,  // of Handshake only: the client does not speak TLS, and from now on we do not
    kEnd,        // the other side ended the stream, or broke it
  };
  using Socket = boost::asio::ip::tcp::socket;

  explicit HttpStream(Socket socket);
  ~HttpStream();
  HttpStream(const HttpStream&) = delete;
  HttpStream& operator=(const HttpStream&) = delete;

  // To wait, and for options. Bytes go by the calls below.
  Socket& socket() { return socket_; }

  // Once, before the first byte. False: no memory.
  bool StartTls(ssl_ctx_st* context);
  // With TLS only, until it is kOk.
  Result Handshake();

  // At most `size` bytes; kOk has read one at least.
  Result Read(char* data, size_t size, size_t* num_read);
  // kOk has written one byte at least. After kWait... the same bytes must come again.
  Result Write(const char* data, size_t size, size_t* num_written);

  // Nothing is written after this; what is still read is only good for being thrown away.
  void EndWriting();
  void Close();

 private:
  struct FreeSsl {
    void operator()(ssl_st* ssl) const;
  };
  enum class Mode { kPlain, kTls, kTlsOver };  // over: nothing may be written any more
  Result TlsResult(int returned);
  static void OnTlsMessage(int is_sent, int version, int type, const void*, size_t, ssl_st*, void*);
  Result ReadSocket(char* data, size_t size, size_t* num_read);

  Socket socket_;
  std::unique_ptr<ssl_st, FreeSsl> ssl_;
  Mode mode_ = Mode::kPlain;
  int num_messages_ = 0;  // of TLS itself, since the last byte of data
};

}  // namespace nibble::server
