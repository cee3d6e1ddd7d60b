// The update rules of crates/optim, an element at a time: what the kernels that update have in
// common, over rows one by one, over rows of several tables and over the dense part. Every operation
// is one correctly rounded instruction, in the host's order, so that the bits are the host's.
// Stands before their sources as they are compiled.

typedef unsigned int u32;
typedef unsigned long long u64;

#define ALL_OF_A_WARP 0xffffffffu

// What find_not_finite leaves where all gradients are finite.
#define ALL_FINITE (~0ull)

// Whether the gradients of an update are refused: it then changes nothing. `first` may be null.
__device__ __forceinline__ bool refused(const u64* first) {
    return first != nullptr && *first != ALL_FINITE;
}

// Threads that share a row where a rule needs the whole of it, and so partial sums of its squares:
// lane l takes the elements l, l + 8, ...
#define ROW_LANES 8u

// A row's own count of steps is a float, which stops where floats stop to hold all integers.
#define ROW_STEPS_MAX 16777216.0f

// What the lanes that share a row have, in all; all lanes of the warp meet.
__device__ __forceinline__ float sum_of_lanes(float sum) {
    sum = __fadd_rn(sum, __shfl_xor_sync(ALL_OF_A_WARP, sum, 4));
    sum = __fadd_rn(sum, __shfl_xor_sync(ALL_OF_A_WARP, sum, 2));
    return __fadd_rn(sum, __shfl_xor_sync(ALL_OF_A_WARP, sum, 1));
}

// w -= rate g
__device__ __forceinline__ void sgd(float& weight, float rate, float g) {
    weight = __fsub_rn(weight, __fmul_rn(rate, g));
}

// acc += g^2; w -= rate g / (sqrt(acc) + eps)
__device__ __forceinline__ void adagrad(
    float& weight, float& accumulator, float rate, float g, float eps) {
    const float sum = __fadd_rn(accumulator, __fmul_rn(g, g));
    const float step = __fdiv_rn(__fmul_rn(rate, g), __fadd_rn(__fsqrt_rn(sum), eps));
    accumulator = sum;
    weight = __fsub_rn(weight, step);
}

// acc += squares / dim, of a row's sum of squares; what its gradient is then multiplied with.
__device__ __forceinline__ float rowwise_adagrad_scale(
    float& accumulator, float squares, u32 dim, float rate, float eps) {
    accumulator = __fadd_rn(accumulator, __fdiv_rn(squares, (float)dim));
    return __fdiv_rn(rate, __fadd_rn(__fsqrt_rn(accumulator), eps));
}

// What Adam takes beside a gradient at a step: the rate and the root of its two corrections.
struct Adam {
    float rate, root, beta1, beta2, eps;
};

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

__device__ __forceinline__ Adam adam_at(
    float steps, float rate, float beta1, float beta2, float eps) {
    const double first = __dsub_rn(1.0, power((double)beta1, (u32)steps));
    const double second = __dsub_rn(1.0, power((double)beta2, (u32)steps));
    const float corrected = __double2float_rn(__ddiv_rn((double)rate, first));
    return {corrected, __double2float_rn(__dsqrt_rn(second)), beta1, beta2, eps};
}

// m += (1 - b1)(g - m); v = b2 v + (1 - b2) g^2; w -= rate m / (sqrt(v) / root + eps)
__device__ __forceinline__ void adam(
    float& weight, float& moment1, float& moment2, float g, const Adam& at) {
    const float fresh1 = __fsub_rn(1.0f, at.beta1), fresh2 = __fsub_rn(1.0f, at.beta2);
    const float m = __fadd_rn(moment1, __fmul_rn(fresh1, __fsub_rn(g, moment1)));
    const float v =
        __fadd_rn(__fmul_rn(at.beta2, moment2), __fmul_rn(__fmul_rn(fresh2, g), g));
    const float below = __fadd_rn(__fdiv_rn(__fsqrt_rn(v), at.root), at.eps);
    moment1 = m;
    moment2 = v;
    weight = __fsub_rn(weight, __fdiv_rn(__fmul_rn(at.rate, m), below));
}
