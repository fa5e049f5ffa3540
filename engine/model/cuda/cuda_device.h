// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// A CUDA device as what computes a model (engine/model/model_device.h). No CUDA header is needed to
// include this.
//
//   NIBBLE_ASSIGN_OR_RETURN(load.device, OpenCudaDevice({.index = 0}));
//   NIBBLE_ASSIGN_OR_RETURN(auto model, Model::Load(dir, load, &pool));
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/status.h"

namespace nibble::engine {

class ModelDevice;

struct CudaDeviceInfo {
  int index = 0;
  std::string name;  // "NVIDIA H100 80GB HBM3"
  int sm = 0;        // 90
  int64_t memory_bytes = 0;
};

struct CudaDevices {
  std::vector<CudaDeviceInfo> usable;  // of an architecture that this build has kernels for
  std::string why_none;                // nothing is usable: why; else empty
};
// Never an error for a host without driver or device: that is in why_none.
CudaDevices ListCudaDevices();

enum class CudaAttention { kAuto, kNibble, kFlashInfer };
enum class CudaTransport { kAuto, kP2p, kHost };

struct CudaOptions {
  int index = 0;  // as the runtime counts, which goes by CUDA_VISIBLE_DEVICES
  // Of the device's memory, what this process takes for weights, workspaces and KV cache.
  double memory_utilization = 0.9;
  bool enforce_eager = false;  // no captured graphs for decode steps
  CudaAttention attention = CudaAttention::kAuto;
  // For dense layers, where the library is found: faster for many tokens, but a row's bits then
  // depend on the batch that it is in.
  bool use_cublaslt = true;
  // How ranks' sums travel. By name (tests), ranks may share a device.
  CudaTransport transport = CudaTransport::kAuto;
};

// INVALID_ARGUMENT, naming the devices there are, for an index that is none of them; UNAVAILABLE,
// with the reason, when there are none.
absl::StatusOr<std::shared_ptr<const ModelDevice>> OpenCudaDevice(const CudaOptions& options);

}  // namespace nibble::engine
