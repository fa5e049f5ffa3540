// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Streams, events and captured graphs, each with one owner. Destructors log what fails.
#pragma once

#include <cuda_runtime.h>

#include <utility>

#include "base/status.h"

namespace nibble::gpu {

// A queue of device work that does not wait for the default stream. Move-only.
class Stream {
 public:
  static absl::StatusOr<Stream> Create();
  Stream() = default;
  Stream(Stream&& other) noexcept : stream_(std::exchange(other.stream_, nullptr)) {}
  Stream& operator=(Stream&& other) noexcept {
    std::swap(stream_, other.stream_);
    return *this;
  }
  ~Stream();

  cudaStream_t get() const { return stream_; }
  // Blocks until all of it is done; the error of whatever failed in it.
  absl::Status Synchronize() const;

 private:
  cudaStream_t stream_ = nullptr;
};

// A point in a stream. Move-only.
class Event {
 public:
  // With `timing`, ElapsedMs() can be asked.
  static absl::StatusOr<Event> Create(bool timing = false);
  Event() = default;
  Event(Event&& other) noexcept : event_(std::exchange(other.event_, nullptr)) {}
  Event& operator=(Event&& other) noexcept {
    std::swap(event_, other.event_);
    return *this;
  }
  ~Event();

  cudaEvent_t get() const { return event_; }
  absl::Status Record(cudaStream_t stream) const;
  absl::Status Synchronize() const;
  // True when the stream has passed it; an error when the device failed before.
  absl::StatusOr<bool> IsDone() const;

 private:
  cudaEvent_t event_ = nullptr;
};
absl::StatusOr<float> ElapsedMs(const Event& begin, const Event& end);

// A captured sequence of launches that can be launched again. Move-only.
//
//   NIBBLE_RETURN_IF_ERROR(GraphExec::BeginCapture(stream));
//   ... launches on stream, which only record ...
//   NIBBLE_ASSIGN_OR_RETURN(GraphExec graph, GraphExec::EndCapture(stream));
//   NIBBLE_RETURN_IF_ERROR(graph.Launch(stream));
class GraphExec {
 public:
  static absl::Status BeginCapture(cudaStream_t stream);
  // Ends the capture in any case; an error of a launch in between is found here.
  static absl::StatusOr<GraphExec> EndCapture(cudaStream_t stream);
  GraphExec() = default;
  GraphExec(GraphExec&& other) noexcept : exec_(std::exchange(other.exec_, nullptr)) {}
  GraphExec& operator=(GraphExec&& other) noexcept {
    std::swap(exec_, other.exec_);
    return *this;
  }
  ~GraphExec();

  explicit operator bool() const { return exec_ != nullptr; }
  absl::Status Launch(cudaStream_t stream) const;

 private:
  cudaGraphExec_t exec_ = nullptr;
};

}  // namespace nibble::gpu
