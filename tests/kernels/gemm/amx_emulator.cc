// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "tests/kernels/gemm/amx_emulator.h"

#include <signal.h>
#include <ucontext.h>

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "base/cpu_features.h"
#include "tests/kernels/gemm/amx_tile_model.h"

namespace nibble::kernels::amx {
namespace {

[[noreturn]] void Die(const char* reason, const uint8_t* code) {
  std::fprintf(stderr, "SIGILL at %p (%02x %02x %02x %02x %02x): %s\n",
               static_cast<const void*>(code), code[0], code[1], code[2], code[3], code[4], reason);
  std::abort();
}

// Registers in the order of their numbers in an instruction.
constexpr int kRegisters[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP,
                                REG_RSI, REG_RDI, REG_R8,  REG_R9,  REG_R10, REG_R11,
                                REG_R12, REG_R13, REG_R14, REG_R15};

// A three-byte VEX instruction of map 0F38 with 128 bits and W = 0, as all of AMX are.
struct Instruction {
  int prefix;  // 0 none, 1 66, 2 F3, 3 F2
  uint8_t opcode;
  int reg;
  int rm;  // when it is no memory operand
  int vvvv;
  bool is_memory;
  uint64_t address = 0;  // base and displacement
  int64_t index = 0;     // scaled index register: the stride of tile loads and stores
  int length = 0;
};

uint64_t Register(const ucontext_t& context, int number) {
  return static_cast<uint64_t>(context.uc_mcontext.gregs[kRegisters[number]]);
}

Instruction Decode(const ucontext_t& context, const uint8_t* code) {
  if (code[0] != 0xc4 || (code[1] & 0x1f) != 2 || (code[2] & 0x84) != 0) Die("not AMX", code);
  const int index_bit = (code[1] & 0x40) == 0 ? 8 : 0;
  const int base_bit = (code[1] & 0x20) == 0 ? 8 : 0;
  const int mod = code[4] >> 6;
  Instruction result = {.prefix = code[2] & 3,
                        .opcode = code[3],
                        .reg = code[4] >> 3 & 7,
                        .rm = code[4] & 7,
                        .vvvv = ~(code[2] >> 3) & 15,
                        .is_memory = mod != 3,
                        .length = 5};
  if (!result.is_memory) return result;
  int base = result.rm;
  const bool has_sib = base == 4;
  if (has_sib) {
    const uint8_t sib = code[result.length++];
    base = sib & 7;
    const int index = (sib >> 3 & 7) + index_bit;
    if (index != 4) {
      result.index = static_cast<int64_t>(Register(context, index) << (sib >> 6));
    }
  }
  if (mod == 0 && base == 5) {
    // Without SIB relative to the next instruction, with SIB absolute; four more bytes either way.
    if (has_sib) Die("an address without base", code);
    result.address = reinterpret_cast<uint64_t>(code) + 9;
  } else {
    result.address = Register(context, base + base_bit);
  }
  if (mod == 1) {
    result.address += static_cast<uint64_t>(int64_t{static_cast<int8_t>(code[result.length])});
    result.length += 1;
  } else if (mod == 2 || (mod == 0 && base == 5)) {
    int32_t displacement = 0;
    std::memcpy(&displacement, code + result.length, sizeof(displacement));
    result.address += static_cast<uint64_t>(int64_t{displacement});
    result.length += 4;
  }
  return result;
}

const char* Execute(const Instruction& i, TileModel* tiles) {
  void* memory = reinterpret_cast<void*>(i.address);
  // 256 * prefix + opcode
  switch (i.prefix << 8 | i.opcode) {
    case 0x049: {
      if (!i.is_memory) return i.reg == 0 && i.rm == 0 ? tiles->Release() : "not AMX";
      if (i.reg != 0) return "not AMX";
      TileConfig config;
      std::memcpy(&config,
                  reinterpret_cast<const void*>(i.address + static_cast<uint64_t>(i.index)),
                  sizeof(config));
      return tiles->Configure(config);
    }
    case 0x349:
      return i.is_memory ? "not AMX" : tiles->Zero(i.reg);
    case 0x34b:
      return i.is_memory ? tiles->Load(i.reg, memory, i.index) : "not AMX";
    case 0x24b:
      return i.is_memory ? tiles->Store(i.reg, memory, i.index) : "not AMX";
    case 0x35e:
      return tiles->DotSigned(i.reg, i.rm, i.vvvv);
    case 0x25c:
      return tiles->DotBf16(i.reg, i.rm, i.vvvv);
    default:
      return "not an AMX instruction that kernels use";
  }
}

std::atomic<int64_t> g_num_products{0};
std::atomic<bool> g_lose_tiles{false};

constexpr bool IsProduct(const Instruction& i) { return i.opcode == 0x5e || i.opcode == 0x5c; }
constexpr bool IsStore(const Instruction& i) { return i.prefix == 2 && i.opcode == 0x4b; }

void OnIllegalInstruction(int /*signal*/, siginfo_t* /*info*/, void* context_pointer) {
  thread_local TileModel tiles;
  auto* context = static_cast<ucontext_t*>(context_pointer);
  auto& rip = context->uc_mcontext.gregs[REG_RIP];
  const auto* code = reinterpret_cast<const uint8_t*>(rip);
  const Instruction instruction = Decode(*context, code);
  if (g_lose_tiles && IsStore(instruction)) tiles.Zero(instruction.reg);
  if (const char* fault = Execute(instruction, &tiles)) Die(fault, code);
  if (IsProduct(instruction)) ++g_num_products;
  rip += instruction.length;
}

bool Install() {
  if (HostCpuFeatures().Best() == Isa::kAmx) return true;
  if (!HostCpuFeatures().avx512_vnni) return false;
  struct sigaction action = {};
  action.sa_sigaction = OnIllegalInstruction;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  return sigaction(SIGILL, &action, nullptr) == 0;
}

}  // namespace

bool InstallAmxEmulator() {
  static const bool runs = Install();
  return runs;
}

bool AmxIsEmulated() { return InstallAmxEmulator() && HostCpuFeatures().Best() < Isa::kAmx; }

int64_t NumEmulatedProducts() { return g_num_products; }

void LoseTilesBeforeStores(bool lose) { g_lose_tiles = lose; }

}  // namespace nibble::kernels::amx
