// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Figures of one quantized matrix for the report.
#pragma once

#include "base/thread_pool.h"
#include "quantize/methods/calibration_data.h"

namespace nibble::quantize {

// Codes and scales as stored.
double BitsPerWeight(const QuantizedWeight& weight);

struct WeightError {
  double norm = 0.0;
  double error = 0.0;  // relative
};
// Independent of the number of threads.
WeightError MeasureWeightError(const Matrix& matrix, const QuantizedWeight& weight,
                               ThreadPool* pool);

}  // namespace nibble::quantize
