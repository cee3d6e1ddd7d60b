// Tensor cores for kernels that run on the CPU: the two roundings, and the two instructions, which
// take a left side of 16 rows, a right side of 8 columns and a tile of 16 x 8 sums from where the
// PTX manual has them: spread over the lanes of a warp, all of which take part.
//
// How a device rounds between its sums it does not say; here each product is exact, and each sum of
// an instruction is rounded once.
#pragma once

#include "cuda.h"

#define TENSOR_CORES_BY_SHIM

namespace cuda_on_cpu {

// Adds products to the four sums that a lane has. A word holds HALVES numbers.
template <unsigned HALVES, typename Number>
void multiply_tile(
    float (&sums)[4], const unsigned (&left)[4], const unsigned (&right)[2], Number number) {
    constexpr unsigned ALL = 0xffffffffu;
    Warp& here = warp(ALL);
    for (unsigned i = 0; i < 4; i++) here.fragments[lane()][i] = left[i];
    for (unsigned i = 0; i < 2; i++) here.fragments[lane()][4 + i] = right[i];
    wait_at(here.barrier, WARP);
    const unsigned group = lane() / 4, within = lane() % 4;
    for (unsigned i = 0; i < 4; i++) {
        // row and column of the sum that a lane has in its place i
        const unsigned row = group + i / 2 * 8, column = 2 * within + i % 2;
        double sum = sums[i];
        for (unsigned k = 0; k < 8 * HALVES; k++) {
            // k counts numbers of a row: HALVES to a word, four words, then the other four
            const unsigned word = k / HALVES, half = k % HALVES;
            const unsigned a = here.fragments[row % 8 * 4 + word % 4][row / 8 + word / 4 * 2];
            const unsigned b = here.fragments[column * 4 + word % 4][4 + word / 4];
            sum += (double)number(a, half) * (double)number(b, half);
        }
        sums[i] = (float)sum;
    }
    sync_warp(ALL); // before the next instruction writes over what was said
}

inline float float_of(unsigned bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline unsigned brain_of(float x) {
    unsigned bits;
    std::memcpy(&bits, &x, sizeof bits);
    if (x != x) return 0x7fff;
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

} // namespace cuda_on_cpu

inline unsigned round_to_tf32(float x) {
    unsigned bits;
    std::memcpy(&bits, &x, sizeof bits);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fffffffu;
    // beyond the largest number infinity comes of itself; infinity stays, its fraction being zero
    return (bits + 0x1000u) & ~0x1fffu;
}
inline unsigned round_to_brains(float low, float high) {
    return cuda_on_cpu::brain_of(high) << 16 | cuda_on_cpu::brain_of(low);
}
inline void multiply_tf32(
    float (&sums)[4], const unsigned (&left)[4], const unsigned (&right)[2]) {
    // whoever did not round has the rest cut off, as on a device
    cuda_on_cpu::multiply_tile<1>(sums, left, right, [](unsigned word, unsigned) {
        return cuda_on_cpu::float_of(word & ~0x1fffu);
    });
}
inline void multiply_brains(
    float (&sums)[4], const unsigned (&left)[4], const unsigned (&right)[2]) {
    cuda_on_cpu::multiply_tile<2>(sums, left, right, [](unsigned word, unsigned half) {
        return cuda_on_cpu::float_of(half == 0 ? word << 16 : word & 0xffff0000u);
    });
}
