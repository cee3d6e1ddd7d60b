// What a training step does around its matrix products: bias and ReLU, both ways, the loss, the
// sums of gradients by bias and by row, and the update of the dense part. No matrix product is
// here, and no interaction (network.cu).
//
// What changes from step to step, such as a learning rate or how many rows there are, is read from
// device memory, so that a launch can be recorded once and played again. Every sum has an order
// that follows from the sizes alone, not from the grid. As in rows.cu every operation is one
// correctly rounded instruction; compiled at run time by NVRTC, and for the CPU by shim/kernels.h.

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

// Rows whose gradients by a bias are summed one after the other; the sums of such stretches are
// then summed by so many lanes.
#define STRETCH 64u
#define STRETCH_LANES 8u
#define STRETCH_COLUMNS 32u

// A row with more gradients than these has a block of its own.
#define FEW 32u

#define BLOCK_THREADS 256u

__device__ __forceinline__ u64 place_in_grid() {
    return (u64)blockIdx.x * blockDim.x + threadIdx.x;
}

__device__ __forceinline__ u64 threads_in_all() {
    return (u64)gridDim.x * blockDim.x;
}

__device__ __forceinline__ float plus(float a, float b) {
    return __fadd_rn(a, b);
}

__device__ __forceinline__ float4 plus(float4 a, float4 b) {
    return {plus(a.x, b.x), plus(a.y, b.y), plus(a.z, b.z), plus(a.w, b.w)};
}

__device__ __forceinline__ float times(float a, float b) {
    return __fmul_rn(a, b);
}

__device__ __forceinline__ float4 times(float a, float4 b) {
    return {times(a, b.x), times(a, b.y), times(a, b.z), times(a, b.w)};
}

__device__ __forceinline__ float nothing(const float*) {
    return 0.0f;
}

__device__ __forceinline__ float4 nothing(const float4*) {
    return {0.0f, 0.0f, 0.0f, 0.0f};
}

// What is no number stays, so that the loss tells of it.
__device__ __forceinline__ float cut(float x, u32 rectify) {
    return rectify && x < 0.0f ? 0.0f : x;
}

// values += bias, then nothing below zero if asked for. Widths are multiples of four.
// values: [rows, width]; bias: [width]
extern "C" __global__ void add_bias(
    float4* __restrict__ values, const float4* __restrict__ bias, u32 width, u64 rows,
    u32 rectify) {
    const u32 parts = width / 4;
    const u64 total = rows * parts, stride = threads_in_all();
    for (u64 at = place_in_grid(); at < total; at += stride) {
        const float4 sum = plus(values[at], bias[at % parts]);
        values[at] = {
            cut(sum.x, rectify), cut(sum.y, rectify), cut(sum.z, rectify), cut(sum.w, rectify)};
    }
}

// gradient = 0 where the output of a ReLU is not above zero (no output: nowhere); then the sum of
// each stretch of rows. gradient, output: [rows, width]; sums: [stretches, width]
extern "C" __global__ void cut_and_sum(
    float* __restrict__ gradient, const float* __restrict__ output, float* __restrict__ sums,
    u32 width, u64 rows) {
    const u64 stretches = (rows + STRETCH - 1) / STRETCH;
    const u64 total = stretches * width, stride = threads_in_all();
    for (u64 at = place_in_grid(); at < total; at += stride) {
        const u64 first = at / width * STRETCH, column = at % width;
        const u64 end = first + STRETCH < rows ? first + STRETCH : rows;
        float sum = 0.0f;
#pragma unroll 4
        for (u64 row = first; row < end; row++) {
            const u64 place = row * width + column;
            float g = gradient[place];
            if (output != nullptr && !(output[place] > 0.0f)) {
                g = 0.0f;
                gradient[place] = g;
            }
            sum = plus(sum, g);
        }
        sums[at] = sum;
    }
}

// The sums of all stretches. A block is BLOCK_THREADS threads. sums: [stretches, width];
// bias_gradient: [width]
extern "C" __global__ void sum_stretches(
    const float* __restrict__ sums, float* __restrict__ bias_gradient, u32 width, u64 stretches) {
    __shared__ float lanes[STRETCH_LANES][STRETCH_COLUMNS];
    const u32 lane = threadIdx.x / STRETCH_COLUMNS, within = threadIdx.x % STRETCH_COLUMNS;
    for (u32 base = blockIdx.x * STRETCH_COLUMNS; base < width;
         base += gridDim.x * STRETCH_COLUMNS) {
        const u32 column = base + within;
        float sum = 0.0f;
        if (column < width) {
            for (u64 s = lane; s < stretches; s += STRETCH_LANES) {
                sum = plus(sum, sums[s * width + column]);
            }
        }
        lanes[lane][within] = sum;
        __syncthreads();
        if (lane == 0 && column < width) {
            float four[4];
#pragma unroll
            for (u32 i = 0; i < 4; i++) four[i] = plus(lanes[i][within], lanes[i + 4][within]);
            bias_gradient[column] = plus(plus(four[0], four[2]), plus(four[1], four[3]));
        }
        __syncthreads(); // all is read before the next columns' sums are written
    }
}

// What a logit stands for, so that nothing overflows far out.
__device__ __forceinline__ double probability_of(double logit) {
    const double tail = exp(-fabs(logit));
    return logit < 0.0 ? tail / (1.0 + tail) : 1.0 / (1.0 + tail);
}

// PyTorch's BCELoss lets no logarithm fall below this.
#define LOG_MIN -100.0

// Each sample's loss, and the gradient of their mean by its logit: cross-entropy, or the squared
// error of the probability. logits, gradient: a sample's at every stride-th; losses: [samples]
extern "C" __global__ void loss_of_logits(
    const float* __restrict__ logits, const float* __restrict__ labels,
    float* __restrict__ gradient, double* __restrict__ losses, u32 stride, u64 samples,
    u32 squared) {
    const u64 step = threads_in_all();
    for (u64 at = place_in_grid(); at < samples; at += step) {
        const double logit = logits[at * stride], label = labels[at];
        const double p = probability_of(logit), off = p - label;
        double loss, slope;
        if (squared) {
            loss = off * off;
            slope = 2.0 * off * p * (1.0 - p);
        } else {
            // log p = -softplus(-z), log(1 - p) = -softplus(z) = log p - z
            const double tail = log1p(exp(-fabs(logit)));
            const double log_p = (logit < 0.0 ? logit : 0.0) - tail;
            const double log_not_p = (logit > 0.0 ? -logit : 0.0) - tail;
            loss = -(label * (log_p < LOG_MIN ? LOG_MIN : log_p) +
                     (1.0 - label) * (log_not_p < LOG_MIN ? LOG_MIN : log_not_p));
            slope = off;
        }
        losses[at] = logit == logit ? loss : logit; // what is no number must be seen
        gradient[at * stride] = __double2float_rn(slope / (double)samples);
    }
}

// The mean of the losses, by one block of BLOCK_THREADS threads. losses: [samples]; mean: [1]
extern "C" __global__ void mean_of_losses(
    const double* __restrict__ losses, float* __restrict__ mean, u64 samples) {
    __shared__ double parts[BLOCK_THREADS];
    double sum = 0.0;
    for (u64 at = threadIdx.x; at < samples; at += BLOCK_THREADS) sum += losses[at];
    parts[threadIdx.x] = sum;
    __syncthreads();
    for (u32 half = BLOCK_THREADS / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) parts[threadIdx.x] += parts[threadIdx.x + half];
        __syncthreads();
    }
    if (threadIdx.x == 0) mean[0] = __double2float_rn(parts[0] / (double)samples);
}

// probabilities: [samples]; logits: a sample's at every stride-th
extern "C" __global__ void probabilities_of(
    const float* __restrict__ logits, float* __restrict__ probabilities, u32 stride,
    u64 samples) {
    const u64 step = threads_in_all();
    for (u64 at = place_in_grid(); at < samples; at += step) {
        probabilities[at] = __double2float_rn(probability_of(logits[at * stride]));
    }
}

// Some columns of a matrix into another. from, to: rows at every stride-th float
extern "C" __global__ void copy_columns(
    const float* __restrict__ from, u64 from_stride, float* __restrict__ to, u64 to_stride,
    u32 columns, u64 rows) {
    const u64 total = rows * columns, stride = threads_in_all();
    for (u64 at = place_in_grid(); at < total; at += stride) {
        const u64 row = at / columns, column = at % columns;
        to[row * to_stride + column] = from[row * from_stride + column];
    }
}

// The nearest 16-bit brain floats, ties to even. floats, brains: [n]
extern "C" __global__ void to_brain(
    const float* __restrict__ floats, u16* __restrict__ brains, u64 n) {
    const u64 stride = threads_in_all();
    for (u64 at = place_in_grid(); at < n; at += stride) {
        const u32 bits = __float_as_uint(floats[at]);
        const bool number = (bits & 0x7fffffffu) <= 0x7f800000u;
        brains[at] = number ? (u16)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)
                            : (u16)(bits >> 16 | 0x40u); // it stays what is no number
    }
}

// The rules of crates/optim over the whole dense part. weights, gradient and states: [n]; rates:
// the learning rate (of Adam: over its first correction), and the root of Adam's second correction

// w -= lr g
extern "C" __global__ void step_sgd(
    float* __restrict__ weights, const float* __restrict__ gradient, u64 n,
    const float* __restrict__ rates) {
    const float rate = rates[0];
    const u64 stride = threads_in_all();
    for (u64 at = place_in_grid(); at < n; at += stride) {
        sgd(weights[at], rate, gradient[at]);
    }
}

// acc += g^2; w -= lr g / (sqrt(acc) + eps)
extern "C" __global__ void step_adagrad(
    float* __restrict__ weights, float* __restrict__ accumulators,
    const float* __restrict__ gradient, u64 n, const float* __restrict__ rates, float eps) {
    const float rate = rates[0];
    const u64 stride = threads_in_all();
    for (u64 at = place_in_grid(); at < n; at += stride) {
        adagrad(weights[at], accumulators[at], rate, gradient[at], eps);
    }
}

// m += (1 - b1)(g - m); v = b2 v + (1 - b2) g^2; w -= rate m / (sqrt(v) / root + eps)
extern "C" __global__ void step_adam(
    float* __restrict__ weights, float* __restrict__ moments1, float* __restrict__ moments2,
    const float* __restrict__ gradient, u64 n, const float* __restrict__ rates, float beta1,
    float beta2, float eps) {
    const Adam at_step = {rates[0], rates[1], beta1, beta2, eps};
    const u64 stride = threads_in_all();
    for (u64 at = place_in_grid(); at < n; at += stride) {
        adam(weights[at], moments1[at], moments2[at], gradient[at], at_step);
    }
}

// Sums of rows' gradients. The gradients of row u are the vectors at places[starts[u]..starts[u +
// 1]] of upstream, each times its weight where there are weights. counts: how many rows there are,
// and how many of them have more than FEW.

// Rows of few, each by one thread a part, in order; others are left out.
template <typename T>
__device__ __forceinline__ void sum_few(
    const T* upstream, const u32* starts, const u32* places, const float* weights, T* gradients,
    const u64* counts, u32 parts) {
    const u64 total = counts[0] * parts, stride = threads_in_all();
    for (u64 at = place_in_grid(); at < total; at += stride) {
        const u64 row = at / parts, part = at % parts;
        const u32 start = starts[row], end = starts[row + 1];
        if (end - start > FEW) continue;
        T sum = nothing(gradients);
        for (u32 p = start; p < end; p++) {
            const T g = upstream[(u64)places[p] * parts + part];
            sum = plus(sum, weights == nullptr ? g : times(weights[p], g));
        }
        gradients[at] = sum;
    }
}

// Rows of many, each by one block of BLOCK_THREADS threads: group g takes the vectors g, g +
// groups, ... in order, and the groups' sums are summed in order. many: which rows
template <typename T>
__device__ __forceinline__ void sum_many(
    const T* upstream, const u32* starts, const u32* places, const float* weights, T* gradients,
    const u32* many, const u64* counts, u32 parts, T* sums) {
    const u32 width = parts < BLOCK_THREADS ? parts : BLOCK_THREADS;
    const u32 groups = BLOCK_THREADS / width;
    const u32 group = threadIdx.x / width, within = threadIdx.x % width;
    for (u64 i = blockIdx.x; i < counts[1]; i += gridDim.x) {
        const u64 row = many[i];
        const u32 start = starts[row], end = starts[row + 1];
        for (u32 base = 0; base < parts; base += width) {
            const u32 part = base + within;
            T sum = nothing(gradients);
            if (group < groups && part < parts) {
#pragma unroll 4
                for (u32 p = start + group; p < end; p += groups) {
                    const T g = upstream[(u64)places[p] * parts + part];
                    sum = plus(sum, weights == nullptr ? g : times(weights[p], g));
                }
            }
            sums[threadIdx.x] = sum;
            __syncthreads();
            if (group == 0 && part < parts) {
                for (u32 g = 1; g < groups; g++) sum = plus(sum, sums[g * width + within]);
                gradients[row * parts + part] = sum;
            }
            __syncthreads(); // all is read before the next sums are written
        }
    }
}

extern "C" __global__ void sum_rows_of_few(
    const float* __restrict__ upstream, const u32* __restrict__ starts,
    const u32* __restrict__ places, const float* __restrict__ weights,
    float* __restrict__ gradients, const u64* __restrict__ counts, u32 dim) {
    sum_few<float>(upstream, starts, places, weights, gradients, counts, dim);
}

extern "C" __global__ void sum_rows_of_few_by_four(
    const float4* __restrict__ upstream, const u32* __restrict__ starts,
    const u32* __restrict__ places, const float* __restrict__ weights,
    float4* __restrict__ gradients, const u64* __restrict__ counts, u32 dim) {
    sum_few<float4>(upstream, starts, places, weights, gradients, counts, dim / 4);
}

extern "C" __global__ void sum_rows_of_many(
    const float* __restrict__ upstream, const u32* __restrict__ starts,
    const u32* __restrict__ places, const float* __restrict__ weights,
    float* __restrict__ gradients, const u32* __restrict__ many, const u64* __restrict__ counts,
    u32 dim) {
    __shared__ float sums[BLOCK_THREADS];
    sum_many<float>(upstream, starts, places, weights, gradients, many, counts, dim, sums);
}

extern "C" __global__ void sum_rows_of_many_by_four(
    const float4* __restrict__ upstream, const u32* __restrict__ starts,
    const u32* __restrict__ places, const float* __restrict__ weights,
    float4* __restrict__ gradients, const u32* __restrict__ many,
    const u64* __restrict__ counts, u32 dim) {
    __shared__ float4 sums[BLOCK_THREADS];
    sum_many<float4>(upstream, starts, places, weights, gradients, many, counts, dim / 4, sums);
}
