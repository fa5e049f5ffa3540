// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/http/connection_deadline.h"

#include <utility>

namespace nibble::server {

using std::chrono::steady_clock;

void ConnectionDeadline::Attach(std::weak_ptr<void> owner, OnTimeout on_timeout) {
  owner_ = std::move(owner);
  on_timeout_ = on_timeout;
}

void ConnectionDeadline::Set(std::chrono::seconds from_now) {
  deadline_ = steady_clock::now() + from_now;
  if (!pending_ || timer_.expiry() > deadline_) Wait();
}

void ConnectionDeadline::Cancel() {
  Clear();
  timer_.cancel();
}

void ConnectionDeadline::Wait() {
  pending_ = true;
  timer_.expires_at(deadline_);
  timer_.async_wait([this, owner = owner_.lock()](const boost::system::error_code& error) {
    if (error) return;  // set anew
    pending_ = false;
    if (deadline_ == TimePoint::max()) return;
    if (deadline_ > steady_clock::now()) return Wait();
    on_timeout_(owner.get());
  });
}

}  // namespace nibble::server
