// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// When a connection's patience ends. A deadline that only moves away costs no timer: the one that
// is set looks at it when it fires.
#pragma once

#include <chrono>
#include <memory>

#include "boost/asio/io_context.hpp"
#include "boost/asio/steady_timer.hpp"

namespace nibble::server {

class ConnectionDeadline {
 public:
  explicit ConnectionDeadline(boost::asio::io_context& context) : timer_(context) {}

  // Before Set, once. `owner`, which is what on_timeout gets, has this as a member; a timer that is
  // set keeps it alive.
  using OnTimeout = void (*)(void* owner);
  void Attach(std::weak_ptr<void> owner, OnTimeout on_timeout);

  void Set(std::chrono::seconds from_now);
  void Clear() { deadline_ = TimePoint::max(); }
  void Cancel();  // for good

 private:
  using TimePoint = std::chrono::steady_clock::time_point;
  void Wait();

  boost::asio::steady_timer timer_;
  std::weak_ptr<void> owner_;
  OnTimeout on_timeout_ = nullptr;
  TimePoint deadline_ = TimePoint::max();
  bool pending_ = false;
};

}  // namespace nibble::server
