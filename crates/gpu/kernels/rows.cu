// Rows by their addresses: gather, update, and the sum of a row's gradients. A row lies wherever
// its address says, in device memory or in pinned host memory; address 0 is a row that there is
// not, and is left out. An update is told whether a gradient is not finite. One launch
// serves all tables of one width and one rule.
//
// Every operation is written as one correctly rounded instruction, and none is contracted, so that
// the bits are those of the host's rules (crates/optim). Compiled at run time by NVRTC, and for the
// CPU by shim/run.cpp.

typedef unsigned int u32;
typedef unsigned long long u64;

// Partial sums of a row's squares, as in crates/optim: lane l takes the elements l, l + 8, ...
// That many threads share a row wherever a rule needs the whole of it.
#define LANES 8u
#define ALL_OF_A_WARP 0xffffffffu

// Rows that a thread of a gather reads before it writes any: so many reads are under way at once.
#define READS 4

__device__ __forceinline__ u64 thread_of_grid() {
    return (u64)blockIdx.x * blockDim.x + threadIdx.x;
}

__device__ __forceinline__ u64 threads_of_grid() {
    return (u64)gridDim.x * blockDim.x;
}

template <typename T>
__device__ __forceinline__ void gather(const u64* addresses, T* out, u32 parts, u64 n) {
    const u64 total = n * parts, stride = threads_of_grid();
    for (u64 first = thread_of_grid(); first < total; first += stride * READS) {
        T values[READS];
        bool found[READS];
#pragma unroll
        for (int i = 0; i < READS; i++) {
            const u64 at = first + i * stride;
            found[i] = false;
            if (at < total) {
                const T* row = reinterpret_cast<const T*>(addresses[at / parts]);
                found[i] = row != nullptr;
                if (found[i]) values[i] = row[at % parts];
            }
        }
#pragma unroll
        for (int i = 0; i < READS; i++) {
            if (found[i]) out[first + i * stride] = values[i];
        }
    }
}

// out[i] = the row at addresses[i], for rows of a multiple of four floats. out: [n, dim]
extern "C" __global__ void gather_rows_by_four(
    const u64* __restrict__ addresses, float4* __restrict__ out, u32 dim, u64 n) {
    gather<float4>(addresses, out, dim / 4, n);
}

// The same for rows of any width.
extern "C" __global__ void gather_rows(
    const u64* __restrict__ addresses, float* __restrict__ out, u32 dim, u64 n) {
    gather<float>(addresses, out, dim, n);
}

// *first = the place of the first float that is not finite, if that is before what stood there.
extern "C" __global__ void find_not_finite(
    const float* __restrict__ floats, u64 n, u64* __restrict__ first) {
    const u64 stride = threads_of_grid();
    for (u64 at = thread_of_grid(); at < n; at += stride) {
        if ((__float_as_uint(floats[at]) & 0x7f800000u) == 0x7f800000u) atomicMin(first, at);
    }
}

// What find_not_finite leaves where all are finite.
#define ALL_FINITE (~0ull)

// Whether the gradients of an update are refused: it then changes nothing. `first` may be null.
__device__ __forceinline__ bool refused(const u64* first) {
    return first != nullptr && *first != ALL_FINITE;
}

// gradients[u] = the sum of upstream[places[p]] over p in starts[u]..starts[u + 1], in that order.
// upstream: [rows of upstream, dim]; places: [starts[n]]; gradients: [n, dim]
extern "C" __global__ void sum_gradients(
    const float* __restrict__ upstream, const u32* __restrict__ starts,
    const u32* __restrict__ places, float* __restrict__ gradients, u32 dim, u64 n) {
    const u64 total = n * dim, stride = threads_of_grid();
    for (u64 at = thread_of_grid(); at < total; at += stride) {
        const u64 row = at / dim, column = at % dim;
        float sum = 0.0f;
        for (u32 p = starts[row]; p < starts[row + 1]; p++) {
            sum = __fadd_rn(sum, upstream[(u64)places[p] * dim + column]);
        }
        gradients[at] = sum;
    }
}

// w -= lr g. gradients: [n, dim]
extern "C" __global__ void update_sgd(
    const u64* __restrict__ addresses, const float* __restrict__ gradients, u32 dim, u64 n,
    float rate, const u64* __restrict__ first_refused) {
    if (refused(first_refused)) return;
    const u64 total = n * dim, stride = threads_of_grid();
    for (u64 at = thread_of_grid(); at < total; at += stride) {
        float* row = reinterpret_cast<float*>(addresses[at / dim]);
        if (row == nullptr) continue;
        const u64 column = at % dim;
        row[column] = __fsub_rn(row[column], __fmul_rn(rate, gradients[at]));
    }
}

// acc += g^2; w -= lr g / (sqrt(acc) + eps). states: the accumulators' addresses, [dim] each
extern "C" __global__ void update_adagrad(
    const u64* __restrict__ addresses, const u64* __restrict__ states,
    const float* __restrict__ gradients, u32 dim, u64 n, float rate, float eps,
    const u64* __restrict__ first_refused) {
    if (refused(first_refused)) return;
    const u64 total = n * dim, stride = threads_of_grid();
    for (u64 at = thread_of_grid(); at < total; at += stride) {
        float* row = reinterpret_cast<float*>(addresses[at / dim]);
        float* accumulators = reinterpret_cast<float*>(states[at / dim]);
        if (row == nullptr) continue;
        const u64 column = at % dim;
        const float g = gradients[at];
        const float sum = __fadd_rn(accumulators[column], __fmul_rn(g, g));
        const float step = __fdiv_rn(__fmul_rn(rate, g), __fadd_rn(__fsqrt_rn(sum), eps));
        accumulators[column] = sum;
        row[column] = __fsub_rn(row[column], step);
    }
}

// acc += mean(g^2); w -= lr / (sqrt(acc) + eps) g. states: one accumulator a row.
// The block is a multiple of 32 threads, for all lanes of a warp meet at the sum.
extern "C" __global__ void update_rowwise_adagrad(
    const u64* __restrict__ addresses, const u64* __restrict__ states,
    const float* __restrict__ gradients, u32 dim, u64 n, float rate, float eps,
    const u64* __restrict__ first_refused) {
    if (refused(first_refused)) return;
    const u32 lane = threadIdx.x % LANES;
    const u64 groups = threads_of_grid() / LANES, group = thread_of_grid() / LANES;
    // every lane goes round as often as the first of its warp, with or without a row
    const u64 first = group - group % (32 / LANES);
    for (u64 base = first; base < n; base += groups) {
        const u64 at = base + (group - first);
        float* row = at < n ? reinterpret_cast<float*>(addresses[at]) : nullptr;
        const float* gradient = gradients + at * dim;
        float sum = 0.0f;
        if (row != nullptr) {
            for (u32 i = lane; i < dim; i += LANES) {
                sum = __fadd_rn(sum, __fmul_rn(gradient[i], gradient[i]));
            }
        }
        sum = __fadd_rn(sum, __shfl_xor_sync(ALL_OF_A_WARP, sum, 4));
        sum = __fadd_rn(sum, __shfl_xor_sync(ALL_OF_A_WARP, sum, 2));
        sum = __fadd_rn(sum, __shfl_xor_sync(ALL_OF_A_WARP, sum, 1));
        float accumulator = 0.0f;
        if (row != nullptr) accumulator = *reinterpret_cast<const float*>(states[at]);
        __syncwarp(ALL_OF_A_WARP); // all have read it before one writes it
        if (row == nullptr) continue;
        accumulator = __fadd_rn(accumulator, __fdiv_rn(sum, (float)dim));
        const float scale = __fdiv_rn(rate, __fadd_rn(__fsqrt_rn(accumulator), eps));
        for (u32 i = lane; i < dim; i += LANES) {
            row[i] = __fsub_rn(row[i], __fmul_rn(scale, gradient[i]));
        }
        if (lane == 0) *reinterpret_cast<float*>(states[at]) = accumulator;
    }
}

// base^exponent by repeated squaring, in the host's order of multiplications.
__device__ __forceinline__ double power(double base, u32 exponent) {
    double result = 1.0, square = base;
    while (exponent > 0) {
        if (exponent & 1) result = __dmul_rn(result, square);
        square = __dmul_rn(square, square);
        exponent >>= 1;
    }
    return result;
}

// A row's own count of steps is a float, which stops where floats stop to hold all integers.
#define ROW_STEPS_MAX 16777216.0f

// m += (1 - b1)(g - m); v = b2 v + (1 - b2) g^2;
// w -= lr / (1 - b1^t) m / (sqrt(v) / sqrt(1 - b2^t) + eps). states: m [dim], v [dim], t
extern "C" __global__ void update_adam(
    const u64* __restrict__ addresses, const u64* __restrict__ states,
    const float* __restrict__ gradients, u32 dim, u64 n, float rate, float beta1, float beta2,
    float eps, const u64* __restrict__ first_refused) {
    if (refused(first_refused)) return;
    const u32 lane = threadIdx.x % LANES;
    const u64 groups = threads_of_grid() / LANES, group = thread_of_grid() / LANES;
    const u64 first = group - group % (32 / LANES);
    const float fresh1 = __fsub_rn(1.0f, beta1), fresh2 = __fsub_rn(1.0f, beta2);
    for (u64 base = first; base < n; base += groups) {
        const u64 at = base + (group - first);
        float* row = at < n ? reinterpret_cast<float*>(addresses[at]) : nullptr;
        float* state = row != nullptr ? reinterpret_cast<float*>(states[at]) : nullptr;
        float steps = 0.0f;
        if (row != nullptr) steps = fminf(__fadd_rn(state[2 * (u64)dim], 1.0f), ROW_STEPS_MAX);
        __syncwarp(ALL_OF_A_WARP); // all have read the count before one writes it
        if (row == nullptr) continue;
        const double correction1 = __dsub_rn(1.0, power((double)beta1, (u32)steps));
        const double correction2 = __dsub_rn(1.0, power((double)beta2, (u32)steps));
        const float corrected_rate = __double2float_rn(__ddiv_rn((double)rate, correction1));
        const float root = __double2float_rn(__dsqrt_rn(correction2));
        for (u32 i = lane; i < dim; i += LANES) {
            const float g = gradients[at * dim + i];
            const float m =
                __fadd_rn(state[i], __fmul_rn(fresh1, __fsub_rn(g, state[i])));
            const float v = __fadd_rn(
                __fmul_rn(beta2, state[dim + i]), __fmul_rn(__fmul_rn(fresh2, g), g));
            const float below = __fadd_rn(__fdiv_rn(__fsqrt_rn(v), root), eps);
            state[i] = m;
            state[dim + i] = v;
            row[i] = __fsub_rn(row[i], __fdiv_rn(__fmul_rn(corrected_rate, m), below));
        }
        if (lane == 0) state[2 * (u64)dim] = steps;
    }
}
