// The kernels' source for the CPU, found by their names and launched with the addresses of their
// arguments' values, as the driver does it.
#pragma once

#include "cuda.h"
#include "tensor.h"

#include "../kernels/pieces.cuh"

#include "../kernels/rules.cuh"

#include "../kernels/rows.cu"

#include "../kernels/tables.cu"

#include "../kernels/network.cu"

#include "../kernels/tensor.cu"

#include "../kernels/cache.cu"

#include "../kernels/dense.cu"
#ifdef WITH_FAULTS
#include "faults.cu"
#endif

#include <functional>
#include <string>
#include <tuple>

namespace cuda_on_cpu {

template <typename... A, size_t... I>
void unpack(void (*kernel)(A...), void** values, std::index_sequence<I...>) {
    kernel(*static_cast<A*>(values[I])...);
}

template <typename... A>
bool run(
    void (*kernel)(A...), unsigned grid, unsigned threads, unsigned shared_bytes, void** values,
    size_t count) {
    if (count != sizeof...(A)) return false;
    launch(grid, threads, shared_bytes, [&] {
        unpack(kernel, values, std::index_sequence_for<A...>{});
    });
    return true;
}

// A launch with its arguments' values, to be run later, once or often.
template <typename... A, size_t... I>
std::function<void()> bound(
    void (*kernel)(A...), unsigned grid, unsigned threads, unsigned shared_bytes, void** values,
    std::index_sequence<I...>) {
    const std::tuple<A...> held(*static_cast<A*>(values[I])...);
    return [=] { launch(grid, threads, shared_bytes, [&] { std::apply(kernel, held); }); };
}

template <typename... A>
std::function<void()> bound(
    void (*kernel)(A...), unsigned grid, unsigned threads, unsigned shared_bytes, void** values) {
    return bound(kernel, grid, threads, shared_bytes, values, std::index_sequence_for<A...>{});
}

template <typename... A>
constexpr size_t arity(void (*)(A...)) {
    return sizeof...(A);
}

#define ALL_KERNELS(DO) \
    DO(gather_rows_by_four) \
    DO(gather_rows) \
    DO(find_not_finite) \
    DO(sum_gradients) \
    DO(update_sgd) \
    DO(update_adagrad) \
    DO(update_rowwise_adagrad) \
    DO(update_adam) \
    DO(gather_tables) \
    DO(update_tables) \
    DO(pool_rows) \
    DO(pool_rows_by_four) \
    DO(sum_weighted_gradients) \
    DO(interact) \
    DO(interact_backward) \
    DO(interact_tf32) \
    DO(interact_brains) \
    DO(interact_backward_tf32) \
    DO(interact_backward_brains) \
    DO(find_slots) \
    DO(insert_slots) \
    DO(clear_slots) \
    DO(move_rows)

#define DENSE_KERNELS(DO) \
    DO(add_bias) \
    DO(cut_and_sum) \
    DO(sum_stretches) \
    DO(loss_of_logits) \
    DO(mean_of_losses) \
    DO(probabilities_of) \
    DO(copy_columns) \
    DO(to_brain) \
    DO(step_sgd) \
    DO(step_adagrad) \
    DO(step_adam) \
    DO(sum_rows_of_few) \
    DO(sum_rows_of_few_by_four) \
    DO(sum_rows_of_many) \
    DO(sum_rows_of_many_by_four)

#ifdef WITH_FAULTS
#define FAULTS(DO) \
    DO(barrier_that_half_reach) \
    DO(lane_outside_its_mask) \
    DO(one_float_too_far) \
    DO(block_sums) \
    DO(one_shared_float_too_far)
#else
#define FAULTS(DO)
#endif

// How many arguments a kernel takes; -1 where there is no such kernel.
inline int arguments_of(const std::string& name) {
#define ARITY(kernel) \
    if (name == #kernel) return (int)arity(kernel);
    ALL_KERNELS(ARITY)
    DENSE_KERNELS(ARITY)
    FAULTS(ARITY)
#undef ARITY
    return -1;
}

// Whether there is such a kernel, which takes that many arguments; if so it has run.
inline bool run_by_name(
    const std::string& name, unsigned grid, unsigned threads, unsigned shared_bytes, void** values,
    size_t count) {
#define RUN(kernel) \
    if (name == #kernel) return run(kernel, grid, threads, shared_bytes, values, count);
    ALL_KERNELS(RUN)
    DENSE_KERNELS(RUN)
    FAULTS(RUN)
#undef RUN
    return false;
}

// A launch of the kernel of that name, which there is, to be run later.
inline std::function<void()> bound_by_name(
    const std::string& name, unsigned grid, unsigned threads, unsigned shared_bytes,
    void** values) {
#define BOUND(kernel) \
    if (name == #kernel) return bound(kernel, grid, threads, shared_bytes, values);
    ALL_KERNELS(BOUND)
    DENSE_KERNELS(BOUND)
    FAULTS(BOUND)
#undef BOUND
    undefined("a kernel that there is not");
}

} // namespace cuda_on_cpu
