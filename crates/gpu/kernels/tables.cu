// Rows of several tables in one launch, whatever their lengths and rules: gather and update, by
// their addresses, as rows.cu does it for one length and one rule. The rows of a run are of one
// length and one rule and stand side by side; a thread finds the run of what it does by a binary
// search over where the runs begin.
//
// As in rows.cu every operation is one correctly rounded instruction, in the host's order
// (crates/optim). Compiled at run time by NVRTC, and for the CPU by shim/kernels.h.

typedef unsigned int u32;
typedef unsigned long long u64;

// Threads that share a row in an update, as in crates/optim: lane l takes the elements l, l + 8,
// ...
#define ROW_LANES 8u
#define ALL_OF_A_WARP 0xffffffffu

// Parts of rows that a thread of a gather reads before it writes any.
#define GATHERS 4

// The last of some runs, which begin in ascending order, the first at 0, that begins at or before a
// place.
template <typename R>
__device__ __forceinline__ R run_at(const R* runs, u32 n, u64 at) {
    u32 low = 0, high = n;
    while (high - low > 1) {
        const u32 middle = low + (high - low) / 2;
        if (runs[middle].begin <= at) low = middle;
        else high = middle;
    }
    return runs[low];
}

// Rows of one length, from place `row` of the list on: their parts, `parts` a row, fewer than
// 2^32, count from `begin` on, their floats in the result from `floats` on. A part is four floats,
// or one.
struct GatherRun {
    u64 begin, floats;
    u32 row, parts, by_four, unused;
};

// out = the rows at the addresses, run after run; what stands at address 0 is left as it is. total:
// parts of all rows
extern "C" __global__ void gather_tables(
    const u64* __restrict__ addresses, float* __restrict__ out,
    const GatherRun* __restrict__ runs, u32 n_runs, u64 total) {
    const u64 stride = (u64)gridDim.x * blockDim.x;
    const u64 begin = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    for (u64 first = begin; first < total; first += stride * GATHERS) {
        float4 values[GATHERS];
        float* places[GATHERS];
        bool by_four[GATHERS];
#pragma unroll
        for (int i = 0; i < GATHERS; i++) {
            const u64 at = first + i * stride;
            places[i] = nullptr;
            if (at >= total) continue;
            const GatherRun run = run_at(runs, n_runs, at);
            const u32 within = (u32)(at - run.begin);
            const u64 address = addresses[run.row + within / run.parts];
            if (address == 0) continue;
            by_four[i] = run.by_four != 0;
            const u32 width = by_four[i] ? 4 : 1;
            const float* row = reinterpret_cast<const float*>(address);
            const float* source = row + width * (within % run.parts);
            places[i] = out + run.floats + (u64)width * within;
            if (by_four[i]) values[i] = *reinterpret_cast<const float4*>(source);
            else values[i].x = *source;
        }
#pragma unroll
        for (int i = 0; i < GATHERS; i++) {
            if (places[i] == nullptr) continue;
            if (by_four[i]) *reinterpret_cast<float4*>(places[i]) = values[i];
            else *places[i] = values[i].x;
        }
    }
}

#define SGD 0u
#define ADAGRAD 1u
#define ROWWISE_ADAGRAD 2u
#define ADAM 3u

// Rows of one length and one rule, from place `begin` of the lists on; their gradients are floats
// from `floats` on. eps of the Adagrads; beta1, beta2 and eps of Adam.
struct UpdateRun {
    u64 floats;
    u32 begin, dim, rule;
    float beta1, beta2, eps;
};

// base^exponent by repeated squaring, in the host's order of multiplications.
__device__ __forceinline__ double power_of(double base, u32 exponent) {
    double result = 1.0, square = base;
    while (exponent > 0) {
        if (exponent & 1) result = __dmul_rn(result, square);
        square = __dmul_rn(square, square);
        exponent >>= 1;
    }
    return result;
}

// A row's own count of steps is a float, which stops where floats stop to hold all integers.
#define STEPS_MAX 16777216.0f

// Adam's corrected rate and the root of its second correction, at that step.
__device__ __forceinline__ float2 corrections(UpdateRun run, float rate, float steps) {
    const double first = __dsub_rn(1.0, power_of((double)run.beta1, (u32)steps));
    const double second = __dsub_rn(1.0, power_of((double)run.beta2, (u32)steps));
    return {
        __double2float_rn(__ddiv_rn((double)rate, first)), __double2float_rn(__dsqrt_rn(second))};
}

// One step of each row's rule (rows.cu has them); rows at address 0 are left out. The block is a
// multiple of 32 threads, for all lanes of a warp meet at the sums. addresses, states: [n], states
// of what has none are not looked at
extern "C" __global__ void update_tables(
    const u64* __restrict__ addresses, const u64* __restrict__ states,
    const float* __restrict__ gradients, const UpdateRun* __restrict__ runs, u32 n_runs, u64 n,
    float rate) {
    const u64 thread = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    const u64 groups = (u64)gridDim.x * blockDim.x / ROW_LANES, group = thread / ROW_LANES;
    const u32 lane = threadIdx.x % ROW_LANES;
    // every lane goes round as often as the first of its warp, with or without a row
    const u64 first = group - group % (32 / ROW_LANES);
    for (u64 base = first; base < n; base += groups) {
        const u64 at = base + (group - first);
        const UpdateRun run = run_at(runs, n_runs, at < n ? at : n - 1);
        const u32 dim = run.dim;
        float* row = at < n ? reinterpret_cast<float*>(addresses[at]) : nullptr;
        const float* gradient = gradients + run.floats + (at - run.begin) * dim;
        float* state = nullptr;
        if (row != nullptr && run.rule != SGD) state = reinterpret_cast<float*>(states[at]);
        float sum = 0.0f, before = 0.0f; // of squares; what all lanes read of the state
        if (row != nullptr && run.rule == ROWWISE_ADAGRAD) {
            for (u32 i = lane; i < dim; i += ROW_LANES) {
                sum = __fadd_rn(sum, __fmul_rn(gradient[i], gradient[i]));
            }
            before = state[0];
        }
        if (row != nullptr && run.rule == ADAM) before = state[2 * (u64)dim];
        sum = __fadd_rn(sum, __shfl_xor_sync(ALL_OF_A_WARP, sum, 4));
        sum = __fadd_rn(sum, __shfl_xor_sync(ALL_OF_A_WARP, sum, 2));
        sum = __fadd_rn(sum, __shfl_xor_sync(ALL_OF_A_WARP, sum, 1));
        __syncwarp(ALL_OF_A_WARP); // all have read what one writes
        if (row == nullptr) continue;
        if (run.rule == SGD) {
            for (u32 i = lane; i < dim; i += ROW_LANES) {
                row[i] = __fsub_rn(row[i], __fmul_rn(rate, gradient[i]));
            }
        } else if (run.rule == ADAGRAD) {
            for (u32 i = lane; i < dim; i += ROW_LANES) {
                const float g = gradient[i];
                const float squares = __fadd_rn(state[i], __fmul_rn(g, g));
                const float below = __fadd_rn(__fsqrt_rn(squares), run.eps);
                state[i] = squares;
                row[i] = __fsub_rn(row[i], __fdiv_rn(__fmul_rn(rate, g), below));
            }
        } else if (run.rule == ROWWISE_ADAGRAD) {
            const float squares = __fadd_rn(before, __fdiv_rn(sum, (float)dim));
            const float scale = __fdiv_rn(rate, __fadd_rn(__fsqrt_rn(squares), run.eps));
            for (u32 i = lane; i < dim; i += ROW_LANES) {
                row[i] = __fsub_rn(row[i], __fmul_rn(scale, gradient[i]));
            }
            if (lane == 0) state[0] = squares;
        } else {
            const float steps = fminf(__fadd_rn(before, 1.0f), STEPS_MAX);
            const float2 corrected = corrections(run, rate, steps);
            const float fresh1 = __fsub_rn(1.0f, run.beta1), fresh2 = __fsub_rn(1.0f, run.beta2);
            for (u32 i = lane; i < dim; i += ROW_LANES) {
                const float g = gradient[i];
                const float m = __fadd_rn(state[i], __fmul_rn(fresh1, __fsub_rn(g, state[i])));
                const float v = __fadd_rn(
                    __fmul_rn(run.beta2, state[dim + i]), __fmul_rn(__fmul_rn(fresh2, g), g));
                const float below = __fadd_rn(__fdiv_rn(__fsqrt_rn(v), corrected.y), run.eps);
                state[i] = m;
                state[dim + i] = v;
                row[i] = __fsub_rn(row[i], __fdiv_rn(__fmul_rn(corrected.x, m), below));
            }
            if (lane == 0) state[2 * (u64)dim] = steps;
        }
    }
}
