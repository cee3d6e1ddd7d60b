// Runs the kernels on the CPU over a file of vectors (crates/gpu/src/vectors.rs has its form) and
// compares every buffer, bit for bit. Exit code 0: all agree; 1: some do not; 2: not such a file;
// 3: a kernel did what is undefined on a device.
#include "kernels.h"

#include <fstream>

dim3 threadIdx, blockIdx, blockDim, gridDim;
namespace cuda_on_cpu {
Block block;
}

namespace {

[[noreturn]] void refuse(const std::string& what) {
    std::fprintf(stderr, "not a file of vectors: %s\n", what.c_str());
    std::exit(2);
}

struct Reader {
    std::vector<unsigned char> bytes;
    size_t at = 0;

    const unsigned char* take(size_t count) {
        if (count > bytes.size() - at) refuse("it ends at byte " + std::to_string(bytes.size()));
        const unsigned char* found = bytes.data() + at;
        at += count;
        return found;
    }
    uint64_t number(size_t width) {
        uint64_t value = 0;
        std::memcpy(&value, take(width), width);
        return value;
    }
};

// A buffer of its own allocation, exactly as long as it says: the sanitizer sees its ends.
struct Buffer {
    unsigned char* bytes;
    size_t count;
    std::vector<unsigned char> expected;
    float tolerance; // below 0: bytes, which are equal or not
    size_t width;    // of a number

    double number(const unsigned char* at) const {
        float brief;
        double whole;
        std::memcpy(&brief, at, sizeof brief);
        if (width == sizeof brief) return brief;
        std::memcpy(&whole, at, sizeof whole);
        return whole;
    }

    // The first byte that is not as expected; `count` where there is none.
    size_t first_wrong() const {
        if (tolerance < 0) {
            const unsigned char* begin = bytes;
            return (size_t)(std::mismatch(begin, begin + count, expected.data()).first - begin);
        }
        for (size_t i = 0; i < count; i += width) {
            const double found = number(bytes + i), wanted = number(expected.data() + i);
            // which of the many that are no number it is depends on the processor
            if (wanted != wanted && found != found) continue;
            // not the other way round: what is no number is wrong elsewhere
            if (!(std::fabs(found - wanted) <= tolerance * (1 + std::fabs(wanted)))) return i;
        }
        return count;
    }
};

} // namespace

int main(int count, char** arguments) {
    if (count != 2) refuse("name one file");
    std::ifstream file(arguments[1], std::ios::binary);
    Reader reader;
    reader.bytes.assign(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
    if (std::memcmp(reader.take(8), "EPSVEC02", 8) != 0) refuse("it starts with other bytes");
    const uint64_t cases = reader.number(4);
    uint64_t wrong = 0;
    for (uint64_t number = 0; number < cases; number++) {
        const size_t name_bytes = reader.number(4);
        const unsigned char* name_at = reader.take(name_bytes);
        const std::string name(name_at, name_at + name_bytes);
        const unsigned grid = (unsigned)reader.number(4), block = (unsigned)reader.number(4);
        const unsigned shared_bytes = (unsigned)reader.number(4);
        const size_t n = reader.number(4);
        std::vector<Buffer> buffers;
        std::vector<uint64_t> scalars(n); // never moves: the launch takes addresses of its elements
        std::vector<std::vector<uint64_t>> tables(n);
        std::vector<void*> values;
        for (size_t i = 0; i < n; i++) {
            const uint64_t kind = reader.number(1);
            switch (kind) {
            case 0: scalars[i] = reader.number(4); break;
            case 1: scalars[i] = reader.number(8); break;
            case 2:
            case 4:
            case 5:
            case 6: {
                const size_t bytes = reader.number(8);
                float tolerance = -1;
                const size_t width = kind == 6 ? sizeof(double) : sizeof(float);
                if (kind >= 5) std::memcpy(&tolerance, reader.take(4), sizeof tolerance);
                if (kind >= 5 && bytes % width != 0) refuse("a part of a float");
                auto* memory = static_cast<unsigned char*>(std::malloc(bytes)); // 16-byte aligned
                if (memory == nullptr && bytes > 0) refuse("a buffer is too large");
                std::memcpy(memory, reader.take(bytes), bytes);
                const unsigned char* after = reader.take(bytes);
                buffers.push_back({memory, bytes, {after, after + bytes}, tolerance, width});
                scalars[i] = (uint64_t)(uintptr_t)memory;
                break;
            }
            case 3: {
                const size_t buffer = reader.number(4), rows = reader.number(8);
                if (buffer >= buffers.size()) refuse("addresses into a buffer that is not there");
                for (size_t r = 0; r < rows; r++) {
                    const uint64_t offset = reader.number(8);
                    const bool none = offset == UINT64_MAX;
                    tables[i].push_back(
                        none ? 0 : (uint64_t)(uintptr_t)(buffers[buffer].bytes + offset));
                }
                scalars[i] = (uint64_t)(uintptr_t)tables[i].data();
                break;
            }
            default: refuse("an argument of an unknown kind");
            }
            if (kind != 4) values.push_back(&scalars[i]);
        }
        if (!cuda_on_cpu::run_by_name(
                name, grid, block, shared_bytes, values.data(), values.size()))
            refuse("no such kernel: " + name);
        for (size_t b = 0; b < buffers.size(); b++) {
            const size_t i = buffers[b].first_wrong();
            if (i < buffers[b].count) {
                std::fprintf(
                    stderr, "case %llu, %s: buffer %zu differs at byte %zu of %zu\n",
                    (unsigned long long)number, name.c_str(), b, i, buffers[b].count);
                wrong++;
            }
            std::free(buffers[b].bytes);
        }
    }
    std::printf("%llu cases, %llu wrong\n", (unsigned long long)cases, (unsigned long long)wrong);
    return wrong == 0 ? 0 : 1;
}
