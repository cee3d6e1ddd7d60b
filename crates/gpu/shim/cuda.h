// CUDA's words for a kernel that runs on the CPU: each thread of a block is a fiber, and fibers
// hand over at barriers. What a device leaves undefined ends the program with a message: threads
// of a block that wait at different barriers, a lane outside its own mask, a shuffle from such a
// lane.
//
// It models no caches, no memory order and no races: one fiber runs at a time, from one barrier to
// the next.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <ucontext.h>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#define __global__
#define __device__
#define __forceinline__ inline
#define __shared__ static thread_local

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};

// Memory that a block shares, as long as the launch says: the sanitizer sees its end.
#define SHARED_BY_LAUNCH(name) float* name = cuda_on_cpu::block.shared.get()

extern dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace cuda_on_cpu {

constexpr unsigned WARP = 32;
constexpr size_t STACK_BYTES = 128 << 10;

[[noreturn]] inline void undefined(const char* what) {
    std::fprintf(
        stderr, "undefined on a device: %s (block %u, thread %u)\n", what, blockIdx.x, threadIdx.x);
    std::_Exit(3); // from a fiber: what runs at an exit expects the first stack
}

struct Barrier {
    unsigned arrived = 0;
    uint64_t generation = 0;
};

struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    bool finished = false;
};

struct Warp {
    Barrier barrier;
    unsigned mask = 0;
    uint64_t values[WARP];
    unsigned fragments[WARP][6]; // of a tile's left and right side: tensor.h
};

// The one block that runs.
struct Block {
    ucontext_t scheduler;
    std::vector<Fiber> fibers;
    std::vector<Warp> warps;
    Barrier barrier;
    std::unique_ptr<float[]> shared;
    unsigned current = 0, live = 0;
    uint64_t progress = 0;
    void (*body)(void*) = nullptr;
    void* argument = nullptr;
    void* scheduler_stack = nullptr; // for the address sanitizer alone
    const void* scheduler_bottom = nullptr;
    size_t scheduler_bytes = 0;
};

extern Block block;

void hand_over();

inline void wait_at(Barrier& barrier, unsigned expected) {
    const uint64_t generation = barrier.generation;
    if (++barrier.arrived == expected) {
        barrier.arrived = 0;
        barrier.generation++;
        block.progress++;
        return;
    }
    while (barrier.generation == generation) hand_over();
}

inline unsigned lane() { return threadIdx.x % WARP; }

inline Warp& warp(unsigned mask) {
    if (blockDim.y != 1 || blockDim.z != 1) undefined("the shim knows warps of one dimension only");
    if (!(mask >> lane() & 1)) undefined("a lane outside its own mask");
    Warp& warp = block.warps[threadIdx.x / WARP];
    if (warp.barrier.arrived == 0) warp.mask = mask;
    if (warp.mask != mask) undefined("lanes of a warp meet with different masks");
    return warp;
}

inline void sync_warp(unsigned mask) {
    Warp& here = warp(mask);
    wait_at(here.barrier, (unsigned)__builtin_popcount(mask));
}

template <typename T>
T exchange(unsigned mask, T value, unsigned source) {
    static_assert(sizeof(T) <= 8, "a shuffle moves at most eight bytes");
    Warp& here = warp(mask);
    if (!(mask >> source & 1)) undefined("a shuffle from a lane outside the mask");
    std::memcpy(&here.values[lane()], &value, sizeof value);
    wait_at(here.barrier, (unsigned)__builtin_popcount(mask));
    std::memcpy(&value, &here.values[source], sizeof value);
    sync_warp(mask); // before the next exchange writes over the values
    return value;
}

inline void start() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(
        nullptr, &block.scheduler_bottom, &block.scheduler_bytes);
#endif
    block.body(block.argument);
    block.fibers[block.current].finished = true;
    block.live--;
    block.progress++;
    // those that wait for the whole block wait no longer for a thread that has ended
    if (block.barrier.arrived > 0 && block.barrier.arrived == block.live) {
        block.barrier.arrived = 0;
        block.barrier.generation++;
    }
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(nullptr, block.scheduler_bottom, block.scheduler_bytes);
#endif
    swapcontext(&block.fibers[block.current].context, &block.scheduler);
}

inline void hand_over() {
#if defined(__SANITIZE_ADDRESS__)
    void* own = nullptr;
    __sanitizer_start_switch_fiber(&own, block.scheduler_bottom, block.scheduler_bytes);
#endif
    swapcontext(&block.fibers[block.current].context, &block.scheduler);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(own, &block.scheduler_bottom, &block.scheduler_bytes);
#endif
}

// Runs `body` once for every thread of the grid, block after block.
template <typename F>
void launch(unsigned grid, unsigned threads, unsigned shared_bytes, F body) {
    gridDim = dim3{grid, 1, 1};
    blockDim = dim3{threads, 1, 1};
    block.body = [](void* f) { (*static_cast<F*>(f))(); };
    block.argument = &body;
    while (block.fibers.size() < threads) {
        block.fibers.push_back(Fiber{{}, std::make_unique<char[]>(STACK_BYTES), false});
    }
    for (unsigned number = 0; number < grid; number++) {
        blockIdx = dim3{number, 0, 0};
        block.warps.assign((threads + WARP - 1) / WARP, Warp{});
        block.barrier = Barrier{};
        block.shared.reset(new float[shared_bytes / sizeof(float)]);
        // what a device leaves there is anything: here it is what no sum survives
        std::fill_n(block.shared.get(), shared_bytes / sizeof(float), NAN);
        block.live = threads;
        for (unsigned i = 0; i < threads; i++) {
            Fiber& fiber = block.fibers[i];
            fiber.finished = false;
            getcontext(&fiber.context);
            fiber.context.uc_stack.ss_sp = fiber.stack.get();
            fiber.context.uc_stack.ss_size = STACK_BYTES;
            fiber.context.uc_link = nullptr;
            makecontext(&fiber.context, start, 0);
        }
        while (block.live > 0) {
            const uint64_t before = block.progress;
            for (unsigned i = 0; i < threads; i++) {
                if (block.fibers[i].finished) continue;
                threadIdx = dim3{i, 0, 0};
                block.current = i;
#if defined(__SANITIZE_ADDRESS__)
                __sanitizer_start_switch_fiber(
                    &block.scheduler_stack, block.fibers[i].stack.get(), STACK_BYTES);
#endif
                swapcontext(&block.scheduler, &block.fibers[i].context);
#if defined(__SANITIZE_ADDRESS__)
                __sanitizer_finish_switch_fiber(block.scheduler_stack, nullptr, nullptr);
#endif
            }
            if (block.progress == before)
                undefined("threads wait at barriers that others never reach");
        }
    }
}

// Bit l is what lane l of the mask says.
inline unsigned ballot(unsigned mask, bool said) {
    Warp& here = warp(mask);
    here.values[lane()] = said;
    wait_at(here.barrier, (unsigned)__builtin_popcount(mask));
    unsigned bits = 0;
    for (unsigned l = 0; l < WARP; l++) {
        if (mask >> l & 1 && here.values[l]) bits |= 1u << l;
    }
    sync_warp(mask); // before the next exchange writes over the values
    return bits;
}

} // namespace cuda_on_cpu

inline unsigned __ballot_sync(unsigned mask, int said) {
    return cuda_on_cpu::ballot(mask, said != 0);
}
inline void __syncthreads() {
    cuda_on_cpu::wait_at(cuda_on_cpu::block.barrier, cuda_on_cpu::block.live);
}
inline void __syncwarp(unsigned mask) { cuda_on_cpu::sync_warp(mask); }
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, unsigned bits) {
    return cuda_on_cpu::exchange(mask, value, cuda_on_cpu::lane() ^ bits);
}
template <typename T>
T __shfl_sync(unsigned mask, T value, unsigned source) {
    return cuda_on_cpu::exchange(mask, value, source % cuda_on_cpu::WARP);
}
template <typename T>
T atomicAdd(T* place, T value) {
    const T before = *place;
    *place = before + value;
    return before;
}

template <typename T>
T atomicMin(T* place, T value) {
    const T before = *place;
    if (value < before) *place = value;
    return before;
}

// What a device's operation brings that is no number: one and the same, whatever went in.
inline float canonical(float x) {
    const unsigned bits = 0x7fffffffu;
    if (x != x) std::memcpy(&x, &bits, sizeof x);
    return x;
}

// Built with -ffp-contract=off, each is one correctly rounded operation.
inline float __fadd_rn(float a, float b) { return canonical(a + b); }
inline float __fsub_rn(float a, float b) { return canonical(a - b); }
inline float __fmul_rn(float a, float b) { return canonical(a * b); }
inline float __fdiv_rn(float a, float b) { return canonical(a / b); }
inline float __fsqrt_rn(float a) { return canonical(std::sqrt(a)); }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __dsqrt_rn(double a) { return std::sqrt(a); }
inline float __double2float_rn(double a) { return canonical((float)a); }
inline unsigned __float_as_uint(float a) {
    unsigned bits;
    std::memcpy(&bits, &a, sizeof bits);
    return bits;
}
