// Rows of several tables in one launch, whatever their lengths and rules: gather and update, by
// their addresses, as rows.cu does it for one length and one rule. The rows of a run are of one
// length and one rule and stand side by side; a thread finds the run of what it does by a binary
// search over where the runs begin (pieces.cuh). The rules are those of rules.cuh. Compiled at run
// time by NVRTC, and for the CPU by shim/kernels.h.

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
    copy_parts(total, [=](u64 at) -> RowPart {
        const GatherRun run = piece_at(runs, n_runs, at);
        const u32 within = (u32)(at - run.begin);
        const u64 address = addresses[run.row + within / run.parts];
        if (address == 0) return {nullptr, nullptr, false};
        const u32 width = run.by_four != 0 ? 4 : 1;
        const float* row = reinterpret_cast<const float*>(address);
        float* to = out + run.floats + (u64)width * within;
        return {row + width * (within % run.parts), to, run.by_four != 0};
    });
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

// One step of each row's rule (rows.cu has them); rows at address 0 are left out. The block is a
// multiple of 32 threads, for all lanes of a warp meet at the sums. addresses, states: [n], states
// of what has none are not looked at
extern "C" __global__ void update_tables(
    const u64* __restrict__ addresses, const u64* __restrict__ states,
    const float* __restrict__ gradients, const UpdateRun* __restrict__ runs, u32 n_runs, u64 n,
    float rate, const u64* __restrict__ first_refused) {
    if (refused(first_refused)) return;
    const u64 thread = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    const u64 groups = (u64)gridDim.x * blockDim.x / ROW_LANES, group = thread / ROW_LANES;
    const u32 lane = threadIdx.x % ROW_LANES;
    // every lane goes round as often as the first of its warp, with or without a row
    const u64 first = group - group % (32 / ROW_LANES);
    for (u64 base = first; base < n; base += groups) {
        const u64 at = base + (group - first);
        const UpdateRun run = piece_at(runs, n_runs, at < n ? at : n - 1);
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
        sum = sum_of_lanes(sum);
        __syncwarp(ALL_OF_A_WARP); // all have read what one writes
        if (row == nullptr) continue;
        if (run.rule == SGD) {
            for (u32 i = lane; i < dim; i += ROW_LANES) sgd(row[i], rate, gradient[i]);
        } else if (run.rule == ADAGRAD) {
            for (u32 i = lane; i < dim; i += ROW_LANES) {
                adagrad(row[i], state[i], rate, gradient[i], run.eps);
            }
        } else if (run.rule == ROWWISE_ADAGRAD) {
            const float scale = rowwise_adagrad_scale(before, sum, dim, rate, run.eps);
            for (u32 i = lane; i < dim; i += ROW_LANES) sgd(row[i], scale, gradient[i]);
            if (lane == 0) state[0] = before;
        } else {
            const float steps = fminf(__fadd_rn(before, 1.0f), ROW_STEPS_MAX);
            const Adam at_step = adam_at(steps, rate, run.beta1, run.beta2, run.eps);
            for (u32 i = lane; i < dim; i += ROW_LANES) {
                adam(row[i], state[i], state[dim + i], gradient[i], at_step);
            }
            if (lane == 0) state[2 * (u64)dim] = steps;
        }
    }
}
