// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "base/cuda/stream.h"

#include "base/cuda/error.h"
#include "base/log.h"

namespace nibble::gpu {
namespace {

void LogFailure(cudaError_t error, const char* what) {
  const absl::Status status = ToStatus(error, what);
  if (!status.ok()) log::Error("{}", status.ToString());
}

}  // namespace

absl::StatusOr<Stream> Stream::Create() {
  Stream stream;
  NIBBLE_RETURN_IF_CUDA_ERROR(cudaStreamCreateWithFlags(&stream.stream_, cudaStreamNonBlocking));
  return stream;
}

Stream::~Stream() {
  if (stream_ != nullptr) LogFailure(cudaStreamDestroy(stream_), "cudaStreamDestroy");
}

absl::Status Stream::Synchronize() const {
  return ToStatus(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
}

absl::StatusOr<Event> Event::Create(bool timing) {
  Event event;
  NIBBLE_RETURN_IF_CUDA_ERROR(
      cudaEventCreateWithFlags(&event.event_, timing ? cudaEventDefault : cudaEventDisableTiming));
  return event;
}

Event::~Event() {
  if (event_ != nullptr) LogFailure(cudaEventDestroy(event_), "cudaEventDestroy");
}

absl::Status Event::Record(cudaStream_t stream) const {
  return ToStatus(cudaEventRecord(event_, stream), "cudaEventRecord");
}

absl::Status Event::Synchronize() const {
  return ToStatus(cudaEventSynchronize(event_), "cudaEventSynchronize");
}

absl::StatusOr<bool> Event::IsDone() const {
  const cudaError_t error = cudaEventQuery(event_);
  if (error == cudaErrorNotReady) {
    (void)cudaGetLastError();
    return false;
  }
  NIBBLE_RETURN_IF_ERROR(ToStatus(error, "cudaEventQuery"));
  return true;
}

absl::StatusOr<float> ElapsedMs(const Event& begin, const Event& end) {
  float ms = 0.0F;
  NIBBLE_RETURN_IF_CUDA_ERROR(cudaEventElapsedTime(&ms, begin.get(), end.get()));
  return ms;
}

absl::Status GraphExec::BeginCapture(cudaStream_t stream) {
  return ToStatus(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal),
                  "cudaStreamBeginCapture");
}

absl::StatusOr<GraphExec> GraphExec::EndCapture(cudaStream_t stream) {
  cudaGraph_t graph = nullptr;
  NIBBLE_RETURN_IF_CUDA_ERROR(cudaStreamEndCapture(stream, &graph));
  GraphExec exec;
  const cudaError_t error = cudaGraphInstantiate(&exec.exec_, graph, 0);
  LogFailure(cudaGraphDestroy(graph), "cudaGraphDestroy");
  NIBBLE_RETURN_IF_ERROR(ToStatus(error, "cudaGraphInstantiate"));
  return exec;
}

GraphExec::~GraphExec() {
  if (exec_ != nullptr) LogFailure(cudaGraphExecDestroy(exec_), "cudaGraphExecDestroy");
}

absl::Status GraphExec::Launch(cudaStream_t stream) const {
  return ToStatus(cudaGraphLaunch(exec_, stream), "cudaGraphLaunch");
}

}  // namespace nibble::gpu
