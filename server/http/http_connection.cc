// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/http/http_connection.h"

#include <poll.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "fmt/core.h"

#include "base/host_port.h"
#include "server/request_log/request_trace.h"
#include "server/tls/tls_source.h"

namespace nibble::server {
namespace {

namespace asio = boost::asio;
using boost::system::error_code;
using std::chrono::steady_clock;

// After the last answer we read on for so long: closing a socket with unread input makes the kernel
// send a reset, and a client still sending its body would lose the answer that tells why.
constexpr std::chrono::seconds kLinger{5};
constexpr int kMaxRefusing = 64;  // per thread
// Enough for a client that pipelines small requests; a body behind an open answer can wait outside.
constexpr size_t kMaxReadAhead = size_t{64} << 10;
constexpr std::chrono::seconds kRestInterval{1};
// Below this a request is read even when all together hold too much.
constexpr int64_t kAlwaysTaken = int64_t{16} << 10;

// Of a write in one go; then others on the thread have their turn.
constexpr size_t kWriteTurn = size_t{256} << 10;
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

  if (server_->config.tls != nullptr && !StartHandshake()) return;  // the socket closes with us
  counted_ = server_->num_connections.fetch_add(1) < server_->config.max_connections;
  if (!counted_) {
    server_->num_connections.fetch_sub(1);
    if (io_->num_refusing >= kMaxRefusing) return EndHandshake();
    ++io_->num_refusing;
  }
  io_->connections.insert(shared_from_this());
  deadline_.Attach(weak_from_this(),
                   [](void* owner) { static_cast<Connection*>(owner)->OnTimeout(); });
  if (state_ == State::kHandshaking) {
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
  if (state_ == State::kReading && reader_ == nullptr && input_.empty()) CloseCleanly();
}

void Connection::CloseCleanly() {
  stream_.EndWriting();
  Close();
}

// --- TLS -----------------------------------------------------------------------------------------

bool Connection::StartHandshake() {
  // Handshakes cost more than requests, and whoever is past the limit could not be told in a way it
  // understands.
  if (server_->num_handshakes.fetch_add(1) >= server_->config.max_handshakes ||
      !stream_.StartTls(server_->config.tls->context().get())) {
    server_->num_handshakes.fetch_sub(1);
    return false;
  }
  state_ = State::kHandshaking;
  return true;
}

void Connection::EndHandshake() {
  if (state_ != State::kHandshaking) return;
  server_->num_handshakes.fetch_sub(1);
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

// --- Input ---------------------------------------------------------------------------------------

void Connection::WaitForInput(WaitType what) {
  // Waiting instead of reading: ten thousand idle connections need no ten thousand buffers.
  stream_.socket().async_wait(what, [self = shared_from_this()](const error_code& error) {
    if (error || self->state_ == State::kClosed) return;
    self->OnInput();
  });
}

void Connection::OnInput() {
  if (state_ == State::kHandshaking) return ContinueHandshake();
  if (HasReadAhead()) return RestInput();
  size_t size = 0;
  switch (stream_.Read(io_->scratch.data(), io_->scratch.size(), &size)) {
    case HttpStream::Result::kOk:
      break;
    case HttpStream::Result::kWaitReadable:
      return WaitForInput();
    case HttpStream::Result::kWaitWritable:
      return WaitForInput(WaitType::wait_write);
    default:
      return OnInputEnd();
  }
  if (state_ != State::kLingering && !discard_input_ && TakeInput(size)) {
    if (state_ == State::kReading) ParseInput();
  }
  if (state_ == State::kClosed) return;
  HasReadAhead() ? RestInput() : WaitForInput();
}

bool Connection::HasReadAhead() const {
  return state_ == State::kAnswering && !discard_input_ &&
         (input_.size() - input_offset_ >= kMaxReadAhead ||
          server_->buffered_bytes.load() >= server_->config.max_buffered_bytes);
}

void Connection::RestInput() {
  input_rests_ = true;
  WatchForEnd();
}

// The wait for input cannot tell a client that left from one whose bytes we let lie.
void Connection::WatchForEnd() {
  rest_timer_.expires_after(kRestInterval);
  rest_timer_.async_wait([self = shared_from_this()](const error_code& error) {
    if (error || self->state_ == State::kClosed || !self->input_rests_) return;
    pollfd state = {self->stream_.socket().native_handle(), POLLRDHUP, 0};
    if (::poll(&state, 1, 0) > 0) {
      self->OnInputEnd();
    } else if (self->HasReadAhead()) {
      self->WatchForEnd();
    } else {
      self->ResumeInput();  // others gave back what they held
    }
  });
}

void Connection::ResumeInput() {
  if (!input_rests_ || state_ == State::kClosed || HasReadAhead()) return;
  input_rests_ = false;
  rest_timer_.cancel();
  WaitForInput();
}

bool Connection::TakeInput(size_t size) {
  const int64_t held = share_.bytes() + static_cast<int64_t>(size);
  const int64_t limit = server_->config.max_buffered_bytes;
  // What is read ahead is bounded already, and an answer under way is not to be spoilt.
  if (state_ == State::kReading && held > kAlwaysTaken &&
      server_->buffered_bytes.load() + static_cast<int64_t>(size) > limit) {
    Refuse(503, fmt::format("unanswered requests of all clients hold {} bytes, the limit is {}",
                            server_->buffered_bytes.load(), limit));
    return false;
  }
  input_.append(io_->scratch.data(), size);
  share_.Set(held);
  return true;
}

void Connection::DropInput() {
  input_ = std::string();
  input_offset_ = 0;
  share_.Set(0);
}

void Connection::OnInputEnd() {
  input_open_ = false;
  // A client may send its request, close its side and read the answer; we serve that only when the
  // answer is already there, because a half-closed client looks exactly like one that left.
  if (state_ == State::kAnswering && exchange_->complete()) return;
  Close();
}

void Connection::ParseInput() {
  if (input_.empty()) return;
  if (reader_ == nullptr) {
    const HttpServerConfig& config = server_->config;
    reader_ = std::make_unique<RequestReader>(RequestReader::Limits{
        .max_header_bytes = config.max_header_bytes, .max_body_bytes = config.max_body_bytes});
  }
  const auto read = [this] {
    return reader_->Read(std::string_view(input_).substr(input_offset_), &input_offset_);
  };
  RequestReader::Event event = read();
  std::optional<HttpRefusal> guarded;
  if (event == RequestReader::Event::kHead) {
    guarded = TakeHead();
    if (!guarded.has_value()) event = read();
  }
  if (event == RequestReader::Event::kRefused) {
    const RequestReader::Refusal refusal = reader_->refusal();
    return Refuse(refusal.status, refusal.message);
  }
  // Erasing only what is more than the rest moves each byte once at most.
  if (input_offset_ == input_.size()) {
    input_ = std::string();
    input_offset_ = 0;
  } else if (input_offset_ > input_.size() / 2) {
    input_.erase(0, input_offset_);
    input_offset_ = 0;
  }
  if (guarded.has_value()) {
    TurnAway(*guarded);
  } else if (event == RequestReader::Event::kWhole) {
    Dispatch();
  }
}

std::optional<HttpRefusal> Connection::TakeHead() {
  HttpRequest& request = reader_->request();
  request.id = server_->request_ids.Choose(request.Header(kRequestIdHeader));
  request.trace = std::make_shared<RequestTrace>();
  request.arrival = steady_clock::now();
  request.remote_address = remote_address_;
  std::optional<HttpRefusal> refusal;
  if (server_->guard) refusal = server_->guard(request);
  if (!refusal.has_value() && reader_->expects_continue() && reader_->has_body()) {
    constexpr std::string_view kContinue = "HTTP/1.1 100 Continue\r\n\r\n";
    size_t unused = 0;  // no answer is under way, so the socket's buffer has room for these bytes
    stream_.Write(kContinue.data(), kContinue.size(), &unused);
  }
  return refusal;
}

void Connection::TurnAway(const HttpRefusal& refusal) {
  Exchange::Info info = RequestInfo();
  // What is still to come of a body is not read: the connection ends with the answer.
  discard_input_ = reader_->has_body();
  info.keep_alive = info.keep_alive && !discard_input_;
  reader_.reset();
  if (discard_input_) DropInput();
  share_.Set(static_cast<int64_t>(input_.size() - input_offset_));
  BeginAnswer(std::move(info));
  SendError(refusal.status, refusal.message, refusal.headers);
}

Exchange::Info Connection::RequestInfo() const {
  const HttpRequest& request = reader_->request();
  const auto route = server_->FindRoute(request.path);
  return {.route = route == server_->routes.end() ? "none" : route->first,
          .method = request.method,
          .head_only = request.method == "HEAD",
          .http_1_0 = reader_->http_1_0(),
          .keep_alive = reader_->keep_alive() && !server_->draining.load(),
          .start = request.arrival,
          .request_id = request.id,
          .trace = request.trace};
}

void Connection::Dispatch() {
  Exchange::Info info = RequestInfo();
  HttpRequest request = std::move(reader_->request());
  reader_.reset();
  // From here on the handler holds the request, we what came after it.
  const auto rest = static_cast<int64_t>(input_.size() - input_offset_);
  const auto share = std::make_shared<BufferShare>(server_);
  share->Set(share_.bytes() - rest);
  share_.Set(rest);
  request.buffer_share = share;

  const auto route = server_->FindRoute(request.path);
  if (route == server_->routes.end()) {
    BeginAnswer(std::move(info));
    return SendError(404, fmt::format("no such path: {}", request.path), {});
  }
  // A HEAD is answered as its GET would be, without the body.
  const auto handler = route->second.find(info.head_only ? "GET" : request.method);
  if (handler == route->second.end()) {
    const std::string allow = ServerState::AllowedMethods(route->second);
    BeginAnswer(std::move(info));
    return SendError(
        405, fmt::format("{} does not take {}, only {}", request.path, request.method, allow),
        {{"Allow", allow}});
  }
  BeginAnswer(std::move(info));
  handler->second(std::move(request), exchange_->MakeResponder());
}

void Connection::Refuse(int status, const std::string& message) {
  reader_.reset();
  DropInput();
  discard_input_ = true;
  BeginAnswer({.route = "none",
               .method = "none",
               .keep_alive = false,
               .start = steady_clock::now(),
               .request_id = server_->request_ids.Next(),
               .trace = std::make_shared<RequestTrace>()});
  SendError(status, message, {});
}

void Connection::SendError(int status, const std::string& message, const HttpHeaders& headers) {
  const auto [content_type, body] = (*server_->error_body)(status, message);
  exchange_->Send(status, content_type, body, headers);
}

// --- Output --------------------------------------------------------------------------------------

void Connection::BeginAnswer(Exchange::Info info) {
  state_ = State::kAnswering;
  deadline_.Clear();
  info.error_body = server_->error_body;
  exchange_ = std::make_shared<Exchange>(std::move(info), io_, this);
}

void Connection::OnExchangeReady() {
  if (state_ != State::kAnswering) return;
  // An aborted answer does not wait for a write that the client may never take.
  if (exchange_->aborted()) return Abort();
  if (writing_) return;
  WriteMore();
}

// Writes what there is until it is out, the socket takes no more, or it was much. Every bit of
// progress moves the deadline: only a client that takes nothing at all is dropped.
void Connection::WriteMore() {
  for (size_t num_written = 0; num_written < kWriteTurn;) {
    if (output_offset_ == output_.size()) {
      if (exchange_->aborted()) return Abort();
      Exchange::Taken taken = exchange_->Take();
      output_ = std::move(taken.bytes);
      output_offset_ = 0;
      writing_ = !output_.empty();
      if (!writing_) {
        deadline_.Clear();
        if (taken.finished) OnAnswerDone(taken.close);
        return;
      }
      SetReadDeadline();
    }
    size_t size = 0;
    switch (
        stream_.Write(output_.data() + output_offset_, output_.size() - output_offset_, &size)) {
      case HttpStream::Result::kOk:
        break;
      case HttpStream::Result::kWaitReadable:
        return WaitToWrite(WaitType::wait_read);
      case HttpStream::Result::kWaitWritable:
        return WaitToWrite(WaitType::wait_write);
      default:
        return Close();
    }
    num_written += size;
    output_offset_ += size;
    exchange_->OnSent(size);
    SetReadDeadline();
  }
  WaitToWrite(WaitType::wait_write);
}

void Connection::WaitToWrite(WaitType what) {
  stream_.socket().async_wait(what, [self = shared_from_this()](const error_code& error) {
    if (error || self->state_ == State::kClosed) return;
    self->WriteMore();
  });
}

void Connection::Abort() {
  // A reset, because at the end of an HTTP/1.0 body an ordinary close would look complete.
  error_code ignored;
  stream_.socket().set_option(asio::socket_base::linger(true, 0), ignored);
  Close();
}

void Connection::OnAnswerDone(bool close) {
  Observe();
  exchange_->Detach();
  exchange_.reset();
  output_ = std::string();
  output_offset_ = 0;
  if (!input_open_) return Close();
  if (close || discard_input_) {
    Linger();
  } else if (server_->draining.load() && input_.empty()) {
    return CloseCleanly();
  } else {
    state_ = State::kReading;
    SetReadDeadline();
    ParseInput();
  }
  ResumeInput();
}

void Connection::Observe() {
  if (!server_->observer) return;
  const Exchange::Info& info = exchange_->info();
  server_->observer(
      {.route = info.route,
       .method = info.method,
       .status = exchange_->status() == 0 ? 499 : exchange_->status(),
       .seconds = std::chrono::duration<double>(steady_clock::now() - info.start).count(),
       .request_id = info.request_id,
       .remote_address = remote_address_,
       .trace = info.trace.get()});
}

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
