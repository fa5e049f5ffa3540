// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "base/cuda/error.h"

namespace nibble::gpu {

bool IsSticky(cudaError_t error) {
  switch (error) {
    case cudaErrorECCUncorrectable:
    case cudaErrorNvlinkUncorrectable:
    case cudaErrorContained:
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchTimeout:
    case cudaErrorContextIsDestroyed:
    case cudaErrorAssert:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorLaunchFailure:
    case cudaErrorTensorMemoryLeak:
    case cudaErrorMpsClientTerminated:
    case cudaErrorExternalDevice:
    case cudaErrorUnknown:
      return true;
    default:
      return false;
  }
}

absl::Status ToStatus(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return absl::OkStatus();
  if (!IsSticky(error)) (void)cudaGetLastError();
  const char* const name = cudaGetErrorName(error);
  const char* const text = cudaGetErrorString(error);
  switch (error) {
    case cudaErrorInsufficientDriver:
    case cudaErrorNoDevice:
      return Unavailable("{}: no CUDA device: {} ({})", what, text, name);
    case cudaErrorMemoryAllocation:
      return ResourceExhausted("{}: {} ({})", what, text, name);
    default:
      return Internal("{}: {} ({}){}", what, text, name,
                      IsSticky(error) ? "; this process can no longer use the device" : "");
  }
}

}  // namespace nibble::gpu
