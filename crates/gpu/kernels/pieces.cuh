// Launches over pieces of a list, each with a length of its own: to find the piece of a place, and
// to copy rows part by part. Stands before the sources that use it as they are compiled.

typedef unsigned int u32;
typedef unsigned long long u64;

// Parts of rows that a thread reads before it writes any: so many reads are under way at once,
// which the bus to the host's memory needs most.
#define COPIES 4

// The last of some pieces, which begin in ascending order, the first at 0, that begins at or before
// a place.
template <typename P>
__device__ __forceinline__ P piece_at(const P* pieces, u32 n, u64 at) {
    u32 low = 0, high = n;
    while (high - low > 1) {
        const u32 middle = low + (high - low) / 2;
        if (pieces[middle].begin <= at) low = middle;
        else high = middle;
    }
    return pieces[low];
}

// A part of a row on its way: four floats, or one; to nowhere goes none.
struct RowPart {
    const float* from;
    float* to;
    bool by_four;
};

// Copies `total` parts; `part_at` says from where and to where each goes.
template <typename F>
__device__ __forceinline__ void copy_parts(u64 total, F part_at) {
    const u64 stride = (u64)gridDim.x * blockDim.x;
    const u64 begin = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    for (u64 first = begin; first < total; first += stride * COPIES) {
        float4 values[COPIES];
        RowPart parts[COPIES];
#pragma unroll
        for (int i = 0; i < COPIES; i++) {
            const u64 at = first + i * stride;
            parts[i] = {nullptr, nullptr, false};
            if (at < total) parts[i] = part_at(at);
            if (parts[i].to == nullptr) continue;
            const float* from = parts[i].from;
            if (parts[i].by_four) values[i] = *reinterpret_cast<const float4*>(from);
            else values[i].x = *from;
        }
#pragma unroll
        for (int i = 0; i < COPIES; i++) {
            if (parts[i].to == nullptr) continue;
            if (parts[i].by_four) *reinterpret_cast<float4*>(parts[i].to) = values[i];
            else *parts[i].to = values[i].x;
        }
    }
}
