// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The words of CUDA C++ that kernels are written in, for a host compiler.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "tests/simt/simt.h"

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline
#define __restrict__ __restrict
#define __grid_constant__
#define __launch_bounds__(...)
// Kernels share memory through device::SharedMemory() alone: one of `static` storage would be
// shared by blocks that run in turns.
#define __shared__ static_assert(false, "use device::SharedMemory()");

namespace simt {

// threadIdx and its like: members that ask who is running.
template <Dim3 Coordinates::*kWhich>
struct Builtin {
  template <unsigned Dim3::*kAxis>
  struct Axis {
    operator unsigned() const { return Where().*kWhich.*kAxis; }
  };
  [[no_unique_address]] Axis<&Dim3::x> x;
  [[no_unique_address]] Axis<&Dim3::y> y;
  [[no_unique_address]] Axis<&Dim3::z> z;
};

}  // namespace simt

inline constexpr simt::Builtin<&simt::Coordinates::thread_idx> threadIdx{};
inline constexpr simt::Builtin<&simt::Coordinates::block_idx> blockIdx{};
inline constexpr simt::Builtin<&simt::Coordinates::block_dim> blockDim{};
inline constexpr simt::Builtin<&simt::Coordinates::grid_dim> gridDim{};
constexpr int warpSize = 32;

#define SIMT_VECTOR(type, name)                                           \
  struct alignas(2 * sizeof(type)) name##2 {                              \
    type x, y;                                                            \
  };                                                                      \
  struct alignas(4 * sizeof(type) > 16 ? 16 : 4 * sizeof(type)) name##4 { \
    type x, y, z, w;                                                      \
  };                                                                      \
  inline name##2 make_##name##2(type x, type y) { return {x, y}; }        \
  inline name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }
SIMT_VECTOR(int, int)
SIMT_VECTOR(unsigned, uint)
SIMT_VECTOR(float, float)
#undef SIMT_VECTOR

using std::max;
using std::min;

inline void __syncthreads() { simt::SyncThreads(); }
inline void __syncwarp(unsigned mask = 0xFFFFFFFFU) {
  simt::WarpMeeting(mask, "__syncwarp", nullptr, [](void* const*, unsigned) {});
}
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}
inline void __nanosleep(unsigned) { simt::Yield(); }
[[noreturn]] inline void __trap() { simt::Fail("__trap()"); }
// No time, but it passes: waits that are bounded by it end after so many looks.
inline int64_t clock64() {
  static thread_local int64_t clock = 0;
  return clock += 1000;
}

namespace simt {

// Lane i gets the value of lane source(i); of its own where the source is not in the mask.
template <typename T, typename Source>
T Shuffle(unsigned mask, const char* what, T value, Source source) {
  struct Args {
    T value;
    int source;
    T result;
  } args{value, source(Lane()), value};
  WarpMeeting(mask, what, &args, [](void* const* all, unsigned lanes) {
    for (int i = 0; i < 32; ++i) {
      if ((lanes >> i & 1U) == 0) continue;
      auto* const own = static_cast<Args*>(all[i]);
      if (own->source >= 0 && own->source < 32 && (lanes >> own->source & 1U) != 0) {
        own->result = static_cast<Args*>(all[own->source])->value;
      }
    }
  });
  return args.result;
}

// All lanes of the mask get the values of all of them, combined in the order of the lanes.
template <typename T, typename Combine>
T Reduce(unsigned mask, const char* what, T value, Combine) {
  WarpMeeting(mask, what, &value, [](void* const* all, unsigned lanes) {
    bool first = true;
    T result{};
    for (int i = 0; i < 32; ++i) {
      if ((lanes >> i & 1U) == 0) continue;
      const T own = *static_cast<T*>(all[i]);
      result = first ? own : Combine{}(result, own);
      first = false;
    }
    for (int i = 0; i < 32; ++i) {
      if ((lanes >> i & 1U) != 0) *static_cast<T*>(all[i]) = result;
    }
  });
  return value;
}

}  // namespace simt

template <typename T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32) {
  return simt::Shuffle(mask, "__shfl_sync", value,
                       [=](int own) { return own / width * width + lane % width; });
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32) {
  return simt::Shuffle(mask, "__shfl_xor_sync", value, [=](int own) {
    return (own ^ bits) / width == own / width ? own ^ bits : own;
  });
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  return simt::Shuffle(mask, "__shfl_up_sync", value, [=](int own) {
    return own % width >= static_cast<int>(delta) ? own - static_cast<int>(delta) : own;
  });
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  return simt::Shuffle(mask, "__shfl_down_sync", value, [=](int own) {
    return own % width + static_cast<int>(delta) < width ? own + static_cast<int>(delta) : own;
  });
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  struct Args {
    int predicate;
    unsigned result;
  } args{predicate, 0};
  simt::WarpMeeting(mask, "__ballot_sync", &args, [](void* const* all, unsigned lanes) {
    unsigned result = 0;
    for (int i = 0; i < 32; ++i) {
      if ((lanes >> i & 1U) != 0 && static_cast<Args*>(all[i])->predicate != 0) result |= 1U << i;
    }
    for (int i = 0; i < 32; ++i) {
      if ((lanes >> i & 1U) != 0) static_cast<Args*>(all[i])->result = result;
    }
  });
  return args.result;
}
#define SIMT_REDUCE(name, type, expression)                                             \
  inline type name(unsigned mask, type value) {                                         \
    return simt::Reduce(mask, #name, value, [](type a, type b) { return expression; }); \
  }
SIMT_REDUCE(__reduce_max_sync, int, a < b ? b : a)
SIMT_REDUCE(__reduce_max_sync, unsigned, a < b ? b : a)
SIMT_REDUCE(__reduce_min_sync, int, a < b ? a : b)
SIMT_REDUCE(__reduce_min_sync, unsigned, a < b ? a : b)
SIMT_REDUCE(__reduce_add_sync, int,
            static_cast<int>(static_cast<unsigned>(a) + static_cast<unsigned>(b)))
SIMT_REDUCE(__reduce_add_sync, unsigned, a + b)
#undef SIMT_REDUCE
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) {
  return __ballot_sync(mask, predicate) == mask;
}

template <typename T>
T __ldg(const T* data) {
  return *data;
}

inline int __float2int_rn(float x) { return static_cast<int>(std::nearbyintf(x)); }
inline float __int2float_rn(int x) { return static_cast<float>(x); }
inline float __uint2float_rn(unsigned x) { return static_cast<float>(x); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __fsqrt_rn(float x) { return std::sqrt(x); }
inline float __frcp_rn(float x) { return 1.0F / x; }

#define SIMT_BITS(name, from, to)        \
  inline to name(from x) {               \
    to result;                           \
    std::memcpy(&result, &x, sizeof(x)); \
    return result;                       \
  }
SIMT_BITS(__float_as_uint, float, unsigned)
SIMT_BITS(__uint_as_float, unsigned, float)
SIMT_BITS(__float_as_int, float, int)
SIMT_BITS(__int_as_float, int, float)
#undef SIMT_BITS

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  const uint64_t bytes = uint64_t{y} << 32 | x;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned pick = selector >> (4 * i) & 0xF;
    unsigned byte = static_cast<unsigned>(bytes >> (8 * (pick & 7))) & 0xFF;
    if ((pick & 8) != 0) byte = (byte & 0x80) != 0 ? 0xFF : 0;
    result |= byte << (8 * i);
  }
  return result;
}
inline int __dp4a(int a, int b, int c) {
  for (int i = 0; i < 4; ++i) {
    c += static_cast<int8_t>(a >> (8 * i)) * static_cast<int8_t>(b >> (8 * i));
  }
  return c;
}

// Threads of a launch run in turns on one processor, so that plain reads and writes are atomic.
#define SIMT_ATOMIC(name, expression)              \
  template <typename T>                            \
  T name(T* data, std::type_identity_t<T> value) { \
    const T old = *data;                           \
    *data = expression;                            \
    return old;                                    \
  }
SIMT_ATOMIC(atomicAdd, old + value)
SIMT_ATOMIC(atomicMax, old < value ? value : old)
SIMT_ATOMIC(atomicMin, old < value ? old : value)
SIMT_ATOMIC(atomicExch, value)
SIMT_ATOMIC(atomicOr, old | value)
#undef SIMT_ATOMIC
template <typename T>
T atomicCAS(T* data, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
  const T old = *data;
  if (old == expected) *data = value;
  return old;
}
