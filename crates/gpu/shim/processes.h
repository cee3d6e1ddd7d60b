// What the pretended driver lets other processes have: device memory, and events. Both lie in files
// without a name that another process reaches through /proc while their owner lives, and keeps by
// having them mapped; nothing is left when the last of them is gone, however it went.
//
// Work is still done as late as it may be: when another process looks for an event or waits for it,
// a thread of this one does what comes before the event, and no more.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstring>

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

namespace pretended {

[[noreturn]] void refuse(const char* call, const char* what);

constexpr uint64_t OF_MEMORY = 0x70726574656d656d, OF_EVENT = 0x7072657465766e74;
constexpr size_t PAGE = 4096;
constexpr int OPENERS_MAX = 32;

// A handle, as it goes to other processes: 64 bytes for the driver.
struct Handle {
    uint64_t kind;
    int32_t process, file;
    uint64_t number; // which of the things that this file's number has stood for
    uint64_t bytes;
    unsigned char uuid[16];
    unsigned char rest[16];
};
static_assert(sizeof(Handle) == 64, "the driver's handles have 64 bytes");

// The last page of shared memory, or the only one of an event.
struct Shared {
    uint64_t kind, number;
    std::atomic<int32_t> openers[OPENERS_MAX]; // processes that have the memory open
    std::atomic<uint32_t> recorded, happened, wanted; // of an event: how often, by whomever
    std::atomic<uint32_t> destroyed;
};
static_assert(sizeof(Shared) <= PAGE, "it is one page");

inline void raise_to(std::atomic<uint32_t>& value, uint32_t to) {
    uint32_t is = value.load();
    while (is < to && !value.compare_exchange_weak(is, to)) {
    }
}

inline size_t to_pages(size_t bytes) { return (bytes + PAGE - 1) / PAGE * PAGE; }

// What makes one device of a machine not another.
inline void uuid_of_device(unsigned char* uuid) {
    std::memcpy(uuid, "pretended device", 16);
    const char* number = std::getenv("DEVICE_UUID");
    if (number != nullptr) uuid[15] = (unsigned char)std::atoi(number);
}

// Some bytes, and a page that says of them what other processes have to know.
struct File {
    int file = -1; // -1: another process's
    unsigned char* place = nullptr;
    size_t bytes = 0;
    Handle handle = {};

    Shared* shared() const { return (Shared*)(place + to_pages(bytes)); }

    static File make(uint64_t kind, size_t bytes) {
        static std::atomic<uint64_t> made{0};
        File made_here;
        made_here.file = memfd_create("pretended CUDA", MFD_CLOEXEC);
        const size_t all = to_pages(bytes) + PAGE;
        if (made_here.file < 0 || ftruncate(made_here.file, (off_t)all) != 0) return {};
        if (!made_here.map(bytes, made_here.file)) return {};
        const uint64_t number = ++made;
        made_here.shared()->kind = kind;
        made_here.shared()->number = number;
        made_here.handle = {kind, getpid(), made_here.file, number, bytes, {}, {}};
        uuid_of_device(made_here.handle.uuid);
        return made_here;
    }

    // What the handle stands for; the driver's answer where that can't be had.
    static int open(uint64_t kind, const Handle& handle, File* opened) {
        unsigned char own[16];
        uuid_of_device(own);
        if (handle.kind != kind) return 1;
        if (handle.process == getpid()) return 201; // it is for other processes
        if (std::memcmp(own, handle.uuid, sizeof own) != 0) return 217; // of another device
        char path[64];
        std::snprintf(path, sizeof path, "/proc/%d/fd/%d", handle.process, handle.file);
        const int file = ::open(path, O_RDWR | O_CLOEXEC);
        if (file < 0) return 400; // its owner is gone
        const off_t length = lseek(file, 0, SEEK_END);
        const bool whole = length >= 0 && (size_t)length == to_pages(handle.bytes) + PAGE;
        const bool mapped = whole && opened->map(handle.bytes, file);
        ::close(file);
        if (!mapped) return 400;
        opened->handle = handle;
        const Shared* shared = opened->shared();
        if (shared->kind == kind && shared->number == handle.number) return 0;
        opened->close();
        return 400;
    }

    bool map(size_t length, int from) {
        const size_t all = to_pages(length) + PAGE;
        void* at = mmap(nullptr, all, PROT_READ | PROT_WRITE, MAP_SHARED, from, 0);
        if (at == MAP_FAILED) return false;
        place = (unsigned char*)at;
        bytes = length;
        return true;
    }

    void close() {
        if (place != nullptr) munmap(place, to_pages(bytes) + PAGE);
        if (file >= 0) ::close(file);
        *this = {};
    }

    // Whether a process that lives has it open.
    bool is_open_elsewhere() const {
        for (auto& opener : shared()->openers) {
            const int32_t process = opener.load();
            if (process != 0 && kill(process, 0) == 0) return true;
        }
        return false;
    }

    void note_open(const char* call) {
        for (auto& opener : shared()->openers) {
            int32_t was = opener.load();
            if (was != 0 && kill(was, 0) == 0) continue;
            if (opener.compare_exchange_strong(was, getpid())) return;
        }
        refuse(call, "more processes than are pretended");
    }

    void note_closed() {
        for (auto& opener : shared()->openers) {
            int32_t own = getpid();
            if (opener.compare_exchange_strong(own, 0)) return;
        }
    }
};

} // namespace pretended
