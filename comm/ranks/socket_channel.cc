// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <mutex>
#include <utility>

#include "comm/ranks/frame_channel.h"
#include "comm/ranks/frame_stream.h"

namespace nibble::comm {
namespace {

class SocketChannel final : public FrameChannel {
 public:
  explicit SocketChannel(int socket) : socket_(socket) {
    // Not for processes that a rank may start; and its waits are blocking ones.
    ::fcntl(socket, F_SETFD, FD_CLOEXEC);
    if (const int flags = ::fcntl(socket, F_GETFL); flags >= 0) {
      ::fcntl(socket, F_SETFL, flags & ~O_NONBLOCK);
    }
  }
  ~SocketChannel() override { ::close(socket_); }

  absl::Status Send(const Frame& frame) override;
  absl::StatusOr<Frame> Receive() override;

 private:
  const int socket_;
  FrameReader reader_;  // of the receiving thread
  absl::Status broken_;
  std::mutex send_mutex_;
  absl::Status send_broken_;  // guarded by send_mutex_: half a frame may have gone out
};

absl::Status SocketChannel::Send(const Frame& frame) {
  if (frame.payload.size() > Frame::kMaxPayloadBytes) {
    return InvalidArgument("a frame of {} bytes is to be sent, the limit is {}",
                           frame.payload.size(), Frame::kMaxPayloadBytes);
  }
  FrameHeader header = EncodeFrameHeader(frame);
  iovec parts[2] = {
      {.iov_base = header.data(), .iov_len = header.size()},
      {.iov_base = const_cast<char*>(frame.payload.data()), .iov_len = frame.payload.size()}};
  msghdr message = {};
  message.msg_iov = parts;
  message.msg_iovlen = 2;
  const std::lock_guard lock(send_mutex_);
  if (!send_broken_.ok()) return send_broken_;
  while (message.msg_iovlen > 0) {
    const ssize_t sent = ::sendmsg(socket_, &message, MSG_NOSIGNAL);
    if (sent < 0) {
      if (errno == EINTR) continue;
      send_broken_ = Unavailable("the driver of this rank is gone: {}", std::strerror(errno));
      return send_broken_;
    }
    auto left = static_cast<size_t>(sent);
    while (message.msg_iovlen > 0 && left >= message.msg_iov->iov_len) {
      left -= message.msg_iov->iov_len;
      ++message.msg_iov;
      --message.msg_iovlen;
    }
    if (message.msg_iovlen > 0) {
      message.msg_iov->iov_base = static_cast<char*>(message.msg_iov->iov_base) + left;
      message.msg_iov->iov_len -= left;
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<Frame> SocketChannel::Receive() {
  Frame frame;
  while (broken_.ok()) {
    const absl::StatusOr<bool> whole = reader_.Next(&frame);
    if (!whole.ok()) {
      broken_ = Annotate(whole.status(), "the driver of this rank");
    } else if (*whole) {
      return frame;
    } else {
      const std::span<char> space = reader_.Space();
      const ssize_t received = ::recv(socket_, space.data(), space.size(), 0);
      if (received > 0) {
        reader_.Received(static_cast<size_t>(received));
      } else if (received == 0) {
        broken_ = Unavailable("the driver of this rank closed its channel");
      } else if (errno != EINTR) {
        broken_ = Unavailable("the driver of this rank is gone: {}", std::strerror(errno));
      }
    }
  }
  return broken_;
}

}  // namespace

std::unique_ptr<FrameChannel> MakeSocketChannel(int socket) {
  return std::make_unique<SocketChannel>(socket);
}

}  // namespace nibble::comm
