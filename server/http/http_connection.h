// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// One client connection on one io thread. Private to server/http.
//
//   kGreeting (TLS only: not a byte has come) --> kHandshaking --> kReading
//   kReading --request complete--> kAnswering --answer out--> kReading (keep-alive)
//      |                               |                  \-> kLingering --> kClosed
//      \--- malformed, too large: an answer of our own, then kLingering
//
// Invariants
//  1. Everything runs on the thread of `io`, one handler at a time.
//  2. Until kClosed a wait for input is always pending, so a client that leaves is noticed while
//     its answer is computed. What arrives meanwhile is kept (pipelining) up to 64 KiB; beyond it
//     the wait rests (input_rests_), the client's bytes stay in the kernel, and only its leaving is
//     looked for, once a second.
//  3. A connection is in io->connections from Start to Close, which drops it from there.
#pragma once

#include <chrono>
#include <list>
#include <memory>
#include <optional>
#include <string>

#include "boost/asio/ip/tcp.hpp"
#include "boost/asio/steady_timer.hpp"

#include "server/http/connection_deadline.h"
#include "server/http/http_exchange.h"
#include "server/http/http_stream.h"
#include "server/http/request_reader.h"
#include "server/http/server_state.h"

namespace nibble::server {

class Connection final : public std::enable_shared_from_this<Connection>, public ExchangeOwner {
 public:
  Connection(boost::asio::ip::tcp::socket socket, std::shared_ptr<IoThread> io,
             std::shared_ptr<ServerState> server);
  ~Connection() override;

  // Takes its place in io->connections and begins to read; over the connection limit it answers 503
  // to whatever comes.
  void Start();
  void CloseIfIdle();
  void Close();

 private:
  enum class State { kGreeting, kHandshaking, kReading, kAnswering, kLingering, kClosed };
  using WaitType = boost::asio::socket_base::wait_type;

  void StartHandshake();
  void ContinueHandshake();
  void EndHandshake();
  void RefusePlainHttp();
  void BeginReading();

  void WaitForInput(WaitType what = WaitType::wait_read);
  void OnInput();
  void OnInputEnd();
  // While an answer is under way: is there as much input as we keep?
  bool HasReadAhead() const;
  void RestInput();
  void WatchForEnd();
  void ResumeInput();
  // False: the request was refused, because all requests together hold too much.
  bool TakeInput(size_t size);
  void ParseInput();
  // What the server knows of a request beside its bytes.
  void NameRequest();
  // A value: the guard refuses it.
  std::optional<HttpRefusal> TakeHead();
  void InviteBody();
  void TurnAway(const HttpRefusal& refusal);
  void DropInput();
  void Dispatch();
  // Answers with the server's own error and ends the connection.
  void Refuse(int status, const std::string& message);
  void BeginAnswer(Exchange::Info info);
  void SendError(int status, const std::string& message, const HttpHeaders& headers);
  // Of the request being read.
  Exchange::Info RequestInfo() const;

  void OnExchangeReady() override;
  void WriteMore();
  bool TakeOutput();  // false: there is nothing to write
  void WaitToWrite(WaitType what);
  void SetWriteDeadline();
  void Abort();
  void OnAnswerDone(bool close);
  void Observe();
  void Linger();
  void CloseCleanly();

  void SetReadDeadline();
  void OnTimeout();

  HttpStream stream_;
  ConnectionDeadline deadline_;
  boost::asio::steady_timer rest_timer_;
  const std::shared_ptr<IoThread> io_;
  const std::shared_ptr<ServerState> server_;
  std::string remote_address_;
  State state_ = State::kReading;
  std::list<Connection*>::iterator handshake_;  // while kHandshaking: our place in io->handshakes
  bool counted_ = false;                        // in num_connections; else in io_->num_refusing
  bool input_open_ = true;                      // the client has not closed its side
  bool discard_input_ = false;                  // an answer that ends the connection is going out

  std::string input_;        // from input_offset_ on: bytes not parsed yet
  size_t input_offset_ = 0;  // moved on instead of erasing: pipelined requests are many and small
  bool input_rests_ = false;
  BufferShare share_;                      // of the request being read and of input_
  std::unique_ptr<RequestReader> reader_;  // null between requests: idle connections hold no buffer
  std::shared_ptr<Exchange> exchange_;
  std::optional<std::chrono::steady_clock::time_point> answer_ends_;  // once it is whole
  std::string output_;                                                // being written
  size_t output_offset_ = 0;
  bool output_is_invitation_ = false;  // "100 Continue", not the exchange's
  bool writing_ = false;
};

}  // namespace nibble::server
