// The pretended cuBLASLt: matrices by columns, sums in doubles, and the epilogues that are used.
// TF32 rounds what is multiplied as a device does; which algorithm is advised says nothing.
#pragma once

#include "streams.h"

#include <cstring>

namespace pretended {

void check_memory(const char* call, unsigned long long address, size_t bytes);

inline void check_place(const char* call, const void* place, size_t bytes) {
    check_memory(call, (unsigned long long)(uintptr_t)place, bytes);
}

struct Layout {
    unsigned type; // 0: floats, 14: brain floats
    uint64_t rows, columns;
    int64_t stride;

    size_t width() const { return type == 0 ? 4 : 2; }
    size_t bytes() const { return (((size_t)columns - 1) * (size_t)stride + rows) * width(); }
};

struct Description {
    unsigned compute;
    int32_t transposed_a = 0, transposed_b = 0;
    uint32_t epilogue = 1;
    void* bias = nullptr;
    void* mask = nullptr;
    int64_t mask_stride = 0;
    int32_t bias_type = -1;
};

enum Epilogue : uint32_t {
    NONE = 1,
    BIAS = 4,
    BIAS_RELU = 6,
    BIAS_RELU_MASK = 134,
    RELU_GRADIENT = 152,
};

struct Algorithm {
    uint64_t data[8];
};
struct Heuristic {
    Algorithm algorithm;
    size_t workspace_bytes;
    unsigned state;
    float waves;
    int reserved[4];
};

// An element, as it is multiplied.
inline float element(const Layout& layout, unsigned compute, const void* matrix, size_t at) {
    uint32_t bits;
    if (layout.type == 0) {
        std::memcpy(&bits, static_cast<const float*>(matrix) + at, sizeof bits);
        const bool number = (bits & 0x7fffffffu) < 0x7f800000u;
        if (compute == 77 && number) bits = (bits + 0x1000u) & ~0x1fffu; // 10 bits of fraction
    } else {
        bits = (uint32_t) static_cast<const uint16_t*>(matrix)[at] << 16;
    }
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// c[:, j] += a[:, k] b[k, j], column after column
__attribute__((optimize("O3"))) inline void add_columns(
    double* __restrict__ sums, const double* __restrict__ column, double factor, size_t rows) {
    for (size_t i = 0; i < rows; i++) sums[i] += column[i] * factor;
}

inline void multiply(
    const Description& how, const void* a, const Layout& x, const void* b, const Layout& y, void* d,
    const Layout& z) {
    const size_t m = z.rows, n = z.columns, k = how.transposed_a ? x.rows : x.columns;
    std::vector<double> left(m * k); // by columns
    for (size_t l = 0; l < k; l++) {
        for (size_t i = 0; i < m; i++) {
            const size_t at = how.transposed_a ? i * (size_t)x.stride + l : l * (size_t)x.stride + i;
            left[l * m + i] = element(x, how.compute, a, at);
        }
    }
    std::vector<double> sums(m), by_row(m, 0.0);
    auto* bits = static_cast<unsigned char*>(how.mask);
    for (size_t j = 0; j < n; j++) {
        std::fill(sums.begin(), sums.end(), 0.0);
        for (size_t l = 0; l < k; l++) {
            const size_t at = how.transposed_b ? l * (size_t)y.stride + j : j * (size_t)y.stride + l;
            add_columns(sums.data(), &left[l * m], element(y, how.compute, b, at), m);
        }
        for (size_t i = 0; i < m; i++) {
            float value = (float)sums[i];
            const size_t bit = j * (size_t)how.mask_stride + i;
            if (how.epilogue == BIAS || how.epilogue == BIAS_RELU || how.epilogue == BIAS_RELU_MASK) {
                value += static_cast<const float*>(how.bias)[i];
                if (how.epilogue != BIAS && value < 0) value = 0;
            }
            if (how.epilogue == BIAS_RELU_MASK) {
                const unsigned char one = (unsigned char)(1u << bit % 8);
                bits[bit / 8] = (unsigned char)((bits[bit / 8] & ~one) | (value > 0 ? one : 0));
            }
            if (how.epilogue == RELU_GRADIENT) {
                if (!(bits[bit / 8] >> bit % 8 & 1)) value = 0;
                by_row[i] += value;
            }
            const size_t at = j * (size_t)z.stride + i;
            if (z.type == 0) {
                static_cast<float*>(d)[at] = value;
            } else {
                uint32_t word;
                std::memcpy(&word, &value, sizeof word);
                word += 0x7fff + (word >> 16 & 1);
                static_cast<uint16_t*>(d)[at] = (uint16_t)(word >> 16);
            }
        }
    }
    if (how.epilogue == RELU_GRADIENT) {
        for (size_t i = 0; i < m; i++) static_cast<float*>(how.bias)[i] = (float)by_row[i];
    }
}

inline bool fits(const Description& how, const Layout& x, const Layout& y, const Layout& z) {
    const uint64_t m = how.transposed_a ? x.columns : x.rows;
    const uint64_t k = how.transposed_a ? x.rows : x.columns;
    const uint64_t inner = how.transposed_b ? y.columns : y.rows;
    const uint64_t n = how.transposed_b ? y.rows : y.columns;
    if (m != z.rows || n != z.columns || k != inner) return false;
    const bool masked = how.epilogue == BIAS_RELU_MASK || how.epilogue == RELU_GRADIENT;
    if (masked && (how.mask_stride % 128 != 0 || (uint64_t)how.mask_stride < z.rows)) return false;
    // the bias has the type of the result, unless it is said to be of another
    if (how.epilogue != NONE && (how.bias_type < 0 ? z.type : (unsigned)how.bias_type) != 0) return false;
    switch (how.epilogue) {
    case NONE: case BIAS: case BIAS_RELU: case BIAS_RELU_MASK: case RELU_GRADIENT: return true;
    default: return false;
    }
}

} // namespace pretended

extern "C" {

using pretended::Algorithm;
using pretended::Description;
using pretended::Heuristic;
using pretended::Layout;

size_t cublasLtGetVersion() {
    const char* version = std::getenv("CUBLASLT_VERSION");
    return version == nullptr ? 130002 : std::strtoul(version, nullptr, 10);
}
int cublasLtCreate(void** handle) { return *handle = new int(0), 0; }
int cublasLtDestroy(void* handle) { return delete static_cast<int*>(handle), 0; }
int cublasLtMatmulDescCreate(void** description, unsigned compute, unsigned scale) {
    if (compute != 68 && compute != 77) return 7;
    if (scale != 0) return 7;
    auto* made = new Description;
    made->compute = compute;
    return *description = made, 0;
}
int cublasLtMatmulDescDestroy(void* description) {
    return delete static_cast<Description*>(description), 0;
}
int cublasLtMatmulDescSetAttribute(
    void* description, unsigned attribute, const void* value, size_t bytes) {
    auto& how = *static_cast<Description*>(description);
    const auto set = [&](auto& field) {
        if (bytes != sizeof field) return 7;
        return std::memcpy(&field, value, bytes), 0;
    };
    switch (attribute) {
    case 3: return set(how.transposed_a);
    case 4: return set(how.transposed_b);
    case 7: return set(how.epilogue);
    case 8: return set(how.bias);
    case 11: return set(how.mask);
    case 12: return set(how.mask_stride);
    case 26: return set(how.bias_type);
    default: pretended::refuse("cublasLtMatmulDescSetAttribute", "one that is not pretended");
    }
}
int cublasLtMatrixLayoutCreate(
    void** layout, unsigned type, uint64_t rows, uint64_t columns, int64_t stride) {
    if (rows == 0 || columns == 0 || stride < (int64_t)rows) return 7;
    return *layout = new Layout{type, rows, columns, stride}, 0;
}
int cublasLtMatrixLayoutDestroy(void* layout) { return delete static_cast<Layout*>(layout), 0; }
int cublasLtMatmulPreferenceCreate(void** preference) { return *preference = new int(0), 0; }
int cublasLtMatmulPreferenceDestroy(void* preference) {
    return delete static_cast<int*>(preference), 0;
}
int cublasLtMatmulPreferenceSetAttribute(void*, unsigned, const void*, size_t) { return 0; }
int cublasLtMatmulAlgoGetHeuristic(
    void*, void* how, void* a, void* b, void* c, void*, void*, int, Heuristic* found, int* count) {
    *found = {};
    const bool fused = static_cast<Description*>(how)->epilogue != pretended::NONE;
    const bool refused = fused && std::getenv("REFUSE_EPILOGUES") != nullptr;
    *count = !refused && pretended::fits(
        *static_cast<Description*>(how), *static_cast<Layout*>(a), *static_cast<Layout*>(b),
        *static_cast<Layout*>(c));
    return 0;
}

int cublasLtMatmul(
    void*, void* description, const float* alpha, const void* a, void* a_layout, const void* b,
    void* b_layout, const float* beta, const void*, void*, void* d, void* d_layout, const Algorithm*,
    void*, size_t, void* stream) {
    constexpr const char* call = "cublasLtMatmul";
    const Description how = *static_cast<Description*>(description);
    const Layout x = *static_cast<Layout*>(a_layout), y = *static_cast<Layout*>(b_layout),
                 z = *static_cast<Layout*>(d_layout);
    if (*alpha != 1 || *beta != 0) pretended::refuse(call, "factors that are not pretended");
    if (!pretended::fits(how, x, y, z)) return 7;
    const char* late = std::getenv("REFUSE_LATE");
    if (late != nullptr && how.epilogue != pretended::NONE) {
        const bool all = std::strcmp(late, "all") == 0;
        if (all || how.epilogue == (unsigned)std::atoi(late)) return 15; // not supported
    }
    pretended::check_place(call, a, x.bytes());
    pretended::check_place(call, b, y.bytes());
    pretended::check_place(call, d, z.bytes());
    if (how.epilogue != pretended::NONE) pretended::check_place(call, how.bias, z.rows * 4);
    if (how.epilogue == pretended::BIAS_RELU_MASK || how.epilogue == pretended::RELU_GRADIENT) {
        pretended::check_place(call, how.mask, (size_t)how.mask_stride * z.columns / 8);
    }
    pretended::all.add(call, stream, [=] { pretended::multiply(how, a, x, b, y, d, z); });
    return 0;
}

} // extern "C"
