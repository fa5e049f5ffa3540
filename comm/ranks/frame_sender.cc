// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "comm/ranks/frame_sender.h"

#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

namespace nibble::comm {

void FrameSender::Open(int socket) {
  const std::lock_guard lock(mutex_);
  socket_ = socket;
  broken_ = false;
  watches_room_ = false;
  epoll_event event = {.events = EPOLLIN, .data = {.u64 = key_}};
  ::epoll_ctl(epoll_, EPOLL_CTL_ADD, socket_, &event);
}

void FrameSender::Close() {
  const std::lock_guard lock(mutex_);
  if (socket_ < 0) return;
  // Closing would remove it too, but not while a process that was just forked still holds it.
  ::epoll_ctl(epoll_, EPOLL_CTL_DEL, socket_, nullptr);
  ::close(socket_);
  socket_ = -1;
  items_.clear();
  waiting_bytes_ = 0;
}

void FrameSender::ShutDown() {
  const std::lock_guard lock(mutex_);
  if (socket_ >= 0) ::shutdown(socket_, SHUT_WR);
}

ssize_t FrameSender::Receive(std::span<char> space) {
  return ::recv(socket_, space.data(), space.size(), MSG_DONTWAIT);
}

bool FrameSender::Send(Frame frame) {
  const std::lock_guard lock(mutex_);
  if (socket_ < 0 || broken_) return false;
  Item item = {.header = EncodeFrameHeader(frame), .frame = std::move(frame)};
  if (items_.empty()) {
    since_ = Clock::now();
    if (SendSomeLocked(&item) || broken_) return false;
  }
  waiting_bytes_ += item.num_bytes() - item.sent;
  items_.push_back(std::move(item));
  WatchLocked();
  return true;
}

void FrameSender::Flush() {
  const std::lock_guard lock(mutex_);
  if (socket_ < 0) return;
  while (!items_.empty() && !broken_) {
    Item& item = items_.front();
    const size_t before = item.sent;
    const bool whole = SendSomeLocked(&item);
    if (item.sent != before) since_ = Clock::now();
    waiting_bytes_ -= item.sent - before;
    if (!whole) break;
    items_.pop_front();
  }
  if (broken_) {
    items_.clear();
    waiting_bytes_ = 0;
  }
  WatchLocked();
}

std::optional<FrameSender::Waiting> FrameSender::waiting() const {
  const std::lock_guard lock(mutex_);
  if (items_.empty()) return std::nullopt;
  return Waiting{.num_bytes = waiting_bytes_, .since = since_};
}

bool FrameSender::SendSomeLocked(Item* item) {
  while (item->sent < item->num_bytes()) {
    const size_t of_header = std::min(item->sent, item->header.size());
    const size_t of_payload = item->sent - of_header;
    iovec parts[2] = {
        {.iov_base = item->header.data() + of_header, .iov_len = item->header.size() - of_header},
        {.iov_base = item->frame.payload.data() + of_payload,
         .iov_len = item->frame.payload.size() - of_payload}};
    msghdr message = {};
    message.msg_iov = parts;
    message.msg_iovlen = 2;
    const ssize_t sent = ::sendmsg(socket_, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent >= 0) {
      item->sent += static_cast<size_t>(sent);
    } else if (errno == EAGAIN || errno == EWOULDBLOCK || errno == ENOBUFS) {
      return false;
    } else if (errno != EINTR) {
      broken_ = true;
      return false;
    }
  }
  return true;
}

void FrameSender::WatchLocked() {
  const bool wanted = !items_.empty();
  if (wanted == watches_room_) return;
  watches_room_ = wanted;
  epoll_event event = {.events = EPOLLIN | (wanted ? static_cast<uint32_t>(EPOLLOUT) : 0U),
                       .data = {.u64 = key_}};
  ::epoll_ctl(epoll_, EPOLL_CTL_MOD, socket_, &event);
}

}  // namespace nibble::comm
