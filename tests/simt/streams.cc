// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Streams, events and graphs.

#include <algorithm>
#include <deque>
#include <utility>

#include "tests/simt/runtime_state.h"

namespace simt {

using Work = std::function<cudaError_t()>;

// A capture under way: of the stream where it began and of those that wait for its events.
struct Capture {
  std::vector<Work> work;
  const StreamState* origin = nullptr;
  std::vector<std::shared_ptr<StreamState>> streams;
  std::vector<const StreamState*> unjoined;  // that the origin must still wait for
  bool is_spoiled = false;
};

struct StreamState {
  std::recursive_mutex mutex;  // guards all
  std::deque<Work> work;
  uint64_t num_given = 0;
  uint64_t num_done = 0;
  bool is_running = false;
  std::shared_ptr<Capture> capture;
};

}  // namespace simt

struct simtStream {
  std::shared_ptr<simt::StreamState> state = std::make_shared<simt::StreamState>();
};
struct simtGraph {
  std::shared_ptr<const std::vector<simt::Work>> work;
};
struct simtEvent {
  bool is_timed = false;
  std::shared_ptr<simt::StreamState> stream;  // recorded in; null: never
  uint64_t position = 0;
  std::shared_ptr<simt::Capture> capture;  // recorded in one: never done by itself
};

namespace simt {
namespace {

thread_local std::weak_ptr<Capture> g_capture;  // begun by this host thread

// The oldest piece of work. REQUIRES that there is one and the mutex.
cudaError_t RunOne(StreamState* stream) {
  if (stream->is_running) Fail("streams wait for each other in a circle");
  const Work work = std::move(stream->work.front());
  stream->work.pop_front();
  stream->is_running = true;
  const cudaError_t error = work();
  stream->is_running = false;
  ++stream->num_done;
  return error;
}

cudaError_t DrainUntil(StreamState* stream, uint64_t position) {
  const std::lock_guard lock(stream->mutex);
  while (stream->num_done < position) {
    if (const cudaError_t error = RunOne(stream); error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

// Whoever only looks whether work is done must see it done at some time.
cudaError_t Query(StreamState* stream, uint64_t position) {
  const std::lock_guard lock(stream->mutex);
  if (stream->num_done >= position) return cudaSuccess;
  const cudaError_t error = RunOne(stream);
  return error != cudaSuccess ? error : cudaErrorNotReady;
}

cudaError_t Spoil(Capture* capture, cudaError_t error) {
  capture->is_spoiled = true;
  return error;
}

cudaError_t Join(const std::shared_ptr<StreamState>& stream, const simtEvent& event) {
  const std::shared_ptr<Capture>& capture = event.capture;
  if (stream->capture == nullptr) {
    stream->capture = capture;
    capture->streams.push_back(stream);
    capture->unjoined.push_back(stream.get());
    return cudaSuccess;
  }
  if (stream->capture != capture) {
    return Spoil(stream->capture.get(), cudaErrorStreamCaptureIsolation);
  }
  if (stream.get() == capture->origin) std::erase(capture->unjoined, event.stream.get());
  return cudaSuccess;
}

}  // namespace

bool IsCapturing(cudaStream_t stream) {
  return stream != nullptr && stream->state->capture != nullptr;
}

cudaError_t RefuseInCapture() {
  if (const auto capture = g_capture.lock(); capture != nullptr) {
    return Spoil(capture.get(), cudaErrorStreamCaptureUnsupported);
  }
  return cudaSuccess;
}

cudaError_t Drain(cudaStream_t stream) {
  if (stream == nullptr) return cudaSuccess;
  return DrainUntil(stream->state.get(), stream->state->num_given);
}

cudaError_t DrainAll() {
  std::vector<std::shared_ptr<StreamState>> streams;
  {
    const std::lock_guard lock(Global().mutex);
    streams = Global().streams;
  }
  for (const auto& stream : streams) {
    if (const cudaError_t error = DrainUntil(stream.get(), stream->num_given)) return error;
  }
  return cudaSuccess;
}

cudaError_t Enqueue(cudaStream_t stream, std::function<cudaError_t()> work) {
  if (const cudaError_t error = TakeFailure(); error != cudaSuccess) return error;
  if (stream == nullptr) return work();
  StreamState& state = *stream->state;
  const std::lock_guard lock(state.mutex);
  if (Capture* const capture = state.capture.get(); capture != nullptr) {
    if (capture->is_spoiled) return cudaErrorStreamCaptureInvalidated;
    capture->work.push_back(std::move(work));
    if (&state != capture->origin &&
        std::count(capture->unjoined.begin(), capture->unjoined.end(), &state) == 0) {
      capture->unjoined.push_back(&state);
    }
    return cudaSuccess;
  }
  state.work.push_back(std::move(work));
  ++state.num_given;
  return cudaSuccess;
}

}  // namespace simt

using simt::Global;

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  if (const cudaError_t error = simt::MakeContext(); error != cudaSuccess) return error;
  if (const cudaError_t error = simt::Sticky(); error != cudaSuccess) return error;
  *stream = new simtStream;
  const std::lock_guard lock(Global().mutex);
  Global().streams.push_back((*stream)->state);
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  cudaError_t error = simt::Sticky();
  if (error == cudaSuccess) error = simt::Drain(stream);
  {
    const std::lock_guard lock(Global().mutex);
    std::erase(Global().streams, stream->state);
  }
  delete stream;
  return error;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  if (const cudaError_t error = simt::TakeFailure(); error != cudaSuccess) return error;
  if (simt::IsCapturing(stream)) {
    return simt::Spoil(stream->state->capture.get(), cudaErrorStreamCaptureUnsupported);
  }
  return simt::Drain(stream);
}
cudaError_t cudaStreamQuery(cudaStream_t stream) {
  if (const cudaError_t error = simt::TakeFailure(); error != cudaSuccess) return error;
  if (simt::IsCapturing(stream)) {
    return simt::Spoil(stream->state->capture.get(), cudaErrorStreamCaptureUnsupported);
  }
  return stream == nullptr ? cudaSuccess
                           : simt::Query(stream->state.get(), stream->state->num_given);
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  if (event->stream == nullptr || stream == nullptr) return cudaSuccess;
  const auto& state = stream->state;
  const std::lock_guard lock(state->mutex);
  if (event->capture != nullptr) return simt::Join(state, *event);
  if (state->capture != nullptr) {
    return simt::Spoil(state->capture.get(), cudaErrorStreamCaptureIsolation);
  }
  if (event->stream == state) return cudaSuccess;
  return simt::Enqueue(stream, [other = event->stream, position = event->position] {
    return simt::DrainUntil(other.get(), position);
  });
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  if (stream == nullptr) return cudaErrorStreamCaptureUnsupported;
  if (const cudaError_t error = simt::Sticky(); error != cudaSuccess) return error;
  simt::StreamState& state = *stream->state;
  const std::lock_guard lock(state.mutex);
  if (state.capture != nullptr) {
    return simt::Spoil(state.capture.get(), cudaErrorStreamCaptureInvalidated);
  }
  state.capture = std::make_shared<simt::Capture>();
  state.capture->origin = &state;
  state.capture->streams.push_back(stream->state);
  if (mode != cudaStreamCaptureModeRelaxed) simt::g_capture = state.capture;
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  *graph = nullptr;
  const auto capture = stream->state->capture;
  if (capture == nullptr || capture->origin != stream->state.get()) {
    return cudaErrorStreamCaptureInvalidated;
  }
  simt::g_capture.reset();
  for (const auto& state : capture->streams) state->capture = nullptr;
  if (const cudaError_t error = simt::Sticky(); error != cudaSuccess) return error;
  if (capture->is_spoiled) return cudaErrorStreamCaptureInvalidated;
  if (!capture->unjoined.empty()) return cudaErrorStreamCaptureUnjoined;
  *graph = new simtGraph{std::make_shared<const std::vector<simt::Work>>(std::move(capture->work))};
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  if (const cudaError_t error = simt::TakeFailure(); error != cudaSuccess) return error;
  *exec = new simtGraph(*graph);
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  delete exec;
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  return simt::Enqueue(stream, [work = exec->work] {
    for (const auto& step : *work) {
      if (const cudaError_t error = step(); error != cudaSuccess) return error;
    }
    return cudaSuccess;
  });
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  if (const cudaError_t error = simt::MakeContext(); error != cudaSuccess) return error;
  if (const cudaError_t error = simt::Sticky(); error != cudaSuccess) return error;
  *event = new simtEvent{.is_timed = (flags & cudaEventDisableTiming) == 0};
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  if (const cudaError_t error = simt::TakeFailure(); error != cudaSuccess) return error;
  if (stream == nullptr) {
    event->stream = nullptr;
    return cudaSuccess;
  }
  const std::lock_guard lock(stream->state->mutex);
  event->stream = stream->state;
  event->position = stream->state->num_given;
  event->capture = stream->state->capture;
  return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  if (const cudaError_t error = simt::TakeFailure(); error != cudaSuccess) return error;
  if (event->capture != nullptr) {
    return simt::Spoil(event->capture.get(), cudaErrorCapturedEvent);
  }
  return event->stream == nullptr ? cudaSuccess
                                  : simt::DrainUntil(event->stream.get(), event->position);
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
  if (const cudaError_t error = simt::TakeFailure(); error != cudaSuccess) return error;
  if (event->capture != nullptr) {
    return simt::Spoil(event->capture.get(), cudaErrorCapturedEvent);
  }
  return event->stream == nullptr ? cudaSuccess : simt::Query(event->stream.get(), event->position);
}
cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t begin, cudaEvent_t end) {
  for (const cudaEvent_t event : {begin, end}) {
    if (!event->is_timed || event->stream == nullptr) return cudaErrorInvalidResourceHandle;
    if (event->stream->num_done < event->position) return cudaErrorNotReady;
  }
  // Nothing here is timed: a microsecond for each piece of work between them, so that rates are
  // finite.
  const auto pieces = static_cast<double>(end->position) - static_cast<double>(begin->position);
  *ms = begin->stream == end->stream ? static_cast<float>(pieces * 1e-3) : 0.0F;
  return cudaSuccess;
}
