// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/http/http_connection.h"

#include <poll.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "boost/asio/buffer.hpp"
#include "boost/asio/post.hpp"
#include "boost/beast/http/error.hpp"
#include "boost/beast/http/parser.hpp"
#include "boost/beast/http/string_body.hpp"
#include "fmt/core.h"

namespace nibble::server {
namespace {

namespace asio = boost::asio;
namespace http = boost::beast::http;
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

std::string_view View(boost::beast::string_view view) { return {view.data(), view.size()}; }

bool EqualsIgnoreCase(std::string_view a, std::string_view b) {
  return boost::beast::iequals({a.data(), a.size()}, {b.data(), b.size()});
}

std::string Lower(std::string_view text) {
  std::string result(text);
  std::transform(result.begin(), result.end(), result.begin(),
                 [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; });
  return result;
}

}  // namespace

ServerState::Routes::const_iterator ServerState::FindRoute(const std::string& path) const {
  auto route = routes.find(path);
  for (size_t slash = path.rfind('/'); route == routes.end() && slash != std::string::npos;
       slash = slash == 0 ? std::string::npos : path.rfind('/', slash - 1)) {
    route = routes.find(path.substr(0, slash + 1) + "*");
  }
  return route;
}

bool IoThread::Post(std::function<void()> task) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (refuse_posts_) return false;
  asio::post(context, std::move(task));
  return true;
}

void IoThread::RefusePosts() {
  const std::lock_guard<std::mutex> lock(mutex_);
  refuse_posts_ = true;
}

struct Connection::Request {
  http::request_parser<http::string_body> parser;
  bool header_checked = false;
  RequestTarget target;
};

Connection::Connection(asio::ip::tcp::socket socket, std::shared_ptr<IoThread> io,
                       std::shared_ptr<ServerState> server)
    : socket_(std::move(socket)),
      timer_(io->context),
      rest_timer_(io->context),
      io_(std::move(io)),
      server_(std::move(server)),
      share_(server_) {}

Connection::~Connection() = default;

void Connection::Start() {
  error_code ignored;
  const auto endpoint = socket_.remote_endpoint(ignored);
  if (!ignored) remote_address_ = endpoint.address().to_string(ignored);
  socket_.non_blocking(true, ignored);
  socket_.set_option(asio::ip::tcp::no_delay(true), ignored);
  socket_.set_option(asio::socket_base::keep_alive(true), ignored);  // peers that vanish silently

  const int64_t limit = server_->config.max_connections;
  counted_ = server_->num_connections.fetch_add(1) < limit;
  if (!counted_) {
    server_->num_connections.fetch_sub(1);
    if (io_->num_refusing >= kMaxRefusing) return;  // the socket closes with us
    ++io_->num_refusing;
  }
  io_->connections.insert(shared_from_this());
  SetDeadline(std::chrono::seconds(server_->config.read_timeout_seconds));
  WaitForInput();
  if (!counted_) {
    Refuse(503, fmt::format("too many connections, the limit is {}", limit));
  }
}

void Connection::Close() {
  if (state_ == State::kClosed) return;
  state_ = State::kClosed;
  const std::shared_ptr<Connection> self = shared_from_this();  // io_->connections may be the last
  if (exchange_ != nullptr) {
    Observe();
    exchange_->Detach();
    exchange_.reset();
  }
  error_code ignored;
  socket_.close(ignored);
  timer_.cancel();
  rest_timer_.cancel();
  request_.reset();
  DropInput();
  if (counted_) {
    server_->num_connections.fetch_sub(1);
  } else {
    --io_->num_refusing;
  }
  io_->connections.erase(self);
}

void Connection::CloseIfIdle() {
  if (state_ == State::kReading && request_ == nullptr && input_.empty()) Close();
}

// --- Input ---------------------------------------------------------------------------------------

void Connection::WaitForInput() {
  // Waiting instead of reading: ten thousand idle connections need no ten thousand buffers.
  socket_.async_wait(asio::socket_base::wait_read,
                     [self = shared_from_this()](const error_code& error) {
                       if (error || self->state_ == State::kClosed) return;
                       self->OnInput();
                     });
}

void Connection::OnInput() {
  if (HasReadAhead()) return RestInput();
  error_code error;
  const size_t size = socket_.read_some(asio::buffer(io_->scratch), error);
  if (error == asio::error::would_block || error == asio::error::interrupted) {
    WaitForInput();
    return;
  }
  if (error) {
    OnInputEnd();
    return;
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
    pollfd state = {self->socket_.native_handle(), POLLRDHUP, 0};
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
  const asio::const_buffer input(input_.data(), input_.size());
  if (request_ == nullptr) {
    request_ = std::make_unique<Request>();
    request_->parser.header_limit(static_cast<uint32_t>(server_->config.max_header_bytes));
    // Checked by us once the header is in, so that the refusal can name the size.
    request_->parser.body_limit(boost::none);
  }
  auto& parser = request_->parser;
  while (input_offset_ < input_.size() && !parser.is_done()) {
    error_code error;
    try {
      input_offset_ += parser.put(input + input_offset_, error);
    } catch (const std::exception& problem) {  // a field longer than Beast's 16-bit lengths
      return Refuse(431, fmt::format("request header: {}", problem.what()));
    }
    if (error == http::error::need_more) {
      // Also bounds what the parser does not: chunk extensions and trailers.
      if (static_cast<int64_t>(input_.size() - input_offset_) > server_->config.max_header_bytes) {
        error = http::error::header_limit;
      } else {
        break;
      }
    }
    if (error == http::error::header_limit) {
      return Refuse(431, fmt::format("request header of more than {} bytes",
                                     server_->config.max_header_bytes));
    }
    if (error == http::error::body_limit) {
      return Refuse(413, fmt::format("request body of more than {} bytes, the limit",
                                     server_->config.max_body_bytes));
    }
    if (error == http::error::bad_version) return Refuse(505, "want HTTP/1.1 or HTTP/1.0");
    if (error) return Refuse(400, "malformed HTTP request: " + error.message());
    if (parser.is_header_done() && !std::exchange(request_->header_checked, true)) {
      if (!CheckHeader()) return;
    }
  }
  // Erasing only what is more than the rest moves each byte once at most.
  if (input_offset_ == input_.size()) {
    input_ = std::string();
    input_offset_ = 0;
  } else if (input_offset_ > input_.size() / 2) {
    input_.erase(0, input_offset_);
    input_offset_ = 0;
  }
  if (parser.is_done()) Dispatch();
}

bool Connection::CheckHeader() {
  auto& parser = request_->parser;
  const auto& message = parser.get();
  const auto refuse = [this](int status, const std::string& text) {
    Refuse(status, text);
    return false;
  };
  if (message.version() == 11 && message.count(http::field::host) != 1) {
    return refuse(400, fmt::format("an HTTP/1.1 request has exactly one Host header, not {}",
                                   message.count(http::field::host)));
  }
  // Anything but plain chunked would be a body of unknown length: the door to request smuggling.
  if (const size_t codings = message.count(http::field::transfer_encoding); codings > 0) {
    if (codings > 1 || message.version() == 10) return refuse(400, "bad Transfer-Encoding");
    if (!EqualsIgnoreCase(View(message[http::field::transfer_encoding]), "chunked")) {
      return refuse(501, "the only Transfer-Encoding served is chunked");
    }
  }
  auto target = ParseRequestTarget(View(message.target()));
  if (!target.has_value()) return refuse(400, "malformed request target");
  request_->target = std::move(*target);

  const auto limit = static_cast<uint64_t>(server_->config.max_body_bytes);
  if (const auto length = parser.content_length(); length.has_value() && *length > limit) {
    return refuse(413, fmt::format("request body of {} bytes, the limit is {}", *length, limit));
  }
  parser.body_limit(limit);

  const std::string_view expect = View(message[http::field::expect]);
  if (expect.empty() || message.version() == 10) return true;
  if (!EqualsIgnoreCase(expect, "100-continue")) {
    return refuse(417, "the only expectation served is 100-continue");
  }
  if (!parser.is_done()) {
    // No answer is under way, so the socket's buffer has room for these bytes.
    error_code ignored;
    socket_.write_some(asio::buffer(std::string_view("HTTP/1.1 100 Continue\r\n\r\n")), ignored);
  }
  return true;
}

void Connection::Dispatch() {
  auto message = request_->parser.release();
  HttpRequest request{.method = std::string(View(message.method_string())),
                      .path = std::move(request_->target.path),
                      .query = std::move(request_->target.query),
                      .remote_address = remote_address_};
  for (const auto& field : message) {
    request.headers.emplace_back(Lower(View(field.name_string())),
                                 std::string(View(field.value())));
  }
  request.body = std::move(message.body());
  request_.reset();
  // From here on the handler holds the request, we what came after it.
  const auto rest = static_cast<int64_t>(input_.size() - input_offset_);
  const auto share = std::make_shared<BufferShare>(server_);
  share->Set(share_.bytes() - rest);
  share_.Set(rest);
  request.buffer_share = share;

  const bool head = request.method == "HEAD";
  Exchange::Info info{.route = "none",
                      .method = request.method,
                      .head_only = head,
                      .http_1_0 = message.version() == 10,
                      .keep_alive = message.keep_alive() && !server_->draining.load()};
  const auto route = server_->FindRoute(request.path);
  if (route == server_->routes.end()) {
    BeginAnswer(std::move(info));
    return SendError(404, fmt::format("no such path: {}", request.path), {});
  }
  info.route = route->first;
  // A HEAD is answered as its GET would be, without the body.
  const auto handler = route->second.find(head ? "GET" : request.method);
  if (handler == route->second.end()) {
    std::string allow;
    for (const auto& [method, unused] : route->second) {
      allow += (allow.empty() ? "" : ", ") + method + (method == "GET" ? ", HEAD" : "");
    }
    BeginAnswer(std::move(info));
    return SendError(
        405, fmt::format("{} does not take {}, only {}", request.path, request.method, allow),
        {{"Allow", allow}});
  }
  BeginAnswer(std::move(info));
  handler->second(std::move(request), exchange_->MakeResponder());
}

void Connection::Refuse(int status, const std::string& message) {
  request_.reset();
  DropInput();
  discard_input_ = true;
  BeginAnswer({.route = "none", .method = "none", .keep_alive = false});
  SendError(status, message, {});
}

void Connection::SendError(int status, const std::string& message, const HttpHeaders& headers) {
  const auto [content_type, body] = (*server_->error_body)(status, message);
  exchange_->Send(status, content_type, body, headers);
}

// --- Output --------------------------------------------------------------------------------------

void Connection::BeginAnswer(Exchange::Info info) {
  state_ = State::kAnswering;
  ClearDeadline();
  info.start = steady_clock::now();
  info.error_body = server_->error_body;
  exchange_ = std::make_shared<Exchange>(std::move(info), io_, this);
}

void Connection::OnExchangeReady() {
  if (state_ != State::kAnswering) return;
  // An aborted answer does not wait for a write that the client may never take.
  if (!writing_ || exchange_->aborted()) WriteNext();
}

void Connection::WriteNext() {
  if (exchange_->aborted()) return Abort();
  Exchange::Taken taken = exchange_->Take();
  output_ = std::move(taken.bytes);
  output_offset_ = 0;
  if (!output_.empty()) {
    writing_ = true;
    return WriteSome();
  }
  ClearDeadline();
  if (taken.finished) OnAnswerDone(taken.close);
}

void Connection::Abort() {
  // A reset, because at the end of an HTTP/1.0 body an ordinary close would look complete.
  error_code ignored;
  socket_.set_option(asio::socket_base::linger(true, 0), ignored);
  Close();
}

void Connection::WriteSome() {
  // Every bit of progress moves the deadline: only a client that takes nothing at all is dropped.
  SetDeadline(std::chrono::seconds(server_->config.read_timeout_seconds));
  socket_.async_write_some(
      asio::buffer(output_.data() + output_offset_, output_.size() - output_offset_),
      [self = shared_from_this()](const error_code& error, size_t size) {
        if (self->state_ == State::kClosed) return;
        if (error) return self->Close();
        self->output_offset_ += size;
        self->exchange_->OnSent(size);
        if (self->output_offset_ < self->output_.size()) return self->WriteSome();
        self->writing_ = false;
        self->WriteNext();
      });
}

void Connection::OnAnswerDone(bool close) {
  Observe();
  exchange_->Detach();
  exchange_.reset();
  output_ = std::string();
  if (!input_open_) return Close();
  if (close || discard_input_) {
    Linger();
  } else if (server_->draining.load() && input_.empty()) {
    return Close();
  } else {
    state_ = State::kReading;
    SetDeadline(std::chrono::seconds(server_->config.read_timeout_seconds));
    ParseInput();
  }
  ResumeInput();
}

void Connection::Observe() {
  if (!server_->observer) return;
  const Exchange::Info& info = exchange_->info();
  const int status = exchange_->status() == 0 ? 499 : exchange_->status();
  const std::chrono::duration<double> elapsed = steady_clock::now() - info.start;
  server_->observer(info.route, info.method, status, elapsed.count());
}

void Connection::Linger() {
  state_ = State::kLingering;
  DropInput();
  error_code ignored;
  socket_.shutdown(asio::ip::tcp::socket::shutdown_send, ignored);
  SetDeadline(kLinger);
}

// --- Deadlines -----------------------------------------------------------------------------------

void Connection::SetDeadline(std::chrono::seconds from_now) {
  deadline_ = steady_clock::now() + from_now;
  // A pending timer looks at deadline_ when it fires; it is set anew only when it would fire late.
  if (!timer_pending_ || timer_.expiry() > deadline_) WaitForTimer();
}

void Connection::ClearDeadline() { deadline_ = steady_clock::time_point::max(); }

void Connection::WaitForTimer() {
  timer_pending_ = true;
  timer_.expires_at(deadline_);
  timer_.async_wait([self = shared_from_this()](const error_code& error) {
    if (error || self->state_ == State::kClosed) return;
    self->timer_pending_ = false;
    if (self->deadline_ == steady_clock::time_point::max()) return;
    if (self->deadline_ > steady_clock::now()) return self->WaitForTimer();
    self->OnTimeout();
  });
}

void Connection::OnTimeout() {
  if (state_ == State::kReading && (request_ != nullptr || !input_.empty())) {
    return Refuse(408, fmt::format("the request did not arrive within {} seconds",
                                   server_->config.read_timeout_seconds));
  }
  Close();
}

}  // namespace nibble::server
