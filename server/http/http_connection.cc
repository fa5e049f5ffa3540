// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/http/http_connection.h"

#include <algorithm>
#include <utility>

#include "fmt/core.h"

#include "base/host_port.h"
#include "base/log.h"
#include "server/tls/tls_source.h"

namespace nibble::server {
namespace {

namespace asio = boost::asio;
using boost::system::error_code;

// After the last answer we read on for so long: closing a socket with unread input makes the kernel
// send a reset, and a client still sending its body would lose the answer that tells why.
constexpr std::chrono::seconds kLinger{5};
constexpr std::string_view kPlainHttpAnswer =
    "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: 43\r\n"
    "Connection: close\r\n\r\nThis port speaks TLS: use an https address.";

}  // namespace

Connection::Connection(asio::ip::tcp::socket socket, std::shared_ptr<IoThread> io,
                       std::shared_ptr<ServerState> server)
    : stream_(std::move(socket)),
      deadline_(io->context),
      rest_timer_(io->context),
      io_(std::move(io)),
      server_(std::move(server)),
      share_(server_) {}

Connection::~Connection() = default;

void Connection::Start() {
  error_code ignored;
  HttpStream::Socket& socket = stream_.socket();
  const auto endpoint = socket.remote_endpoint(ignored);
  if (!ignored) {
    remote_address_ = HostAndPort(endpoint.address().to_string(ignored), endpoint.port());
  }
  socket.non_blocking(true, ignored);
  socket.set_option(asio::ip::tcp::no_delay(true), ignored);
  socket.set_option(asio::socket_base::keep_alive(true), ignored);  // peers that vanish silently

  counted_ = server_->num_connections.fetch_add(1) < server_->config.max_connections;
  if (!counted_) {
    server_->num_connections.fetch_sub(1);
    if (io_->num_refusing >= kMaxRefusing) return;  // the socket closes with us
    ++io_->num_refusing;
  }
  io_->connections.insert(shared_from_this());
  deadline_.Attach(weak_from_this(),
                   [](void* owner) { static_cast<Connection*>(owner)->OnTimeout(); });
  if (server_->config.tls != nullptr) {
    state_ = State::kGreeting;
    deadline_.Set(std::chrono::seconds(server_->config.handshake_timeout_seconds));
    WaitForInput();
  } else {
    BeginReading();
  }
}

void Connection::BeginReading() {
  state_ = State::kReading;
  SetReadDeadline();
  WaitForInput();
  if (counted_) return;
  Refuse(503,
         fmt::format("too many connections, the limit is {}", server_->config.max_connections));
}

void Connection::Close() {
  if (state_ == State::kClosed) return;
  EndHandshake();
  state_ = State::kClosed;
  const std::shared_ptr<Connection> self = shared_from_this();  // io_->connections may be the last
  if (exchange_ != nullptr) {
    Observe();
    exchange_->Detach();
    exchange_.reset();
  }
  stream_.Close();
  deadline_.Cancel();
  rest_timer_.cancel();
  reader_.reset();
  DropInput();
  counted_ ? server_->num_connections.fetch_sub(1) : --io_->num_refusing;
  io_->connections.erase(self);
}

void Connection::CloseIfIdle() {
  if (state_ == State::kGreeting) return Close();
  if (state_ == State::kReading && reader_ == nullptr && input_.empty()) CloseCleanly();
}

void Connection::CloseCleanly() {
  stream_.EndWriting();
  Close();
}

// --- TLS -----------------------------------------------------------------------------------------

// At the client's first byte: who connects and is silent costs no more than without TLS. Handshakes
// cost more than requests, so they have a limit; past it the oldest ends, because a client that
// means it is through long before it is the oldest.
void Connection::StartHandshake() {
  const HttpServerConfig& config = server_->config;
  if (!stream_.StartTls(config.tls->context().get())) return Close();
  state_ = State::kHandshaking;
  handshake_ = io_->handshakes.insert(io_->handshakes.end(), this);
  const auto limit = std::max<int64_t>(config.max_handshakes / config.num_threads, 1);
  if (static_cast<int64_t>(io_->handshakes.size()) > limit) {
    if (server_->crowded_handshakes.Begins()) {
      log::Warning("more than {} TLS handshakes are in progress: the oldest are ended",
                   config.max_handshakes);
    }
    io_->handshakes.front()->Close();
  }
  ContinueHandshake();
}

void Connection::EndHandshake() {
  if (state_ != State::kHandshaking) return;
  io_->handshakes.erase(handshake_);
  state_ = State::kReading;
}

void Connection::ContinueHandshake() {
  switch (stream_.Handshake()) {
    case HttpStream::Result::kOk:
      EndHandshake();
      return BeginReading();
    case HttpStream::Result::kWaitReadable:
      return WaitForInput();
    case HttpStream::Result::kWaitWritable:
      return WaitForInput(WaitType::wait_write);
    case HttpStream::Result::kPlainHttp:
      return RefusePlainHttp();
    case HttpStream::Result::kEnd:
      return Close();
  }
}

void Connection::RefusePlainHttp() {
  EndHandshake();
  size_t unused = 0;  // the socket's buffer is empty: it takes these bytes
  stream_.Write(kPlainHttpAnswer.data(), kPlainHttpAnswer.size(), &unused);
  Linger();
  WaitForInput();
}

// --- The end, and what does not come in time -----------------------------------------------------

void Connection::Linger() {
  state_ = State::kLingering;
  DropInput();
  stream_.EndWriting();
  deadline_.Set(kLinger);
}

void Connection::SetReadDeadline() {
  deadline_.Set(std::chrono::seconds(server_->config.read_timeout_seconds));
}

void Connection::OnTimeout() {
  if (state_ == State::kReading && (reader_ != nullptr || !input_.empty())) {
    return Refuse(408, fmt::format("the request did not arrive within {} seconds",
                                   server_->config.read_timeout_seconds));
  }
  state_ == State::kReading ? CloseCleanly() : Close();
}

}  // namespace nibble::server
