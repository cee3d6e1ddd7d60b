// The dot interaction by tensor cores, forward and backward: what network.cu does in 32-bit floats,
// with each number rounded to TF32 or to a 16-bit brain float as it is multiplied, and sums in 32
// bits. A warp a sample, in tiles of 16 vectors; what a tile has beyond the vectors is zero.
//
// A product of two vectors sums over their floats in any order, as long as both sides have the
// same one. So a lane reads four floats that lie side by side, and takes them for the columns of
// a tile that the instruction wants of that lane: no vector goes through shared memory. Compiled at
// run time by NVRTC, and for the CPU by shim/kernels.h.

typedef unsigned int u32;
typedef unsigned long long u64;

#define ALL_OF_A_WARP 0xffffffffu
#define WARP_THREADS 32u

// Rows of a tile, and floats of a vector, or vectors, that are multiplied at once.
#define TILE 16u
// Floats between two rows of slopes beyond a row's own: lanes of a warp then read from all banks.
#define BETWEEN 4u

#ifndef SHARED_BY_LAUNCH
// Aligned for the vectors of four floats in which slopes are read.
#define SHARED_BY_LAUNCH(name) extern __shared__ __align__(16) float name[]
#endif

// What the shim has of its own: roundings, and a tile of 16 x 8 sums to which products of a left
// side of 16 rows and a right side of 8 columns are added. Which lane has which part of each is as
// the instruction says, in shim/tensor.h and in CUDA's manual alike.
#ifndef TENSOR_CORES_BY_SHIM
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#define TENSOR_CORES(instruction) __trap() // nobody launches these there
#else
#define TENSOR_CORES(instruction) instruction
#endif

// The nearest number of 10 bits of fraction, ties away from zero.
__device__ __forceinline__ u32 round_to_tf32(float x) {
    u32 word = 0;
    TENSOR_CORES(asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(word) : "f"(x)));
    return word;
}

// The nearest brain floats, ties to even.
__device__ __forceinline__ u32 round_to_brains(float low, float high) {
    u32 word = 0;
    TENSOR_CORES(asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low)));
    return word;
}

__device__ __forceinline__ void multiply_tf32(
    float (&sums)[4], const u32 (&left)[4], const u32 (&right)[2]) {
    TENSOR_CORES(asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right[0]), "r"(right[1])));
}

__device__ __forceinline__ void multiply_brains(
    float (&sums)[4], const u32 (&left)[4], const u32 (&right)[2]) {
    TENSOR_CORES(asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right[0]), "r"(right[1])));
}
#endif

// What four floats of a row are to an instruction: two words for each of the steps that it takes
// to multiply TILE floats.
struct Tf32 {
    static constexpr u32 STEPS = 2;

    static __device__ __forceinline__ void take(float4 x, u32 (&words)[STEPS][2]) {
        words[0][0] = round_to_tf32(x.x);
        words[0][1] = round_to_tf32(x.y);
        words[1][0] = round_to_tf32(x.z);
        words[1][1] = round_to_tf32(x.w);
    }

    static __device__ __forceinline__ void multiply(
        float (&sums)[4], const u32 (&left)[4], const u32 (&right)[2]) {
        multiply_tf32(sums, left, right);
    }
};

struct Brains {
    static constexpr u32 STEPS = 1;

    static __device__ __forceinline__ void take(float4 x, u32 (&words)[STEPS][2]) {
        words[0][0] = round_to_brains(x.x, x.y);
        words[0][1] = round_to_brains(x.z, x.w);
    }

    static __device__ __forceinline__ void multiply(
        float (&sums)[4], const u32 (&left)[4], const u32 (&right)[2]) {
        multiply_brains(sums, left, right);
    }
};

// A lane's part of a row of a left side, or of a column of a right side.
template <typename In>
struct Part {
    u32 words[In::STEPS][2];

    __device__ __forceinline__ explicit Part(float4 x) { In::take(x, words); }
};

// Adds the products of a left side's rows, of which a lane has one among the first eight and one
// among the others, and of a right side's columns, of which it has one.
template <typename In>
__device__ __forceinline__ void add_products(
    float (&sums)[4], const Part<In>& upper, const Part<In>& lower, const Part<In>& column) {
#pragma unroll
    for (u32 step = 0; step < In::STEPS; step++) {
        const u32 left[4] = {
            upper.words[step][0], lower.words[step][0], upper.words[step][1], lower.words[step][1]};
        In::multiply(sums, left, column.words[step]);
    }
}

// Where a lane stands in an instruction: it has rows, or columns, `group` and `group + 8`, and of
// each so many numbers from 4 * `within` on.
struct Place {
    u32 group, within;
};

__device__ __forceinline__ Place place_of(u32 lane) {
    return {lane / 4, lane % 4};
}

// Products before those of vector i, as in network.cu.
__device__ __forceinline__ u32 products_before(u32 i, u32 with_itself) {
    return with_itself ? i * (i + 1) / 2 : i * (i - 1) / 2;
}

// Four floats of a vector, zero beyond the vectors and beyond their floats.
__device__ __forceinline__ float4 four_of(
    const float* features, u32 vectors, u32 dim, u32 vector, u32 first) {
    if (vector >= vectors || first >= dim) return {0.0f, 0.0f, 0.0f, 0.0f};
    return *reinterpret_cast<const float4*>(features + (u64)vector * dim + first);
}

// The products of 16 vectors from `top` on with 16 from `left` on, into a sample's list of them.
template <typename In>
__device__ __forceinline__ void cross_tiles(
    const float* features, float* products, u32 vectors, u32 dim, u32 with_itself, u32 top,
    u32 left, Place place) {
    float sums[2][4] = {};
    const u32 upper_at = top + place.group, lower_at = upper_at + 8;
    const u32 columns_at = left + place.group;
    for (u32 first = 0; first < dim; first += TILE) {
        const u32 at = first + 4 * place.within;
        const Part<In> upper(four_of(features, vectors, dim, upper_at, at));
        const Part<In> lower(four_of(features, vectors, dim, lower_at, at));
        if (top == left) { // for all lanes alike: a row is a column too
            add_products(sums[0], upper, lower, upper);
            add_products(sums[1], upper, lower, lower);
        } else {
            const Part<In> before(four_of(features, vectors, dim, columns_at, at));
            const Part<In> behind(four_of(features, vectors, dim, columns_at + 8, at));
            add_products(sums[0], upper, lower, before);
            add_products(sums[1], upper, lower, behind);
        }
    }
#pragma unroll
    for (u32 i = 0; i < 8; i++) {
        const u32 row = upper_at + i % 4 / 2 * 8;
        const u32 column = left + i / 4 * 8 + 2 * place.within + i % 2;
        if (row < vectors && column < row + with_itself) {
            products[products_before(row, with_itself) + column] = sums[i / 4][i % 4];
        }
    }
}

template <typename In>
__device__ __forceinline__ void cross(
    const float* features, float* crossed, u32 vectors, u32 dim, u32 width, u32 with_itself,
    u64 samples) {
    SHARED_BY_LAUNCH(shared);
    const u32 lane = threadIdx.x % WARP_THREADS, warps = blockDim.x / WARP_THREADS;
    const u32 pairs = products_before(vectors, with_itself);
    float* products = shared + threadIdx.x / WARP_THREADS * pairs;
    const u64 begin = (u64)blockIdx.x * warps + threadIdx.x / WARP_THREADS;
    for (u64 sample = begin; sample < samples; sample += (u64)gridDim.x * warps) {
        const float* own = features + sample * vectors * dim;
        for (u32 top = 0; top < vectors; top += TILE) {
            for (u32 left = 0; left <= top; left += TILE) {
                cross_tiles<In>(
                    own, products, vectors, dim, with_itself, top, left, place_of(lane));
            }
        }
        __syncwarp(ALL_OF_A_WARP);
        float* out = crossed + sample * width;
        for (u32 k = lane; k < dim; k += WARP_THREADS) out[k] = own[k];
        for (u32 p = lane; p < pairs; p += WARP_THREADS) out[dim + p] = products[p];
        __syncwarp(ALL_OF_A_WARP); // all have read the products before the next ones are written
    }
}

// As `interact` of network.cu, for vectors of a multiple of four floats. features: [samples,
// vectors, dim]; crossed: [samples, width], of which the first dim + pairs are written; shared
// memory: pairs floats for each warp of a block, which is whole warps
extern "C" __global__ void interact_tf32(
    const float* __restrict__ features, float* __restrict__ crossed, u32 vectors, u32 dim,
    u32 width, u32 with_itself, u64 samples) {
    cross<Tf32>(features, crossed, vectors, dim, width, with_itself, samples);
}

extern "C" __global__ void interact_brains(
    const float* __restrict__ features, float* __restrict__ crossed, u32 vectors, u32 dim,
    u32 width, u32 with_itself, u64 samples) {
    cross<Brains>(features, crossed, vectors, dim, width, with_itself, samples);
}

// A sample's slopes as a square, symmetric: that of vectors i and j stands at i, j and at j, i.
__device__ __forceinline__ void take_slopes(
    const float* from, float* square, u32 stride, u32 pairs, u32 with_itself, u32 lane) {
    u32 i = with_itself ? 0 : 1;
    for (u32 p = lane; p < pairs; p += WARP_THREADS) {
        while (products_before(i + 1, with_itself) <= p) i++;
        const u32 j = p - products_before(i, with_itself);
        const float slope = i == j ? __fmul_rn(2.0f, from[p]) : from[p]; // v v has the slope 2 v
        square[i * stride + j] = slope;
        square[j * stride + i] = slope;
    }
}

// The gradients by 32 vectors from `top` on, in 16 columns from `first` on. crossed_gradient and
// gradient: the sample's own
template <typename In>
__device__ __forceinline__ void gradient_tiles(
    const float* features, const float* square, const float* crossed_gradient, float* gradient,
    u32 vectors, u32 dim, u32 padded, u32 top, u32 first, Place place) {
    const u32 stride = padded + BETWEEN;
    float sums[2][2][4] = {}; // of each tile of 16 rows, of even and of odd columns
    const u32 column = first + 2 * place.group;
    for (u32 below = 0; below < padded; below += TILE) {
        const u32 at = below + 4 * place.within;
        float2 rows[4];
#pragma unroll
        for (u32 r = 0; r < 4; r++) {
            rows[r] = {0.0f, 0.0f};
            if (at + r < vectors && column < dim) {
                const float* row = features + (u64)(at + r) * dim;
                rows[r] = *reinterpret_cast<const float2*>(row + column);
            }
        }
        const Part<In> even(float4{rows[0].x, rows[1].x, rows[2].x, rows[3].x});
        const Part<In> odd(float4{rows[0].y, rows[1].y, rows[2].y, rows[3].y});
#pragma unroll
        for (u32 tile = 0; tile < 2; tile++) {
            const u32 row = top + tile * TILE + place.group;
            if (top + tile * TILE >= padded) continue; // for all lanes alike
            const float* slopes = square + row * stride + at;
            const Part<In> upper(*reinterpret_cast<const float4*>(slopes));
            const Part<In> lower(*reinterpret_cast<const float4*>(slopes + 8 * stride));
            add_products(sums[tile][0], upper, lower, even);
            add_products(sums[tile][1], upper, lower, odd);
        }
    }
    const u32 to = first + 4 * place.within;
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        const u32 row = top + i / 2 * TILE + i % 2 * 8 + place.group;
        if (row >= vectors || to >= dim) continue;
        const u32 half = i % 2 * 2;
        const float(&both)[2][4] = sums[i / 2];
        float4 sum = {both[0][half], both[1][half], both[0][half + 1], both[1][half + 1]};
        if (row == 0) { // it is in the result by itself too
            sum.x = __fadd_rn(sum.x, crossed_gradient[to]);
            sum.y = __fadd_rn(sum.y, crossed_gradient[to + 1]);
            sum.z = __fadd_rn(sum.z, crossed_gradient[to + 2]);
            sum.w = __fadd_rn(sum.w, crossed_gradient[to + 3]);
        }
        // counted in fours, or the compiler would store them one by one
        reinterpret_cast<float4*>(gradient)[((u64)row * dim + to) / 4] = sum;
    }
}

template <typename In>
__device__ __forceinline__ void cross_backward(
    const float* features, const float* crossed_gradient, float* gradient, u32 vectors, u32 dim,
    u32 width, u32 with_itself, u64 samples) {
    SHARED_BY_LAUNCH(shared);
    const u32 lane = threadIdx.x % WARP_THREADS, warps = blockDim.x / WARP_THREADS;
    const u32 pairs = products_before(vectors, with_itself);
    const u32 padded = (vectors + TILE - 1) / TILE * TILE, stride = padded + BETWEEN;
    float* square = shared + threadIdx.x / WARP_THREADS * (padded * stride);
    // what no slope is written to stays zero
    for (u32 e = lane; e < padded * stride; e += WARP_THREADS) square[e] = 0.0f;
    __syncwarp(ALL_OF_A_WARP);
    const u64 begin = (u64)blockIdx.x * warps + threadIdx.x / WARP_THREADS;
    for (u64 sample = begin; sample < samples; sample += (u64)gridDim.x * warps) {
        const float* from = crossed_gradient + sample * width;
        const u64 own = sample * vectors * dim;
        take_slopes(from + dim, square, stride, pairs, with_itself, lane);
        __syncwarp(ALL_OF_A_WARP);
        for (u32 top = 0; top < vectors; top += 2 * TILE) {
            for (u32 first = 0; first < dim; first += TILE) {
                gradient_tiles<In>(
                    features + own, square, from, gradient + own, vectors, dim, padded, top,
                    first, place_of(lane));
            }
        }
        __syncwarp(ALL_OF_A_WARP); // all have read before the next sample's are written
    }
}

// As `interact_backward` of network.cu, for vectors of a multiple of four floats.
// crossed_gradient: [samples, width], of which the first dim + pairs are read; gradient: [samples,
// vectors, dim]; shared memory: padded * (padded + BETWEEN) floats for each warp of a block, which
// is whole warps, padded being vectors rounded up to a multiple of TILE
extern "C" __global__ void interact_backward_tf32(
    const float* __restrict__ features, const float* __restrict__ crossed_gradient,
    float* __restrict__ gradient, u32 vectors, u32 dim, u32 width, u32 with_itself,
    u64 samples) {
    cross_backward<Tf32>(
        features, crossed_gradient, gradient, vectors, dim, width, with_itself, samples);
}

extern "C" __global__ void interact_backward_brains(
    const float* __restrict__ features, const float* __restrict__ crossed_gradient,
    float* __restrict__ gradient, u32 vectors, u32 dim, u32 width, u32 with_itself,
    u64 samples) {
    cross_backward<Brains>(
        features, crossed_gradient, gradient, vectors, dim, width, with_itself, samples);
}
