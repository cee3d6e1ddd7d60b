// Rows by their addresses: gather, update, and the sum of a row's gradients. A row lies wherever
// its address says, in device memory or in pinned host memory; address 0 is a row that there is
// not, and is left out. An update is told whether a gradient is not finite. One launch
// serves all tables of one width and one rule.
//
// The rules are those of rules.cuh. Every operation is written as one correctly rounded instruction,
// and none is contracted, so that the bits are the host's. Compiled at run time by NVRTC, and for the
// CPU by shim/kernels.h.

// Rows that a thread of a gather reads before it writes any: so many reads are under way at once.
#define READS 4

__device__ __forceinline__ u64 thread_of_grid() {
    return (u64)blockIdx.x * blockDim.x + threadIdx.x;
}

__device__ __forceinline__ u64 threads_of_grid() {
    return (u64)gridDim.x * blockDim.x;
}

// Where an element is: its row, and its place there.
struct Element {
    u64 row;
    u32 column;
};

// Where element `at` is, of rows of so many. A division of 64 bits is some hundred instructions,
// one of 32 a fifth of that, and that is enough for nearly all launches.
__device__ __forceinline__ Element element_of(u64 at, u32 columns) {
    if (at <= 0xffffffffull) {
        const u32 low = (u32)at;
        return {low / columns, low % columns};
    }
    return {at / columns, (u32)(at % columns)};
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
                const Element element = element_of(at, parts);
                const T* row = reinterpret_cast<const T*>(addresses[element.row]);
                found[i] = row != nullptr;
                if (found[i]) values[i] = row[element.column];
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
        const Element element = element_of(at, dim);
        float* row = reinterpret_cast<float*>(addresses[element.row]);
        if (row == nullptr) continue;
        sgd(row[element.column], rate, gradients[at]);
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
        const Element element = element_of(at, dim);
        float* row = reinterpret_cast<float*>(addresses[element.row]);
        float* accumulators = reinterpret_cast<float*>(states[element.row]);
        if (row == nullptr) continue;
        adagrad(row[element.column], accumulators[element.column], rate, gradients[at], eps);
    }
}

// acc += mean(g^2); w -= lr / (sqrt(acc) + eps) g. states: one accumulator a row.
// The block is a multiple of 32 threads, for all lanes of a warp meet at the sum.
extern "C" __global__ void update_rowwise_adagrad(
    const u64* __restrict__ addresses, const u64* __restrict__ states,
    const float* __restrict__ gradients, u32 dim, u64 n, float rate, float eps,
    const u64* __restrict__ first_refused) {
    if (refused(first_refused)) return;
    const u32 lane = threadIdx.x % ROW_LANES;
    const u64 groups = threads_of_grid() / ROW_LANES, group = thread_of_grid() / ROW_LANES;
    // every lane goes round as often as the first of its warp, with or without a row
    const u64 first = group - group % (32 / ROW_LANES);
    for (u64 base = first; base < n; base += groups) {
        const u64 at = base + (group - first);
        float* row = at < n ? reinterpret_cast<float*>(addresses[at]) : nullptr;
        const float* gradient = gradients + at * dim;
        float sum = 0.0f;
        if (row != nullptr) {
            for (u32 i = lane; i < dim; i += ROW_LANES) {
                sum = __fadd_rn(sum, __fmul_rn(gradient[i], gradient[i]));
            }
        }
        sum = sum_of_lanes(sum);
        float accumulator = 0.0f;
        if (row != nullptr) accumulator = *reinterpret_cast<const float*>(states[at]);
        __syncwarp(ALL_OF_A_WARP); // all have read it before one writes it
        if (row == nullptr) continue;
        const float scale = rowwise_adagrad_scale(accumulator, sum, dim, rate, eps);
        for (u32 i = lane; i < dim; i += ROW_LANES) sgd(row[i], scale, gradient[i]);
        if (lane == 0) *reinterpret_cast<float*>(states[at]) = accumulator;
    }
}

// m += (1 - b1)(g - m); v = b2 v + (1 - b2) g^2;
// w -= lr / (1 - b1^t) m / (sqrt(v) / sqrt(1 - b2^t) + eps). states: m [dim], v [dim], t
extern "C" __global__ void update_adam(
    const u64* __restrict__ addresses, const u64* __restrict__ states,
    const float* __restrict__ gradients, u32 dim, u64 n, float rate, float beta1, float beta2,
    float eps, const u64* __restrict__ first_refused) {
    if (refused(first_refused)) return;
    const u32 lane = threadIdx.x % ROW_LANES;
    const u64 groups = threads_of_grid() / ROW_LANES, group = thread_of_grid() / ROW_LANES;
    const u64 first = group - group % (32 / ROW_LANES);
    for (u64 base = first; base < n; base += groups) {
        const u64 at = base + (group - first);
        float* row = at < n ? reinterpret_cast<float*>(addresses[at]) : nullptr;
        float* state = row != nullptr ? reinterpret_cast<float*>(states[at]) : nullptr;
        float steps = 0.0f;
        if (row != nullptr) steps = fminf(__fadd_rn(state[2 * (u64)dim], 1.0f), ROW_STEPS_MAX);
        __syncwarp(ALL_OF_A_WARP); // all have read the count before one writes it
        if (row == nullptr) continue;
        const Adam at_step = adam_at(steps, rate, beta1, beta2, eps);
        for (u32 i = lane; i < dim; i += ROW_LANES) {
            adam(row[i], state[i], state[dim + i], gradients[at * dim + i], at_step);
        }
        if (lane == 0) state[2 * (u64)dim] = steps;
    }
}
