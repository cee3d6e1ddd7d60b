// A pretended CUDA: what the crate calls of the driver, of the run-time compiler and of cuBLASLt,
// with the host's memory for the device's and the kernels' own source for their code. Programs of
// ours run against it as they would against CUDA, so that all that they do before and after a
// kernel is executed where there is no device. Every handle, address and length that they hand
// over is checked; what CUDA would refuse or leave undefined ends the program with a message.
//
// It shows nothing about a device: work is done before a call returns, so that a missing wait for a
// stream goes unseen; its code is no code, its clock the host's, and its products plain loops.
// FLIP_A_BIT_OF, a kernel's name: its first launch comes out wrong, so that a test sees that found.
// FAIL_AFTER_LAUNCHES, a number: launches after so many are refused, and so is all that waits.
#include "kernels.h"

#include <chrono>
#include <map>
#include <mutex>
#include <set>

dim3 threadIdx, blockIdx, blockDim, gridDim;
namespace cuda_on_cpu {
Block block;
}

namespace {

using Address = unsigned long long;
constexpr int SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_FOUND = 500;
constexpr int LAUNCH_FAILED = 719;
constexpr size_t MEMORY_BYTES = 3ull << 30;

[[noreturn]] void refuse(const char* call, const char* what) {
    std::fprintf(stderr, "pretended CUDA: %s: %s\n", call, what);
    std::_Exit(3);
}

// Guards all that follows: programs call from many threads.
std::recursive_mutex everything;
using Guard = std::lock_guard<std::recursive_mutex>;

// The bytes that the program has, by where they begin: 1 for the device's, 2 for pinned ones, 3 for
// the program's own that it registered.
struct Held {
    size_t bytes;
    int kind;
};
std::map<Address, Held> memory;
size_t device_bytes = 0;
bool has_context = false;
bool failed = false; // a device that failed once does nothing more
thread_local bool entered = false;

void check_memory(const char* call, Address address, size_t bytes) {
    const Guard guard(everything);
    auto after = memory.upper_bound(address);
    if (after == memory.begin()) refuse(call, "an address that nobody has");
    --after;
    if (address + bytes > after->first + after->second.bytes) {
        refuse(call, "bytes beyond the end of what was allocated");
    }
}

void check_context(const char* call) {
    if (!has_context || !entered) refuse(call, "the calling thread has no context");
}

struct Stream {};
struct Event {
    bool recorded = false;
    std::chrono::steady_clock::time_point time;
};
struct Module {
    std::vector<std::unique_ptr<std::string>> names;
};
std::set<void*> streams, events, modules;

// Of a row it does not matter whether the bytes were given out in one piece.
void check_row(const std::string& kernel, Address address, size_t bytes) {
    while (bytes > 0) {
        auto after = memory.upper_bound(address);
        if (after == memory.begin()) refuse(kernel.c_str(), "a row that nobody has");
        --after;
        const Address end = after->first + after->second.bytes;
        if (address >= end) refuse(kernel.c_str(), "a row where the device does not reach");
        const size_t here = std::min<size_t>(bytes, end - address);
        address += here;
        bytes -= here;
    }
}

// Kernels that take rows by their addresses: every row is where the device reaches it.
void check_rows(const std::string& kernel, void** values) {
    const auto list = [&](int i) { return *static_cast<const Address**>(values[i]); };
    const auto rows = [&](int at, size_t n, size_t floats) {
        check_memory(kernel.c_str(), (Address)(uintptr_t)list(at), n * sizeof(Address));
        for (size_t i = 0; i < n; i++)
            if (list(at)[i] != 0) check_row(kernel, list(at)[i], floats * sizeof(float));
    };
    const auto number = [&](int i) { return *static_cast<const unsigned*>(values[i]); };
    const auto count = [&](int i) { return *static_cast<const Address*>(values[i]); };
    if (kernel.rfind("gather_rows", 0) == 0 || kernel == "update_sgd") {
        rows(0, count(3), number(2));
    } else if (kernel.rfind("move_rows", 0) == 0) {
        rows(0, count(3), number(2));
        rows(1, count(3), number(2));
    } else if (kernel.rfind("update_", 0) == 0) {
        const size_t dim = number(3);
        rows(0, count(4), dim);
        const size_t of_adam = kernel == "update_adam" ? 2 * dim + 1 : 1;
        rows(1, count(4), kernel == "update_adagrad" ? dim : of_adam);
    }
}

void check_handle(const char* call, const std::set<void*>& handles, void* handle) {
    const Guard guard(everything);
    if (!handles.count(handle)) refuse(call, "a handle that is not, or no longer, one");
}

constexpr const char* CODE = "\x7f" "ELF, pretended";

} // namespace

extern "C" {

// the driver

int cuInit(unsigned) { return SUCCESS; }
int cuDriverGetVersion(int* version) { return *version = 13000, SUCCESS; }
int cuDeviceGetCount(int* count) { return *count = 1, SUCCESS; }
int cuDeviceGet(int* device, int ordinal) {
    if (ordinal != 0) return 101;
    return *device = 0, SUCCESS;
}
int cuDeviceGetName(char* name, int bytes, int) {
    std::snprintf(name, (size_t)bytes, "a pretended device");
    return SUCCESS;
}
int cuDeviceTotalMem_v2(size_t* bytes, int) { return *bytes = MEMORY_BYTES, SUCCESS; }
int cuDeviceGetAttribute(int* value, int attribute, int) {
    switch (attribute) {
    case 16: *value = 2; return SUCCESS; // multiprocessors
    case 75: *value = 9; return SUCCESS; // compute capability
    case 76: *value = 0; return SUCCESS;
    default: refuse("cuDeviceGetAttribute", "an attribute that is not pretended");
    }
}
int cuDevicePrimaryCtxRetain(void** context, int) {
    const Guard guard(everything);
    has_context = true;
    return *context = &has_context, SUCCESS;
}
int cuDevicePrimaryCtxRelease_v2(int) {
    const Guard guard(everything);
    if (failed) return LAUNCH_FAILED;
    if (!memory.empty()) refuse("cuDevicePrimaryCtxRelease", "memory is still held");
    if (!streams.empty() || !events.empty() || !modules.empty()) {
        refuse("cuDevicePrimaryCtxRelease", "streams, events or modules are still held");
    }
    has_context = false;
    return SUCCESS;
}
int cuCtxSetCurrent(void* context) {
    if (context != &has_context) refuse("cuCtxSetCurrent", "not a context");
    return entered = true, SUCCESS;
}
int cuCtxSynchronize() {
    check_context("cuCtxSynchronize");
    return failed ? LAUNCH_FAILED : SUCCESS;
}
int cuMemGetInfo_v2(size_t* free, size_t* total) {
    const Guard guard(everything);
    *free = MEMORY_BYTES - device_bytes;
    return *total = MEMORY_BYTES, SUCCESS;
}

int cuStreamCreate(void** stream, unsigned) {
    const Guard guard(everything);
    check_context("cuStreamCreate");
    return streams.insert(*stream = new Stream), SUCCESS;
}
int cuStreamDestroy_v2(void* stream) {
    const Guard guard(everything);
    check_handle("cuStreamDestroy", streams, stream);
    streams.erase(stream);
    return delete static_cast<Stream*>(stream), SUCCESS;
}
int cuStreamSynchronize(void* stream) {
    check_handle("cuStreamSynchronize", streams, stream);
    return failed ? LAUNCH_FAILED : SUCCESS;
}
int cuStreamWaitEvent(void* stream, void* event, unsigned) {
    check_handle("cuStreamWaitEvent", streams, stream);
    return check_handle("cuStreamWaitEvent", events, event), SUCCESS;
}

int cuEventCreate(void** event, unsigned) {
    const Guard guard(everything);
    check_context("cuEventCreate");
    return events.insert(*event = new Event), SUCCESS;
}
int cuEventDestroy_v2(void* event) {
    const Guard guard(everything);
    check_handle("cuEventDestroy", events, event);
    events.erase(event);
    return delete static_cast<Event*>(event), SUCCESS;
}
int cuEventRecord(void* event, void* stream) {
    check_handle("cuEventRecord", events, event);
    check_handle("cuEventRecord", streams, stream);
    *static_cast<Event*>(event) = {true, std::chrono::steady_clock::now()};
    return SUCCESS;
}
int cuEventSynchronize(void* event) {
    return check_handle("cuEventSynchronize", events, event), SUCCESS;
}
int cuEventElapsedTime_v2(float* ms, void* start, void* end) {
    const Event &from = *static_cast<Event*>(start), &to = *static_cast<Event*>(end);
    if (!from.recorded || !to.recorded) return 400;
    *ms = std::chrono::duration<float, std::milli>(to.time - from.time).count();
    return SUCCESS;
}

static int allocate(size_t bytes, int kind, Address* address) {
    const Guard guard(everything);
    if (bytes == 0) return INVALID_VALUE;
    if (kind == 1 && bytes > MEMORY_BYTES - device_bytes) return OUT_OF_MEMORY;
    void* place = nullptr;
    if (posix_memalign(&place, 512, bytes) != 0) return OUT_OF_MEMORY;
    std::memset(place, 0xa5, bytes < (64u << 20) ? bytes : 0); // nobody reads what nobody wrote
    *address = (Address)(uintptr_t)place;
    memory[*address] = {bytes, kind};
    if (kind == 1) device_bytes += bytes;
    return SUCCESS;
}
static int release(const char* call, Address address, int kind) {
    const Guard guard(everything);
    auto found = memory.find(address);
    if (found == memory.end() || found->second.kind != kind) refuse(call, "not allocated so");
    if (kind == 1) device_bytes -= found->second.bytes;
    memory.erase(found);
    return std::free((void*)(uintptr_t)address), SUCCESS;
}
int cuMemAlloc_v2(Address* address, size_t bytes) {
    check_context("cuMemAlloc");
    return allocate(bytes, 1, address);
}
int cuMemFree_v2(Address address) { return release("cuMemFree", address, 1); }
int cuMemHostAlloc(void** place, size_t bytes, unsigned flags) {
    check_context("cuMemHostAlloc");
    if (flags != 3) refuse("cuMemHostAlloc", "flags other than portable and mapped");
    Address address = 0;
    const int answer = allocate(bytes, 2, &address);
    *place = (void*)(uintptr_t)address;
    return answer;
}
int cuMemFreeHost(void* place) {
    return release("cuMemFreeHost", (Address)(uintptr_t)place, 2);
}
int cuMemHostGetDevicePointer_v2(Address* address, void* place, unsigned) {
    *address = (Address)(uintptr_t)place;
    return check_memory("cuMemHostGetDevicePointer", *address, 1), SUCCESS;
}
int cuMemHostRegister_v2(void* place, size_t bytes, unsigned flags) {
    check_context("cuMemHostRegister");
    const Guard guard(everything);
    const Address address = (Address)(uintptr_t)place;
    if (flags != 3) refuse("cuMemHostRegister", "flags other than portable and mapped");
    if (bytes == 0 || address % 4096 != 0) return INVALID_VALUE;
    auto after = memory.lower_bound(address + bytes);
    if (after != memory.begin()) {
        --after;
        if (after->first + after->second.bytes > address) return 712; // registered already
    }
    memory[address] = {bytes, 3};
    return SUCCESS;
}
int cuMemHostUnregister(void* place) {
    const Guard guard(everything);
    auto found = memory.find((Address)(uintptr_t)place);
    if (found == memory.end() || found->second.kind != 3) return 713; // not registered
    memory.erase(found);
    return SUCCESS;
}
int cuMemcpyHtoD_v2(Address to, const void* from, size_t bytes) {
    check_context("cuMemcpyHtoD");
    if (bytes > 0) check_memory("cuMemcpyHtoD", to, bytes);
    return std::memcpy((void*)(uintptr_t)to, from, bytes), SUCCESS;
}
int cuMemcpyDtoH_v2(void* to, Address from, size_t bytes) {
    check_context("cuMemcpyDtoH");
    if (bytes > 0) check_memory("cuMemcpyDtoH", from, bytes);
    return std::memcpy(to, (const void*)(uintptr_t)from, bytes), SUCCESS;
}
int cuMemcpyAsync(Address to, Address from, size_t bytes, void* stream) {
    check_handle("cuMemcpyAsync", streams, stream);
    check_memory("cuMemcpyAsync", to, bytes);
    check_memory("cuMemcpyAsync", from, bytes);
    return std::memmove((void*)(uintptr_t)to, (const void*)(uintptr_t)from, bytes), SUCCESS;
}
int cuMemsetD8Async(Address to, unsigned char byte, size_t bytes, void* stream) {
    check_handle("cuMemsetD8Async", streams, stream);
    check_memory("cuMemsetD8Async", to, bytes);
    return std::memset((void*)(uintptr_t)to, byte, bytes), SUCCESS;
}

int cuModuleLoadData(void** module, const void* image) {
    const Guard guard(everything);
    check_context("cuModuleLoadData");
    if (std::memcmp(image, CODE, std::strlen(CODE)) != 0) return 200;
    return modules.insert(*module = new Module), SUCCESS;
}
int cuModuleUnload(void* module) {
    const Guard guard(everything);
    check_handle("cuModuleUnload", modules, module);
    modules.erase(module);
    return delete static_cast<Module*>(module), SUCCESS;
}
int cuModuleGetFunction(void** function, void* module, const char* name) {
    const Guard guard(everything);
    check_handle("cuModuleGetFunction", modules, module);
    if (cuda_on_cpu::arguments_of(name) < 0) return NOT_FOUND;
    auto& names = static_cast<Module*>(module)->names;
    names.push_back(std::make_unique<std::string>(name));
    return *function = names.back().get(), SUCCESS;
}
int cuLaunchKernel(
    void* function, unsigned grid, unsigned grid_y, unsigned grid_z, unsigned threads,
    unsigned threads_y, unsigned threads_z, unsigned shared_bytes, void* stream, void** values,
    void**) {
    check_context("cuLaunchKernel");
    check_handle("cuLaunchKernel", streams, stream);
    const std::string& name = *static_cast<std::string*>(function);
    if (grid_y != 1 || grid_z != 1 || threads_y != 1 || threads_z != 1) return INVALID_VALUE;
    if (grid == 0 || threads == 0 || threads > 1024) return INVALID_VALUE;
    if (shared_bytes > 48 << 10) return INVALID_VALUE;
    const size_t count = (size_t)cuda_on_cpu::arguments_of(name);
    const Guard guard(everything); // the shim has one block
    const char* last = std::getenv("FAIL_AFTER_LAUNCHES");
    static long launches = 0;
    failed = failed || (last != nullptr && launches++ >= std::atol(last));
    if (failed) return LAUNCH_FAILED;
    check_rows(name, values);
    cuda_on_cpu::run_by_name(name, grid, threads, shared_bytes, values, count);
    const char* wrong = std::getenv("FLIP_A_BIT_OF");
    static bool flipped = false;
    if (wrong != nullptr && name == wrong && !flipped) {
        flipped = true; // once: what lies there later may be addresses
        // the first byte of what the program took: there its first buffer begins
        for (auto& [address, held] : memory) {
            if (held.kind == 1) *(unsigned char*)(uintptr_t)address ^= 1;
        }
    }
    return SUCCESS;
}

// the run-time compiler

int nvrtcVersion(int* major, int* minor) { return *major = 13, *minor = 0, 0; }
int nvrtcCreateProgram(
    void** program, const char* source, const char*, int, const char* const*, const char* const*) {
    return *program = new std::string(source), 0;
}
int nvrtcDestroyProgram(void** program) {
    return delete static_cast<std::string*>(*program), *program = nullptr, 0;
}
int nvrtcCompileProgram(void*, int, const char* const*) { return 0; }
int nvrtcGetProgramLogSize(void*, size_t* bytes) { return *bytes = 1, 0; }
int nvrtcGetProgramLog(void*, char* log) { return *log = 0, 0; }
int nvrtcGetCUBINSize(void*, size_t* bytes) { return *bytes = std::strlen(CODE) + 1, 0; }
int nvrtcGetCUBIN(void*, char* code) { return std::strcpy(code, CODE), 0; }

// cuBLASLt: column by column, no transposition, and sums in doubles

struct Layout {
    unsigned type;
    uint64_t rows, columns;
    int64_t stride;
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

int cublasLtCreate(void** handle) { return *handle = new int(0), 0; }
int cublasLtDestroy(void* handle) { return delete static_cast<int*>(handle), 0; }
int cublasLtMatmulDescCreate(void** description, unsigned compute, unsigned) {
    return *description = new unsigned(compute), 0;
}
int cublasLtMatmulDescDestroy(void* description) {
    return delete static_cast<unsigned*>(description), 0;
}
int cublasLtMatrixLayoutCreate(
    void** layout, unsigned type, uint64_t rows, uint64_t columns, int64_t stride) {
    return *layout = new Layout{type, rows, columns, stride}, 0;
}
int cublasLtMatrixLayoutDestroy(void* layout) { return delete static_cast<Layout*>(layout), 0; }
int cublasLtMatmulPreferenceCreate(void** preference) { return *preference = new int(0), 0; }
int cublasLtMatmulPreferenceDestroy(void* preference) {
    return delete static_cast<int*>(preference), 0;
}
int cublasLtMatmulPreferenceSetAttribute(void*, unsigned, const void*, size_t) { return 0; }
int cublasLtMatmulAlgoGetHeuristic(
    void*, void*, void* a, void* b, void* c, void*, void*, int, Heuristic* found, int* count) {
    const Layout &x = *static_cast<Layout*>(a), &y = *static_cast<Layout*>(b),
                 &z = *static_cast<Layout*>(c);
    *count = x.columns == y.rows && x.rows == z.rows && y.columns == z.columns;
    *found = {};
    return 0;
}

static float element(const Layout& layout, const void* matrix, uint64_t row, uint64_t column) {
    const uint64_t at = column * (uint64_t)layout.stride + row;
    if (layout.type == 0) return static_cast<const float*>(matrix)[at];
    const uint32_t bits = (uint32_t) static_cast<const uint16_t*>(matrix)[at] << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

int cublasLtMatmul(
    void*, void*, const float* alpha, const void* a, void* a_layout, const void* b, void* b_layout,
    const float* beta, const void*, void*, void* d, void* d_layout, const Algorithm*, void*, size_t,
    void* stream) {
    check_handle("cublasLtMatmul", streams, stream);
    const Layout &x = *static_cast<Layout*>(a_layout), &y = *static_cast<Layout*>(b_layout),
                 &z = *static_cast<Layout*>(d_layout);
    if (*alpha != 1 || *beta != 0) refuse("cublasLtMatmul", "factors that are not pretended");
    const size_t width = z.type == 0 ? 4 : 2;
    check_memory("cublasLtMatmul", (Address)(uintptr_t)d, z.rows * z.columns * width);
    for (uint64_t j = 0; j < z.columns; j++) {
        for (uint64_t i = 0; i < z.rows; i++) {
            double sum = 0;
            for (uint64_t k = 0; k < x.columns; k++)
                sum += element(x, a, i, k) * element(y, b, k, j);
            const float value = (float)sum;
            const uint64_t at = j * (uint64_t)z.stride + i;
            if (z.type == 0) {
                static_cast<float*>(d)[at] = value;
            } else {
                uint32_t bits;
                std::memcpy(&bits, &value, sizeof bits);
                bits += 0x7fff + (bits >> 16 & 1);
                static_cast<uint16_t*>(d)[at] = (uint16_t)(bits >> 16);
            }
        }
    }
    return 0;
}

} // extern "C"
