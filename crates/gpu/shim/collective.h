// The pretended NCCL: communicators of ranks that are threads of one process, and their sums. What
// is summed is done when somebody waits for it, as all work of streams (streams.h): then the other
// ranks' streams are brought to where theirs is. A sum is of all ranks in their order, so that each
// has the same bits. Unlike the library it lets ranks share a device, and a rank that says what it
// sums waits until all have said it.
#pragma once

#include "streams.h"

#include <array>
#include <condition_variable>
#include <cstring>

namespace pretended {

void check_memory(const char* call, unsigned long long address, size_t bytes);

constexpr int INVALID_ARGUMENT = 4;

// One sum: what each rank brings, and where its stream stands then.
struct Sum {
    std::vector<float*> floats;
    std::vector<void*> streams;
    std::vector<std::pair<std::shared_ptr<Stream>, uint64_t>> before;
    size_t count = 0, said = 0;
    bool done = false;
};

struct Ranks {
    int ranks = 0, joined = 0;
    std::vector<std::shared_ptr<Sum>> sums;
};

struct Communicator {
    std::shared_ptr<Ranks> ranks;
    int rank;
    size_t sums = 0;
};

struct Collective {
    std::mutex lock; // taken before the driver's, never after it
    std::condition_variable changed;
    std::map<std::array<char, 128>, std::shared_ptr<Ranks>> by_name;
    uint64_t names = 0;
};

inline Collective collective;

inline void add_up(Sum& sum) {
    if (sum.done) return;
    sum.done = true;
    for (auto& [stream, position] : sum.before) all.run_until(*stream, position);
    for (size_t i = 0; i < sum.count; i++) {
        float total = sum.floats[0][i];
        for (size_t r = 1; r < sum.floats.size(); r++) total += sum.floats[r][i];
        for (float* floats : sum.floats) floats[i] = total;
    }
}

} // namespace pretended

extern "C" {

struct NameOfRanks {
    char bytes[128];
};

int ncclGetVersion(int* version) { return *version = 22707, 0; }
const char* ncclGetErrorString(int answer) {
    return answer == pretended::INVALID_ARGUMENT ? "invalid argument" : "some error";
}
int ncclGetUniqueId(NameOfRanks* name) {
    const std::lock_guard<std::mutex> guard(pretended::collective.lock);
    std::memset(name->bytes, 0x5a, sizeof name->bytes);
    const uint64_t number = ++pretended::collective.names;
    std::memcpy(name->bytes, &number, sizeof number);
    return 0;
}
int ncclCommInitRank(void** communicator, int count, NameOfRanks name, int rank) {
    if (count < 1 || rank < 0 || rank >= count) return pretended::INVALID_ARGUMENT;
    std::unique_lock<std::mutex> guard(pretended::collective.lock);
    std::array<char, 128> bytes;
    std::memcpy(bytes.data(), name.bytes, bytes.size());
    auto& ranks = pretended::collective.by_name[bytes];
    if (!ranks) ranks = std::make_shared<pretended::Ranks>();
    if (ranks->joined > 0 && ranks->ranks != count) return pretended::INVALID_ARGUMENT;
    ranks->ranks = count;
    if (++ranks->joined > count) pretended::refuse("ncclCommInitRank", "more ranks than were said");
    pretended::collective.changed.notify_all();
    const auto own = ranks;
    pretended::collective.changed.wait(guard, [&] { return own->joined == count; });
    return *communicator = new pretended::Communicator{own, rank}, 0;
}
int ncclCommDestroy(void* communicator) {
    return delete static_cast<pretended::Communicator*>(communicator), 0;
}
int ncclAllReduce(
    const void* from, void* to, size_t count, int type, int operation, void* communicator,
    void* stream_handle) {
    constexpr const char* call = "ncclAllReduce";
    if (type != 7 || operation != 0 || from != to) {
        pretended::refuse(call, "other than sums of floats in place");
    }
    pretended::check_memory(call, (unsigned long long)(uintptr_t)to, count * sizeof(float));
    auto& own = *static_cast<pretended::Communicator*>(communicator);
    std::unique_lock<std::mutex> guard(pretended::collective.lock);
    auto& sums = own.ranks->sums;
    if (sums.size() <= own.sums) sums.push_back(std::make_shared<pretended::Sum>());
    const auto sum = sums[own.sums++];
    const size_t ranks = (size_t)own.ranks->ranks;
    sum->floats.resize(ranks);
    sum->streams.resize(ranks);
    if (sum->said > 0 && sum->count != count) pretended::refuse(call, "ranks of different lengths");
    sum->count = count;
    sum->floats[(size_t)own.rank] = static_cast<float*>(to);
    sum->streams[(size_t)own.rank] = stream_handle;
    if (++sum->said == ranks) { // the others wait here: nothing comes into their streams
        const pretended::Guard driver(pretended::all.lock);
        for (void* handle : sum->streams) {
            auto& stream = pretended::all.stream(call, handle);
            if (stream.recording) pretended::refuse(call, "while it is recorded");
            sum->before.emplace_back(pretended::all.streams[handle], stream.queued);
            pretended::all.add(call, handle, [sum] { pretended::add_up(*sum); });
        }
    }
    pretended::collective.changed.notify_all();
    pretended::collective.changed.wait(guard, [&] { return sum->said == ranks; });
    return 0;
}

} // extern "C"
