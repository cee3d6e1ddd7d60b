// Kernels with the faults that the shim must find, and one that uses all that the others do not.

extern "C" __global__ void barrier_that_half_reach(float* out) {
    if (threadIdx.x % 2 == 0) __syncwarp(0xffffffffu);
    out[0] = 1.0f;
}

extern "C" __global__ void lane_outside_its_mask(float* out) {
    out[threadIdx.x] = __shfl_xor_sync(0x0000ffffu, out[threadIdx.x], 1);
}

extern "C" __global__ void one_float_too_far(float* out, unsigned n) {
    out[n] = 1.0f;
}

// sums[b] = the sum of the block's numbers, over shared memory, with barriers; all = of all blocks
extern "C" __global__ void block_sums(const unsigned* numbers, unsigned* sums, unsigned* all) {
    __shared__ unsigned parts[256];
    const unsigned t = threadIdx.x;
    parts[t] = numbers[blockIdx.x * blockDim.x + t];
    __syncthreads();
    for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
        if (t < half) parts[t] += parts[t + half];
        __syncthreads();
    }
    if (t == 0) {
        sums[blockIdx.x] = parts[0];
        atomicAdd(all, parts[0]);
    }
}

extern "C" __global__ void one_shared_float_too_far(float* out, unsigned n) {
    SHARED_BY_LAUNCH(shared);
    shared[n] = 1.0f;
    out[0] = shared[0];
}
