// What a DLRM does between its matrix products: pooling of rows and its reverse, and the dot
// interaction, forward and backward. No matrix product is here, nor a bias or an activation.
//
// As in rows.cu every operation is one correctly rounded instruction, in the host's order
// (crates/dlrm), and rows are read where their addresses say. Compiled at run time by NVRTC, and
// for the CPU by shim/kernels.h.

typedef unsigned int u32;
typedef unsigned long long u64;

#define ALL_OF_A_WARP 0xffffffffu
#define WARP_THREADS 32u

// Memory that the threads of a block share, of the size that the launch says.
#ifndef SHARED_BY_LAUNCH
#define SHARED_BY_LAUNCH(name) extern __shared__ float name[]
#endif

__device__ __forceinline__ float scaled(float weight, float x) {
    return __fmul_rn(weight, x);
}

__device__ __forceinline__ float4 scaled(float weight, float4 x) {
    return {scaled(weight, x.x), scaled(weight, x.y), scaled(weight, x.z), scaled(weight, x.w)};
}

__device__ __forceinline__ float sum_of(float a, float b) {
    return __fadd_rn(a, b);
}

__device__ __forceinline__ float4 sum_of(float4 a, float4 b) {
    return {sum_of(a.x, b.x), sum_of(a.y, b.y), sum_of(a.z, b.z), sum_of(a.w, b.w)};
}

__device__ __forceinline__ float zero_of(const float*) {
    return 0.0f;
}

__device__ __forceinline__ float4 zero_of(const float4*) {
    return {0.0f, 0.0f, 0.0f, 0.0f};
}

// The rows of bag b are those at places[starts[b]..starts[b + 1]], each times its weight where
// there are weights. Bag b is feature b % features of sample b / features. Vector 0 of a sample is
// another's.
template <typename T>
__device__ __forceinline__ void pool(
    const u64* addresses, const u32* starts, const u32* places, const float* weights, T* out,
    u32 parts, u32 features, u64 samples) {
    const u64 total = samples * features * parts;
    const u64 stride = (u64)gridDim.x * blockDim.x;
    for (u64 at = (u64)blockIdx.x * blockDim.x + threadIdx.x; at < total; at += stride) {
        const u64 bag = at / parts, part = at % parts;
        const u64 sample = bag / features, feature = bag % features;
        const u32 start = starts[bag], end = starts[bag + 1];
        T sum = zero_of(out);
        bool first = true;
        for (u32 p = start; p < end; p++) {
            const T* row = reinterpret_cast<const T*>(addresses[places[p]]);
            if (row == nullptr) continue;
            const T value = weights == nullptr ? row[part] : scaled(weights[p], row[part]);
            sum = first ? value : sum_of(sum, value); // the sign of a zero is the first row's
            first = false;
        }
        out[(sample * (features + 1) + 1 + feature) * parts + part] = sum;
    }
}

// Sums of rows. starts: [samples * features + 1]; places, weights (or none): [starts' last];
// out: [samples, 1 + features, dim]
extern "C" __global__ void pool_rows(
    const u64* __restrict__ addresses, const u32* __restrict__ starts,
    const u32* __restrict__ places, const float* __restrict__ weights, float* __restrict__ out,
    u32 dim, u32 features, u64 samples) {
    pool<float>(addresses, starts, places, weights, out, dim, features, samples);
}

// The same for rows of a multiple of four floats.
extern "C" __global__ void pool_rows_by_four(
    const u64* __restrict__ addresses, const u32* __restrict__ starts,
    const u32* __restrict__ places, const float* __restrict__ weights, float4* __restrict__ out,
    u32 dim, u32 features, u64 samples) {
    pool<float4>(addresses, starts, places, weights, out, dim / 4, features, samples);
}

// gradients[u] = the sum of weights[p] * upstream[places[p]] over p in starts[u]..starts[u + 1], in
// that order: pooling by weights in reverse; without weights it is sum_gradients of rows.cu.
// upstream: [rows of upstream, dim]; places, weights: [starts[n]]; gradients: [n, dim]
extern "C" __global__ void sum_weighted_gradients(
    const float* __restrict__ upstream, const u32* __restrict__ starts,
    const u32* __restrict__ places, const float* __restrict__ weights,
    float* __restrict__ gradients, u32 dim, u64 n) {
    const u64 total = n * dim, stride = (u64)gridDim.x * blockDim.x;
    for (u64 at = (u64)blockIdx.x * blockDim.x + threadIdx.x; at < total; at += stride) {
        const u64 row = at / dim, column = at % dim;
        float sum = 0.0f;
        for (u32 p = starts[row]; p < starts[row + 1]; p++) {
            sum = __fadd_rn(sum, __fmul_rn(weights[p], upstream[(u64)places[p] * dim + column]));
        }
        gradients[at] = sum;
    }
}

// Pairs before those of vector i: it meets the i before it, and perhaps itself.
__device__ __forceinline__ u32 pairs_before(u32 i, u32 with_itself) {
    return with_itself ? i * (i + 1) / 2 : i * (i - 1) / 2;
}

// A sample's vectors into a warp's own part of the shared memory, one float between two vectors, so
// that the same column of 32 vectors lies in 32 banks where dim is even.
__device__ __forceinline__ void take_vectors(
    const float* features, float* mine, u32 vectors, u32 dim, u32 lane) {
    if (dim % 4 == 0) {
        const float4* fours = reinterpret_cast<const float4*>(features);
        const u32 parts = dim / 4;
        for (u32 e = lane; e < vectors * parts; e += WARP_THREADS) {
            const float4 four = fours[e];
            float* to = mine + e / parts * (dim + 1) + e % parts * 4;
            to[0] = four.x;
            to[1] = four.y;
            to[2] = four.z;
            to[3] = four.w;
        }
    } else {
        for (u32 e = lane; e < vectors * dim; e += WARP_THREADS) {
            mine[e / dim * (dim + 1) + e % dim] = features[e];
        }
    }
}

// A warp a sample: vector 0 as it is, then the products (1,0), (2,0), (2,1), (3,0), ..., with (i,i)
// after (i,i-1) if asked for. features: [samples, vectors, dim]; crossed: [samples, width], of which
// the first dim + pairs are written; shared memory: vectors * (dim + 1) floats for each warp of a
// block, which is whole warps
extern "C" __global__ void interact(
    const float* __restrict__ features, float* __restrict__ crossed, u32 vectors, u32 dim,
    u32 width, u32 with_itself, u64 samples) {
    SHARED_BY_LAUNCH(shared);
    const u32 lane = threadIdx.x % WARP_THREADS, warps = blockDim.x / WARP_THREADS;
    float* mine = shared + threadIdx.x / WARP_THREADS * (vectors * (dim + 1));
    const u32 pairs = pairs_before(vectors, with_itself);
    const u64 first = (u64)blockIdx.x * warps + threadIdx.x / WARP_THREADS;
    for (u64 sample = first; sample < samples; sample += (u64)gridDim.x * warps) {
        take_vectors(features + sample * vectors * dim, mine, vectors, dim, lane);
        __syncwarp(ALL_OF_A_WARP);
        float* out = crossed + sample * width;
        for (u32 k = lane; k < dim; k += WARP_THREADS) out[k] = mine[k];
        u32 i = with_itself ? 0 : 1;
        for (u32 p = lane; p < pairs; p += WARP_THREADS) {
            while (pairs_before(i + 1, with_itself) <= p) i++;
            const float* x = mine + i * (dim + 1);
            const float* y = mine + (p - pairs_before(i, with_itself)) * (dim + 1);
            float sum = 0.0f;
            for (u32 k = 0; k < dim; k++) sum = __fadd_rn(sum, __fmul_rn(x[k], y[k]));
            out[dim + p] = sum;
        }
        __syncwarp(ALL_OF_A_WARP); // all have read the vectors before the next ones are written
    }
}

// The gradient by each vector from that by each product, and for vector 0 that by itself too.
// crossed_gradient: [samples, width], of which the first dim + pairs are read; gradient: [samples,
// vectors, dim]; shared memory: vectors * (dim + 1) + pairs floats for each warp of a block, which is
// whole warps
extern "C" __global__ void interact_backward(
    const float* __restrict__ features, const float* __restrict__ crossed_gradient,
    float* __restrict__ gradient, u32 vectors, u32 dim, u32 width, u32 with_itself,
    u64 samples) {
    SHARED_BY_LAUNCH(shared);
    const u32 lane = threadIdx.x % WARP_THREADS, warps = blockDim.x / WARP_THREADS;
    const u32 pairs = pairs_before(vectors, with_itself);
    float* mine = shared + threadIdx.x / WARP_THREADS * (vectors * (dim + 1) + pairs);
    float* slopes = mine + vectors * (dim + 1);
    const u64 first = (u64)blockIdx.x * warps + threadIdx.x / WARP_THREADS;
    for (u64 sample = first; sample < samples; sample += (u64)gridDim.x * warps) {
        const float* from = crossed_gradient + sample * width;
        take_vectors(features + sample * vectors * dim, mine, vectors, dim, lane);
        for (u32 p = lane; p < pairs; p += WARP_THREADS) slopes[p] = from[dim + p];
        __syncwarp(ALL_OF_A_WARP);
        for (u32 e = lane; e < vectors * dim; e += WARP_THREADS) {
            const u32 i = e / dim, k = e % dim;
            const float* before = slopes + pairs_before(i, with_itself);
            const float* column = mine + k;
            float sum = 0.0f;
            for (u32 j = 0; j < i; j++) {
                sum = __fadd_rn(sum, __fmul_rn(before[j], column[j * (dim + 1)]));
            }
            if (with_itself) { // v v has the slope 2 v
                sum = __fadd_rn(
                    sum, __fmul_rn(__fmul_rn(2.0f, before[i]), column[i * (dim + 1)]));
            }
            for (u32 j = i + 1; j < vectors; j++) {
                const float slope = slopes[pairs_before(j, with_itself) + i];
                sum = __fadd_rn(sum, __fmul_rn(slope, column[j * (dim + 1)]));
            }
            if (i == 0) sum = __fadd_rn(sum, from[k]);
            gradient[sample * vectors * dim + e] = sum;
        }
        __syncwarp(ALL_OF_A_WARP); // all have read before the next sample's are written
    }
}
